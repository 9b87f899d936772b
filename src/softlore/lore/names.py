"""Checks names of lorebooks and entries. An entry's name is also its soft prompt's."""

from __future__ import annotations

import re
import unicodedata

MAX_NAME = 128  # characters
MAX_BYTES = 200  # of a file's name; most systems allow 255, suffixes included
_LONG = 1000  # characters; normalizing takes time quadratic in the length
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_PUNCTUATION = " -_.'"
NAME_RULE = f"1 to {MAX_NAME} letters, digits, spaces and any of -_.'"


def normalize_name(name: str) -> str:
    """Returns `name` in Unicode's composed form (NFC); a text far too long for a name unchanged."""
    return unicodedata.normalize("NFC", name) if len(name) <= _LONG else name


def name_problem(name: str) -> str:
    """Returns why `name` is not legal, as words to put after it; empty if it is.

    Legal are letters, marks and digits of any script, space and `-_.'`; at least one letter or
    digit; no space at either end; at most 128 characters.
    """
    if not name.strip():
        return "is empty"
    if len(name) > MAX_NAME:
        return f"is {len(name)} characters long"
    if illegal := [c for c in name if not _is_allowed(c)]:
        return f"holds {illegal[0]!r}"
    if not any(character.isalnum() for character in name):
        return "holds no letter or digit"
    if name != name.strip():
        return "begins or ends with a space"
    return ""


def file_name_problem(name: str) -> str:
    """Returns why a normalized name is not legal for a file; stricter than `name_problem`."""
    if problem := name_problem(name[:_LONG]):
        return problem
    if name.startswith("."):
        return "begins with a dot"
    if _WINDOWS_DEVICES.fullmatch(name):
        return "means a device on some systems"
    if len(name.encode()) > MAX_BYTES:
        return f"takes {len(name.encode())} bytes, more than {MAX_BYTES}"
    return ""


def as_name(text: str, fallback: str = "lore") -> str:
    """Returns `text` with a space for what a name may not hold; `fallback` if no name is left."""
    spaced = "".join(c if _is_allowed(c) else " " for c in normalize_name(text))
    name = " ".join(spaced.split())[:MAX_NAME].strip()
    return fallback if name_problem(name) else name


def _is_allowed(character: str) -> bool:
    return character in _PUNCTUATION or unicodedata.category(character)[0] in "LMN"
