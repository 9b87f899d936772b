"""Single values as other programs keep them: read kindly, refused with plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from softlore.lore.complaints import describe

Convert = Callable[[Any], Any]
_LARGEST = 2**63 - 1
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}

# Each takes what stands in a file, never nothing (None), and returns what softlore's field holds.
# Programs write numbers as text and flags as numbers; what has no such meaning is a ValueError.


def flag(value: Any) -> bool:
    """True or false, also as 1 and 0 or in words."""
    found = _WORDS.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, int | float):
        raise ValueError(f"must be true or false, but is {describe(value)}")
    return bool(found)


def no_flag(value: Any) -> bool:
    """The opposite of a flag, as where one program says `disable` and another `enabled`."""
    return not flag(value)


def real(low: float, high: float) -> Convert:
    """A number, also as text, brought into its bounds."""

    def convert(value: Any) -> int | float:
        found = value
        if isinstance(value, str):
            try:
                found = float(value[:40])
            except ValueError:
                found = None
        if not isinstance(found, int | float) or not math.isfinite(found):
            raise ValueError(f"must be a number, but is {describe(value)}")
        return min(max(found, low), high)

    return convert


def whole(low: int = -_LARGEST, high: int = _LARGEST) -> Convert:
    """A whole number, also as text or true and false, brought into its bounds."""
    within = real(low, high)

    def convert(value: Any) -> int:
        return min(max(int(within(value)), low), high)  # a float of 2**63 is one too many

    return convert


def text(value: Any) -> str:
    """Text, also where a number stands for it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be text, but is {describe(value)}")
    return str(value)


def texts(value: Any) -> list[str]:
    """A list of texts, or one text for a list of one; empty ones are left out."""
    listed = value if isinstance(value, list | tuple) else [value]
    return [found for found in map(text, listed) if found.strip()]


def choice(words: Sequence[str]) -> Convert:
    """One of `words`, by its number or itself; nothing for a choice that softlore does not know."""

    def convert(value: Any) -> str | None:
        if isinstance(value, str) and value in words:
            return value
        if isinstance(value, int | float | str):
            try:
                place = int(value)
            except (ValueError, OverflowError):
                return None
            return words[place] if 0 <= place < len(words) else None
        raise ValueError(f"must be a number, but is {describe(value)}")

    return convert
