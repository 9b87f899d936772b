"""Decorators: lines such as `@@depth 4` at the start of an entry's text in version 3 cards.

Those that set a field of softlore are read into it; the others only stay in the text. Source: the
Character Card V3 specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softlore.lore.formats.key_syntax import split_list

_POSITIONS = {"before_desc": "before_char", "after_desc": "after_char"}


def split(content: str) -> tuple[list[str], str]:
    """Returns the lines of decorators, and the text below them."""
    lines: list[str] = []
    while content.startswith("@@"):
        line, _, content = content.partition("\n")
        lines.append(line)
    return lines, content


def fields_of(lines: list[str]) -> dict[str, Any]:
    """Returns the fields of an entry that the decorators set; the first of a kind counts."""
    return {name: value for line in reversed(lines) for name, value in _parse(line).items()}


def still_true(lines: list[str], values: Mapping[str, Any]) -> list[str]:
    """Returns all lines if they agree with an entry's fields, else those of them that do."""
    if _agree(fields_of(lines), values):
        return lines
    return [line for line in lines if _agree(_parse(line), values)]


def _agree(parsed: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(values[name] == value for name, value in parsed.items())


def _parse(line: str) -> dict[str, Any]:
    """The fields that a decorator sets; none if it is unknown or its value is invalid."""
    name, _, value = line.strip().removeprefix("@@").partition(" ")
    value = value.strip()
    is_number = value.isascii() and value.isdigit() and len(value) < 9
    match name:
        case "depth" if is_number:
            return {"position": "at_depth", "depth": int(value)}
        case "scan_depth" if is_number:
            return {"scan_depth": int(value)}
        case "role" if value in ("system", "user", "assistant"):
            return {"role": value}
        case "position" if value in _POSITIONS:
            return {"position": _POSITIONS[value]}
        case "activate":
            return {"constant": True}
        case "dont_activate":
            return {"enabled": False}
        case "additional_keys" | "exclude_keys" if keys := split_list(value):
            logic = "and_any" if name == "additional_keys" else "not_any"
            return {"secondary_keys": keys, "selective": True, "selective_logic": logic}
    return {}
