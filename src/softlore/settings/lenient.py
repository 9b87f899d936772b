"""Reads clients' values leniently: numbers in quotes, null, one string for a list."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

MAX_STRINGS = 256  # of a list; each costs a search at every token
MAX_CHARACTERS = 1024  # characters of one of them
MAX_INTEGER = 2**53  # whole numbers beyond it are not exact in JSON


def number(value: object) -> float | None:
    """A finite number, also in quotes; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value):
        return float(value)
    return None


def integer(value: object) -> int | None:
    """A whole number, rounded towards zero; None for anything else."""
    if type(value) is int:
        return max(-(2**63), min(2**63 - 1, value))
    read = number(value)
    return None if read is None or abs(read) > MAX_INTEGER else int(read)


def flag(value: object) -> bool | None:
    """True or False; None for null."""
    if isinstance(value, str):
        return value.strip().casefold() in ("true", "yes", "on", "1")
    return None if value is None else bool(value)


def text(value: object) -> str:
    """A text; a number as it is written, "" for anything else."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def strings(value: object) -> list[str]:
    """A list's strings without empty and overlong ones; a string by itself is a list of one."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        return []
    return [s for s in listed if isinstance(s, str) and 0 < len(s) <= MAX_CHARACTERS][:MAX_STRINGS]


def first(sent: Mapping[str, Any], *names: str) -> Any:
    """The first of the fields of these names that exists and is not null."""
    return next((sent[name] for name in names if sent.get(name) is not None), None)


Integer = Annotated[int | None, BeforeValidator(integer)]
Flag = Annotated[bool | None, BeforeValidator(flag)]
Text = Annotated[str, BeforeValidator(text)]
Strings = Annotated[list[str], BeforeValidator(strings)]
