"""AI Dungeon's story cards: a list of cards, their keys as comma lists."""

from __future__ import annotations

from typing import Any

from softlore.lore.formats.fields import ForeignEntry, Values, field
from softlore.lore.formats.format import BookFormat, BookLayout, EntryFormat
from softlore.lore.formats.key_syntax import join_list, key_list


def _detect(data: Any) -> bool:
    if not isinstance(data, list) or not data:
        return False
    return all(isinstance(card, dict) and {"keys", "value"} <= card.keys() for card in data)


def _write_keys(foreign: ForeignEntry, values: Values) -> None:
    """A card has no switch: one that is not enabled gets no keys, so that it is never activated."""
    keys = list(values["keys"]) if values["enabled"] else []
    foreign["keys"] = keys if isinstance(foreign.get("keys"), list) else join_list(keys, ", ")


FORMAT = BookFormat(
    name="aidungeon",
    title="AI Dungeon's story cards",
    detect=_detect,
    entry=EntryFormat(
        program="aidungeon",
        fields=(
            field("keys", "keys", read=key_list, writer=_write_keys),
            field("enabled", writer=_write_keys),
        ),
        texts=("value",),
        titles=("title",),
        new={
            "keys": "", "value": "", "type": "custom", "title": "", "description": "",
            "useForCharacterCreation": False,
        },
    ),
    layout=lambda data: BookLayout(""),
    new=[],
)  # fmt: skip
