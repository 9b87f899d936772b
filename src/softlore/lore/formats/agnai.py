"""Agnai's memory books: keywords with wildcards, a weight and a priority."""

from __future__ import annotations

from typing import Any

from softlore.lore.formats.fields import ForeignEntry, Values, field, texts
from softlore.lore.formats.format import BookFormat, BookLayout, EntryFormat
from softlore.lore.formats.key_syntax import from_wildcards, to_wildcards


def _detect(data: Any) -> bool:
    return isinstance(data, dict) and data.get("kind") == "memory" and "entries" in data


def _read_keys(keys: Any) -> list[str]:
    return [from_wildcards(key) for key in texts(keys)]


def _write_keys(keys: list[str]) -> list[str]:
    return [to_wildcards(key) for key in keys]


def _write_order(foreign: ForeignEntry, values: Values) -> None:
    """Weight is the insertion order, priority what is dropped first; softlore's order is both."""
    foreign["weight"] = foreign["priority"] = values["order"]


FORMAT = BookFormat(
    name="agnai",
    title="Agnai's memory book",
    detect=_detect,
    entry=EntryFormat(
        program="agnai",
        fields=(
            field("keys", "keywords", read=_read_keys, write=_write_keys),
            field("order", "weight", writer=_write_order),
            field("enabled", "enabled"),
        ),
        texts=("entry",),
        titles=("name",),
        new={
            "name": "", "entry": "", "keywords": [], "priority": 100, "weight": 100,
            "enabled": True,
        },
    ),
    layout=lambda data: BookLayout("entries", ("name",), "softlore"),
    new={"kind": "memory", "name": "", "description": "", "entries": []},
)  # fmt: skip
