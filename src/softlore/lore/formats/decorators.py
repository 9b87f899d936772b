"""Decorators: lines such as `@@depth 4` that head an entry's text in character cards of version 3.

Those that say what a field of softlore says are honoured; the others are only kept. Source: the
Character Card V3 specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softlore.lore.formats.keys import split_list

_POSITIONS = {"before_desc": "before_char", "after_desc": "after_char"}
_ROLES = ("system", "user", "assistant")


def split(content: str) -> tuple[list[str], str]:
    """Returns the lines of decorators, and the text below them as it stands."""
    lines: list[str] = []
    while content.startswith("@@"):
        line, _, content = content.partition("\n")
        lines.append(line)
    return lines, content


def joined(lines: list[str], text: str) -> str:
    """The twin of `split`."""
    return "\n".join([*lines, text])


def fields_of(lines: list[str]) -> dict[str, Any]:
    """Returns what the decorators say, as fields of an entry. The first of a kind holds."""
    found: dict[str, Any] = {}
    for line in lines:
        for name, value in _said(line).items():
            found.setdefault(name, value)
    return found


def still_true(lines: list[str], values: Mapping[str, Any]) -> list[str]:
    """Returns the lines that may stay: all; where a field was changed, those that agree with it."""
    if _agree(fields_of(lines), values):
        return lines
    return [line for line in lines if _agree(_said(line), values)]


def _agree(said: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(values[name] == value for name, value in said.items())


def _said(line: str) -> dict[str, Any]:
    """The fields that one decorator sets; none if it is not known, or its value makes no sense."""
    name, _, value = line.strip().removeprefix("@@").partition(" ")
    value = value.strip()
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 9 else None
    if name == "depth" and number is not None:
        return {"position": "at_depth", "depth": number}
    if name == "scan_depth" and number is not None:
        return {"scan_depth": number}
    if name == "role" and value in _ROLES:
        return {"role": value}
    if name == "position" and value in _POSITIONS:
        return {"position": _POSITIONS[value]}
    if name == "activate":
        return {"constant": True}
    if name == "dont_activate":
        return {"enabled": False}
    logic = {"additional_keys": "and_any", "exclude_keys": "not_any"}.get(name)
    if logic and (others := split_list(value)):
        return {"secondary_keys": others, "selective": True, "selective_logic": logic}
    return {}
