"""NovelAI's lorebooks: `lorebookVersion` 4 to 6, files that end in .lorebook."""

from __future__ import annotations

import uuid
from typing import Any

from softlore.lore.formats.fields import ForeignEntry, Values, field, texts
from softlore.lore.formats.format import BookFormat, BookLayout, EntryFormat
from softlore.lore.formats.key_syntax import combine, from_ampersands, to_ampersands

_NEW = {
    "text": "",
    "contextConfig": {
        "prefix": "", "suffix": "\n", "tokenBudget": 2048, "reservedTokens": 0,
        "budgetPriority": 400, "trimDirection": "trimBottom", "insertionType": "newline",
        "maximumTrimType": "sentence", "insertionPosition": -1,
    },
    "displayName": "", "keys": [], "searchRange": 1000, "enabled": True, "forceActivation": False,
    "keyRelative": False, "nonStoryActivatable": False, "category": "", "loreBiasGroups": [],
}  # fmt: skip


def _detect(data: Any) -> bool:
    return isinstance(data, dict) and "lorebookVersion" in data


def _read_keys(keys: Any) -> list[str]:
    return [from_ampersands(key) for key in texts(keys)]


def _write_keys(foreign: ForeignEntry, values: Values) -> None:
    """NovelAI has no secondary keys, but keys of parts, all of which must be in the text."""
    keys = [to_ampersands(key) for key in values["keys"]]
    logic = values["selective_logic"]
    if values["selective"] and logic in ("and_any", "and_all"):
        keys = combine(keys, values["secondary_keys"], every=logic == "and_all")
    foreign["keys"] = keys


def _set_number(foreign: ForeignEntry, number: int) -> None:
    seed = f"softlore/{number}/{foreign.get('displayName')}/{foreign.get('text')}"
    foreign["id"] = str(uuid.uuid5(uuid.NAMESPACE_OID, seed))


FORMAT = BookFormat(
    name="novelai",
    title="NovelAI's lorebook",
    detect=_detect,
    entry=EntryFormat(
        program="novelai",
        fields=(
            field("keys", "keys", read=_read_keys, writer=_write_keys),
            field("secondary_keys", writer=_write_keys),
            field("selective", writer=_write_keys),
            field("selective_logic", writer=_write_keys),
            field("enabled", "enabled"),
            field("constant", "forceActivation"),
            field("order", "contextConfig.budgetPriority"),
        ),
        texts=("text",),
        titles=("displayName",),
        new=_NEW,
        set_number=_set_number,
    ),
    layout=lambda data: BookLayout("entries", extras="softlore"),
    new={
        "lorebookVersion": 6,
        "entries": [],
        "settings": {"orderByKeyLocations": False},
        "categories": [],
    },
)
