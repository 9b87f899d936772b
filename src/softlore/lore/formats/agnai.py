"""Agnai's memory books: keywords with wildcards, a weight and a priority."""

from __future__ import annotations

from typing import Any

from softlore.lore.formats.forms import BookForm, EntryForm, Field, PlaceCodes, Theirs, Values, at
from softlore.lore.formats.keys import from_wildcards, to_wildcards
from softlore.lore.formats.values import flag, texts, whole

_NEW = {"name": "", "entry": "", "keywords": [], "priority": 100, "weight": 100, "enabled": True}


def takes(data: Any) -> bool:
    """Whether data is a memory book."""
    return isinstance(data, dict) and data.get("kind") == "memory" and "entries" in data


_keys = at("keys", "keywords", read=lambda keys: [from_wildcards(key) for key in texts(keys)])
_weight = at("order", "weight", read=whole())


def _write_keys(theirs: Theirs, values: Values) -> None:
    theirs["keywords"] = [to_wildcards(key) for key in values["keys"]]


def _write_order(theirs: Theirs, values: Values) -> None:
    """The order of softlore says both: where an entry goes, and what is kept when room is short."""
    _weight.write(theirs, values)
    theirs["priority"] = values["order"]


ENTRY = EntryForm(
    program="agnai",
    fields=(
        Field("keys", _keys.read, _write_keys),
        Field("order", _weight.read, _write_order),
        at("enabled", "enabled", read=flag),
    ),
    texts=("entry",),
    titles=("name",),
    new=_NEW,
)
FORM = BookForm(
    name="agnai",
    title="Agnai's memory book",
    takes=takes,
    entry=ENTRY,
    places=lambda data: PlaceCodes("entries", ("name",), "softlore"),
    new={"kind": "memory", "name": "", "description": "", "entries": []},
)
