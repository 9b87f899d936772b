"""Converts other programs' keys (comma lists, `a & b`, wildcards), and decorators in texts.

softlore's keys are plain text or `/regex/flags`. The expressions made here search a text in time
linear in its length: each is anchored at the text's start, or at the start of a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from softlore.lore.formats.format import text, texts
from softlore.lore.patterns import SPECIAL, escaped, split_pattern

_ITEM = re.compile(r"\s*+(/(?:\\.|[^/\\])++/[dgimsuvy]*+(?=\s*+(?:,|\Z))|[^,]*+)\s*+(?:,|\Z)")
_ESCAPED = re.compile(r"\\([\\^$.|?*+()\[\]{}/])")
_BEGIN, _END = r"(?<!\w)", r"(?!\w)"  # of a word, also of one like C++
_ALL, _NEXT, _DONE = rf"/^(?=[\s\S]*{_BEGIN}", rf"{_END})(?=[\s\S]*{_BEGIN}", rf"{_END})/i"
_ANY = r"\w{0,40}"  # what `*` stands for
MAX_STARS = 3  # a search for more of them in one key could take long
MAX_COMBINATIONS = 64
_DECORATED = {"before_desc": "before_char", "after_desc": "after_char"}  # positions


def split_list(text: str) -> list[str]:
    """Returns the keys in a comma list; commas within `/.../` do not separate."""
    return [key for match in _ITEM.finditer(text) if (key := match[1].strip())]


def key_list(value: Any) -> list[str]:
    """Keys from a comma list or a list. Raises ValueError for anything else."""
    return texts(value) if isinstance(value, list) else split_list(text(value))


def join_list(keys: list[str], comma: str = ",") -> str:
    """Returns keys as a comma list."""
    return comma.join(key.strip() for key in keys)


def from_ampersands(key: str) -> str:
    """NovelAI's `a & b` (all of them are in the text, as whole words) as one expression."""
    parts = [part.strip() for part in key.split("&")]
    if is_regex(key) or len(parts) < 2 or not all(parts):
        return key
    return _ALL + _NEXT.join(map(escaped, parts)) + _DONE


def to_ampersands(key: str) -> str:
    """The inverse of `from_ampersands`; any other key stays as it is."""
    if not (key.startswith(_ALL) and key.endswith(_DONE)):
        return key
    parts = [_unescaped(part) for part in key[len(_ALL) : -len(_DONE)].split(_NEXT)]
    return key if None in parts else " & ".join(map(str, parts))


def combine(keys: list[str], secondary: list[str], every: bool) -> list[str]:
    """Keys and secondary keys as `a & b`: each key with each secondary key, or with all of them."""
    if not secondary or len(keys) * len(secondary) > MAX_COMBINATIONS:
        return keys
    if every:
        return [" & ".join([key, *secondary]) for key in keys]
    return [f"{key} & {other}" for key in keys for other in secondary]


def from_wildcards(key: str) -> str:
    """Agnai's `*` (any letters) and `?` (any letter) as an expression."""
    short = re.sub(r"\*+", "*", key)
    if is_regex(key) or not re.search(r"[*?]", key) or short.count("*") > MAX_STARS:
        return key
    if not re.search(r"\w", key):  # `?` alone would match every letter
        return key
    body = "".join({"*": _ANY, "?": r"\w"}.get(c) or escaped(c) for c in short)
    return f"/{_BEGIN}{body}{_END}/i"


def to_wildcards(key: str) -> str:
    """The inverse of `from_wildcards`; any other key stays as it is."""
    start, end = f"/{_BEGIN}", f"{_END}/i"
    if not (key.startswith(start) and key.endswith(end)):
        return key
    inner = key[len(start) : -len(end)].replace(_ANY, "\0*").replace(r"\w", "\0?")
    parts = re.split(r"\0([*?])", inner)  # texts, with the marks between them
    parts[::2] = [_unescaped(part) for part in parts[::2]]
    return key if None in parts else "".join(parts)


def is_regex(key: str) -> bool:
    """Whether a key is softlore's and SillyTavern's `/.../flags`."""
    return split_pattern(key) is not None


def _unescaped(body: str) -> str | None:
    """The text that `escaped` was given, or None if it cannot have made `body`."""
    return None if SPECIAL.search(_ESCAPED.sub("", body)) else _ESCAPED.sub(r"\1", body)


# Decorators: lines such as `@@depth 4` at the start of an entry's text in version 3 cards. Those
# that set a field of softlore are read into it; the others only stay in the text. Source: the
# Character Card V3 specification. ----------------------------------------------------------------


def split_decorators(content: str) -> tuple[list[str], str]:
    """Returns the lines of decorators, and the text below them."""
    lines: list[str] = []
    while content.startswith("@@"):
        line, _, content = content.partition("\n")
        lines.append(line)
    return lines, content


def decorator_fields(lines: list[str]) -> dict[str, Any]:
    """Returns the fields of an entry that the decorators set; the first of a kind counts."""
    return {
        name: value for line in reversed(lines) for name, value in _parse_decorator(line).items()
    }


def valid_decorators(lines: list[str], values: Mapping[str, Any]) -> list[str]:
    """Returns all decorators if they agree with an entry's fields, else those that do."""
    if decorator_fields(lines).items() <= values.items():
        return lines
    return [line for line in lines if _parse_decorator(line).items() <= values.items()]


def _parse_decorator(line: str) -> dict[str, Any]:
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
        case "position" if value in _DECORATED:
            return {"position": _DECORATED[value]}
        case "activate":
            return {"constant": True}
        case "dont_activate":
            return {"enabled": False}
        case "additional_keys" | "exclude_keys" if keys := split_list(value):
            logic = "and_any" if name == "additional_keys" else "not_any"
            return {"secondary_keys": keys, "selective": True, "selective_logic": logic}
    return {}
