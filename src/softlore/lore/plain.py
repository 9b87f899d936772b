"""Plain data, as YAML and JSON can both hold it, and a strict reader and writer of YAML.

Plain data are mappings, lists, text, numbers, true, false and null. Of YAML 1.2, only `true`,
`false`, `null` and decimal numbers are read as values, all else as text: PyYAML by itself reads
YAML 1.1, in which `no` is false, `12:30` is 750 and `2024-01-02` is a date. Tags, fields given
twice, and aliases that expand to too many values are rejected.
"""

from __future__ import annotations

import datetime
import itertools
import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_DEPTH = 50  # levels of lists and mappings
MAX_NODES = 1_000_000  # values in one file
_LARGEST = 2**63
_TOO_DEEP = f"lists and mappings are nested more than {MAX_DEPTH} deep; use fewer levels"

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")
_WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("~", "null", "Null", "NULL", ""), None),
}
_MERGE = object()  # the key `<<`
_NO_KEY = object()


def plain(value: Any, mend: bool = False) -> Any:
    """Returns a copy of `value` that YAML and JSON can both hold and read back the same.

    Tuples become lists, dates become text. Raises ValueError for any other kind of value, for more
    than `MAX_DEPTH` levels or `MAX_NODES` values, for numbers that are not finite or need more than
    64 bits, and for broken characters (lone surrogates).

    Args:
        mend: replace broken characters (see `mend_halves`) in place of raising.
    """
    values = itertools.count(1)

    def copy(value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if next(values) > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES:,} values; make it smaller")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ValueError(f"the field name {key!r:.60} is not text; put it in quotes")
            copied = {_scalar(key, mend): copy(inner, depth + 1) for key, inner in value.items()}
            if len(copied) < len(value):
                raise ValueError("two field names differ in broken characters only; keep one")
            return copied
        if isinstance(value, list | tuple):
            return [copy(item, depth + 1) for item in value]
        return _scalar(value, mend)

    return copy(value, 0)


def mend_halves(text: str) -> str:
    """Returns a text with U+FFFD for each half of a character (a lone surrogate).

    JavaScript leaves such halves where it cuts a text within an emoji. Two halves that stand side
    by side become the character that they are.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _scalar(value: Any, mend: bool) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -_LARGEST <= value < _LARGEST:
            raise ValueError("a number is too large; if it is text, put it in quotes")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"the number {value} is not finite; change it")
        return float(value)
    if isinstance(value, str):
        if mend:
            return mend_halves(str(value))
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"the text {value!r:.60} holds a broken character; type it again")
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise ValueError(
        f"a value is of the kind {type(value).__name__}; lore holds only text, numbers, true, "
        "false, lists and mappings"
    )


class _LoreDumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or the loader above would not read as text."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML leaves rare line breaks (U+0085, U+2028) bare, where a reader turns them into \n.
        multiline = "|" if text.replace("\n", "").isprintable() else '"'
        style = None if text.isprintable() else multiline
        return self.represent_scalar(_TAG + "str", text, style)


_LoreDumper.add_representer(str, _LoreDumper.represent_text)

_LoreDumper.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """Parses YAML. Raises ValueError, with a message for the user, if it is rejected."""
    document = _Document()
    try:
        for event in yaml.parse(text, _Parser):
            document.feed(event)
    except yaml.YAMLError as error:
        raise ValueError(_message(error)) from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return document.values[0] if document.values else None


def write_yaml(data: Any) -> str:
    """Returns `data` as YAML that `read_yaml` reads back equal."""
    return yaml.dump(data, Dumper=_LoreDumper, allow_unicode=True, sort_keys=False, width=100)


@dataclass
class _Open:
    """A list or mapping whose end was not yet read."""

    container: Any
    anchor: str | None
    before: int  # values in the document before it
    key: Any = _NO_KEY  # of a mapping: the key whose value comes next
    merged: list[dict[Any, Any]] = field(default_factory=list)


class _Document:
    """Builds the values of a document from the parser's events, in one pass.

    Raises ValueError for tags, fields given twice, too many levels, and aliases that expand to too
    many values. An alias refers to the value of its anchor, which is not copied here.
    """

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}  # a value, and how many are in it; 0: open
        self._count = 0

    def feed(self, event: Any) -> None:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            value = self._scalar(event)
            self._enter(event, 1)
            self._note(event.anchor, value, 1)
            self._add(value, event)
        elif kind in (yaml.SequenceStartEvent, yaml.MappingStartEvent):
            value = {} if kind is yaml.MappingStartEvent else []
            self._note(event.anchor, value, 0)
            self._open.append(_Open(value, event.anchor, self._count))
            self._enter(event, 1)
        elif kind in (yaml.SequenceEndEvent, yaml.MappingEndEvent):
            ended = self._open.pop()
            for other in ended.merged:
                for key, inner in other.items():
                    ended.container.setdefault(key, inner)
            self._note(ended.anchor, ended.container, self._count - ended.before)
            self._add(ended.container, event)
        elif kind is yaml.AliasEvent:
            if event.anchor not in self._anchors:
                raise _fault(event, f"found undefined alias {event.anchor!r:.60}")
            value, size = self._anchors[event.anchor]
            if not size:
                raise ValueError(f"the alias *{event.anchor:.40} contains itself; remove it")
            self._enter(event, size)
            self._add(value, event)
        elif kind is yaml.DocumentStartEvent and self.values:
            raise _fault(event, "it holds several documents, and one was expected")

    def _enter(self, event: Any, size: int) -> None:
        """Counts values that begin here."""
        self._count += size
        if getattr(event, "tag", None) not in (None, "!", _TAG + "str"):
            raise ValueError(f"{_line(event)}tags that begin with ! are not read; remove the tag")
        if len(self._open) > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if self._count > MAX_NODES:
            raise ValueError(
                f"more than {MAX_NODES:,} values once its aliases are expanded; remove some"
            )

    def _note(self, anchor: str | None, value: Any, size: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = value, size

    def _scalar(self, event: Any) -> Any:
        """The value of a scalar: what is quoted or has a tag is text."""
        text: str = event.value
        if not event.implicit[0]:
            return text
        if text == "<<" and self._open and self._open[-1].key is _NO_KEY:
            return _MERGE if isinstance(self._open[-1].container, dict) else text
        if text in _WORDS:
            return _WORDS[text]
        if text[0] in "-+.0123456789":
            if _INT.match(text):
                return int(text)
            if _FLOAT.match(text):
                return float(text)
        return text

    def _add(self, value: Any, event: Any) -> None:
        """Puts a complete value into the list or mapping that is open."""
        if not self._open:
            self.values.append(value)
            return
        top = self._open[-1]
        if isinstance(top.container, list):
            top.container.append(value)
        elif top.key is _NO_KEY:
            if isinstance(value, dict | list):
                raise _fault(event, "found a list or a mapping in the place of a field name")
            if value in top.container:
                raise ValueError(
                    f"{_line(event)}the field {value!r:.60} is given twice in one place; keep one"
                )
            top.key = value
        elif top.key is _MERGE:
            top.merged += self._merged(value, event)
            top.key = _NO_KEY
        else:
            top.container[top.key] = value
            top.key = _NO_KEY

    def _merged(self, value: Any, event: Any) -> list[dict[Any, Any]]:
        """The mappings whose fields `<<` adds, those of the first have precedence."""
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(other, dict) for other in listed):
            raise _fault(event, "`<<` takes a mapping, or a list of mappings")
        return listed


def _line(event: Any) -> str:
    return f"line {event.start_mark.line + 1}: " if event.start_mark else ""


def _fault(event: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _message(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    if "nesting depth" in problem:  # libyaml's own limit, reached before ours
        return _TOO_DEEP
    first = problem.splitlines()[0] if problem else "it cannot be read"
    return (
        f"{line}this is not YAML ({first[:120]}); check the indentation there, and put text that "
        "holds a colon or begins with a sign in quotes"
    )
