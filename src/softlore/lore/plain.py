"""What lore is made of outside Python: mappings, lists, text, numbers, true, false and nothing."""

from __future__ import annotations

import datetime
import math
from typing import Any

MAX_DEPTH = 50  # lists and mappings within one another
MAX_NODES = 1_000_000  # values in one file
_LARGEST = 2**63


def plain(value: Any) -> Any:
    """Returns a copy of `value` that YAML and JSON can both hold, to be read back the same.

    Tuples become lists; dates become text. Raises ValueError for what is too deep or too much, for
    numbers that are not finite or need more than 64 bits, for broken characters (lone surrogates),
    and for any other kind of value.
    """
    return _Copier().copy(value, 0)


class _Copier:
    def __init__(self) -> None:
        self.nodes = 0

    def copy(self, value: Any, depth: int) -> Any:
        self.nodes += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"lists and mappings stand more than {MAX_DEPTH} deep in one another")
        if self.nodes > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES:,} values")
        if isinstance(value, dict):
            return {self.key(k): self.copy(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(item, depth + 1) for item in value]
        if isinstance(value, datetime.date | datetime.datetime | datetime.time):
            return value.isoformat()
        return _scalar(value)

    def key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise ValueError(f"the field name {key!r:.60} is not text; put it in quotes")
        return str(_scalar(key))


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -_LARGEST <= value < _LARGEST:
            raise ValueError("a number is too large; if it is text, put it in quotes")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"the number {value} is not finite")
        return float(value)
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"the text {value!r:.60} holds a broken character; type it anew")
        return str(value)
    raise ValueError(
        f"a value is of the kind {type(value).__name__}; lore holds only text, numbers, true, "
        "false, lists and mappings"
    )
