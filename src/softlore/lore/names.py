"""What a lorebook and an entry may be called. An entry's name is also its soft prompt's."""

from __future__ import annotations

import re
import unicodedata

MAX_NAME = 128  # characters
MAX_BYTES = 200  # of a file's name; most systems allow 255 with all that is put after it
_LONG = 1000  # characters; composing takes the square of the length
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_PUNCTUATION = " -_.'"
NAME_RULE = f"1 to {MAX_NAME} letters, digits, spaces and any of -_.'"


def composed(name: str) -> str:
    """Returns `name` in Unicode's composed form (NFC), so that one name has one spelling.

    One that is far too long for a name is left as it is.
    """
    return unicodedata.normalize("NFC", name) if len(name) <= _LONG else name


def wrong_with_name(name: str) -> str:
    """Returns what forbids `name`, as words to put after it; empty if nothing does.

    The rule is that of `softlore.prompts`: letters, marks and digits of any script, space and
    `-_.'`; at least one letter or digit; no space at either end; at most 128 characters.
    """
    if not name.strip():
        return "is empty"
    if len(name) > MAX_NAME:
        return f"is {len(name)} characters long"
    for character in name:
        if not _is_allowed(character):
            return f"holds {character!r}"
    if not any(character.isalnum() for character in name):
        return "holds no letter or digit"
    if name != name.strip():
        return "begins or ends with a space"
    return ""


def wrong_with_file_name(name: str) -> str:
    """What forbids a composed name that a file bears, as `wrong_with_name` does; more than that."""
    if wrong := wrong_with_name(name[:_LONG]):
        return wrong
    if name.startswith("."):
        return "begins with a dot"
    if _WINDOWS_DEVICES.fullmatch(name):
        return "means a device on some systems"
    if len(name.encode()) > MAX_BYTES:
        return f"takes {len(name.encode())} bytes, more than {MAX_BYTES}"
    return ""


def as_name(text: str, fallback: str = "lore") -> str:
    """Returns the nearest legal name to `text`: what is not allowed becomes a space.

    `fallback` is returned when nothing is left.
    """
    spaced = "".join(c if _is_allowed(c) else " " for c in composed(text))
    name = " ".join(spaced.split())[:MAX_NAME].strip()
    return fallback if wrong_with_name(name) else name


def _is_allowed(character: str) -> bool:
    return character in _PUNCTUATION or unicodedata.category(character)[0] in "LMN"
