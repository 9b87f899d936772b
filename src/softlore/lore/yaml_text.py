"""YAML as lore uses it: YAML 1.2's plain values, no code, no bombs, no fields given twice.

PyYAML reads YAML 1.1, in which `no` is false, `12:30` is 750 and `2024-01-02` is a date. In a
story those are text, so only `true`, `false`, `null` and decimal numbers are read as values.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from softlore.lore.plain import MAX_DEPTH, MAX_NODES

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_TOO_DEEP = f"lists and mappings stand more than {MAX_DEPTH} deep in one another"
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_RESOLVERS: list[tuple[str, re.Pattern[str], str]] = [
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), "~nN\0"),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", re.compile(r"<<$"), "<"),
]


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
        style = None
        if not text.isprintable():
            style = "|" if text.replace("\n", "").isprintable() else '"'
        return self.represent_scalar(_TAG + "str", text, style)


_LoreDumper.add_representer(str, _LoreDumper.represent_text)

for _name, _pattern, _first in _RESOLVERS:
    for _character in _first:
        # "\0" stands for no first character: the empty value.
        _key = "" if _character == "\0" else _character
        _LoreLoader.yaml_implicit_resolvers.setdefault(_key, []).append((_TAG + _name, _pattern))
_LoreDumper.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """Returns what `text` says. Raises ValueError, in plain words, if it cannot be used."""
    try:
        _refuse_tags_and_bombs(text)
        return yaml.load(text, _LoreLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(_in_plain_words(error)) from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def write_yaml(data: Any) -> str:
    """Returns `data` as YAML that `read_yaml` reads back the same."""
    return yaml.dump(data, Dumper=_LoreDumper, allow_unicode=True, sort_keys=False, width=100)


def _refuse_tags_and_bombs(text: str) -> None:
    """Raises ValueError for tags, and if `text` is too deep or its aliases make it too large.

    Reads the stream of events, which costs no more than the text's own length, so that nothing is
    built of what is refused.
    """
    sizes: dict[str, int | None] = {}  # anchor -> values in it; None while it is still open
    open_nodes: list[tuple[str | None, int]] = []  # anchor, values at its start
    values = 0
    for event in yaml.parse(text, _LoreLoader):
        anchor = getattr(event, "anchor", None)
        if getattr(event, "tag", None) not in (None, "!", _TAG + "str"):
            line = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
            raise ValueError(f"{line}tags that begin with ! are not read; take the tag out")
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor or "", 1)
            if size is None:
                raise ValueError(f"the alias *{event.anchor:.40} stands within itself")
            values += size
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if anchor:
                sizes[anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, values))
            values += 1
            if anchor:
                sizes[anchor] = None
        elif isinstance(event, yaml.CollectionEndEvent):
            started, before = open_nodes.pop()
            if started:
                sizes[started] = values - before
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if values > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES:,} values once its aliases are written out")


def _in_plain_words(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    if "nesting depth" in problem:  # libyaml's own limit, met before ours where it looks ahead
        return _TOO_DEEP
    first = problem.splitlines()[0] if problem else "it cannot be read"
    hint = (
        "check the indentation there, and put text that holds a colon or begins with a sign in "
        "quotes"
    )
    return f"{line}this is not YAML ({first[:120]}); {hint}"
