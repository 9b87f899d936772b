"""AI Dungeon's story cards: a list of cards, their keys as comma lists."""

from __future__ import annotations

from typing import Any

from softlore.lore.formats.forms import (
    BookForm,
    EntryForm,
    Field,
    PlaceCodes,
    Theirs,
    Values,
    at,
    unread,
)
from softlore.lore.formats.keys import join_list, split_list
from softlore.lore.formats.values import text, texts

_NEW = {
    "keys": "",
    "value": "",
    "type": "custom",
    "title": "",
    "description": "",
    "useForCharacterCreation": False,
}


def takes(data: Any) -> bool:
    """Whether data is a list of story cards."""
    return (
        isinstance(data, list)
        and bool(data)
        and all(
            isinstance(theirs, dict) and "keys" in theirs and "value" in theirs for theirs in data
        )
    )


def _listed(keys: Any) -> list[str]:
    return texts(keys) if isinstance(keys, list) else split_list(text(keys))


_keys = at("keys", "keys", read=_listed)


def _write_keys(theirs: Theirs, values: Values) -> None:
    """A card has no switch: what is not enabled is given no keys, and so is never called up."""
    keys = list(values["keys"]) if values["enabled"] else []
    theirs["keys"] = keys if isinstance(theirs.get("keys"), list) else join_list(keys, ", ")


ENTRY = EntryForm(
    program="aidungeon",
    fields=(Field("keys", _keys.read, _write_keys), unread("enabled", _write_keys)),
    texts=("value",),
    titles=("title",),
    new=_NEW,
)
FORM = BookForm(
    name="aidungeon",
    title="AI Dungeon's story cards",
    takes=takes,
    entry=ENTRY,
    places=lambda data: PlaceCodes(""),
    new=[],
)
