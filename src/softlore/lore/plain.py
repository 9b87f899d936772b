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
from collections.abc import Sequence
from typing import Any, ClassVar

import yaml

MAX_DEPTH = 50  # levels of lists and mappings
MAX_NODES = 1_000_000  # values in one file
_LARGEST = 2**63
_TOO_DEEP = f"lists and mappings are nested more than {MAX_DEPTH} deep; use fewer levels"

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_RESOLVERS: list[tuple[str, re.Pattern[str], Sequence[str]]] = [  # kind, pattern, first letters
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", re.compile(r"<<$"), "<"),
]


def plain(value: Any) -> Any:
    """Returns a copy of `value` that YAML and JSON can both hold and read back the same.

    Tuples become lists, dates become text. Raises ValueError for any other kind of value, for more
    than `MAX_DEPTH` levels or `MAX_NODES` values, for numbers that are not finite or need more than
    64 bits, and for broken characters (lone surrogates).
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
            return {_scalar(key): copy(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [copy(item, depth + 1) for item in value]
        return _scalar(value)

    return copy(value, 0)


def _scalar(value: Any) -> Any:
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
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"the text {value!r:.60} holds a broken character; type it again")
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise ValueError(
        f"a value is of the kind {type(value).__name__}; lore holds only text, numbers, true, "
        "false, lists and mappings"
    )


class _LoreLoader(_Loader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.tag != _TAG + "merge" and isinstance(key.value, str):
                if key.value in seen:
                    raise ValueError(
                        f"line {key.start_mark.line + 1}: the field {key.value!r:.60} is given "
                        "twice in one place; keep one"
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _LoreDumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or the loader above would not read as text."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML leaves rare line breaks (U+0085, U+2028) bare, where a reader turns them into \n.
        multiline = "|" if text.replace("\n", "").isprintable() else '"'
        style = None if text.isprintable() else multiline
        return self.represent_scalar(_TAG + "str", text, style)


_LoreDumper.add_representer(str, _LoreDumper.represent_text)

for _name, _pattern, _first in _RESOLVERS:
    _LoreLoader.add_implicit_resolver(_TAG + _name, _pattern, _first)
_LoreDumper.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """Parses YAML. Raises ValueError, with a message for the user, if it is rejected."""
    try:
        _check_events(text)
        return yaml.load(text, _LoreLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(_message(error)) from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def write_yaml(data: Any) -> str:
    """Returns `data` as YAML that `read_yaml` reads back equal."""
    return yaml.dump(data, Dumper=_LoreDumper, allow_unicode=True, sort_keys=False, width=100)


def _check_events(text: str) -> None:
    """Raises ValueError for tags, too many levels, and aliases that expand to too many values.

    Only the stream of parser events is read, in time linear in the text's length, so that no
    values are built of a document that is rejected.
    """
    sizes: dict[str, int | None] = {}  # values below each anchor; None: still open
    open_nodes: list[tuple[str | None, int]] = []  # anchor, number of values before it
    values = 0
    for event in yaml.parse(text, _LoreLoader):
        anchor = getattr(event, "anchor", None)
        if getattr(event, "tag", None) not in (None, "!", _TAG + "str"):
            line = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
            raise ValueError(f"{line}tags that begin with ! are not read; remove the tag")
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor or "", 1)
            if size is None:
                raise ValueError(f"the alias *{event.anchor:.40} contains itself; remove it")
            values += size
        elif isinstance(event, yaml.NodeEvent):
            is_scalar = isinstance(event, yaml.ScalarEvent)
            if not is_scalar:
                open_nodes.append((anchor, values))
            values += 1
            if anchor:
                sizes[anchor] = 1 if is_scalar else None
        elif isinstance(event, yaml.CollectionEndEvent):
            started, before = open_nodes.pop()
            if started:
                sizes[started] = values - before
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if values > MAX_NODES:
            raise ValueError(
                f"more than {MAX_NODES:,} values once its aliases are expanded; remove some"
            )


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
