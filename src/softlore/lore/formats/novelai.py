"""NovelAI's lorebooks: `lorebookVersion` 4 to 6, files that end in .lorebook."""

from __future__ import annotations

import uuid
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
from softlore.lore.formats.keys import combined, from_ampersands, to_ampersands
from softlore.lore.formats.values import flag, texts, whole

_LATEST = 6
_NEW = {
    "text": "",
    "contextConfig": {
        "prefix": "",
        "suffix": "\n",
        "tokenBudget": 2048,
        "reservedTokens": 0,
        "budgetPriority": 400,
        "trimDirection": "trimBottom",
        "insertionType": "newline",
        "maximumTrimType": "sentence",
        "insertionPosition": -1,
    },
    "displayName": "",
    "keys": [],
    "searchRange": 1000,
    "enabled": True,
    "forceActivation": False,
    "keyRelative": False,
    "nonStoryActivatable": False,
    "category": "",
    "loreBiasGroups": [],
}


def takes(data: Any) -> bool:
    """Whether data says which version of NovelAI's lorebook it is."""
    return isinstance(data, dict) and "lorebookVersion" in data


_keys = at("keys", "keys", read=lambda keys: [from_ampersands(key) for key in texts(keys)])


def _write_keys(theirs: Theirs, values: Values) -> None:
    """NovelAI has no secondary keys, but keys that must stand together."""
    keys = [to_ampersands(key) for key in values["keys"]]
    logic = values["selective_logic"]
    if values["selective"] and logic in ("and_any", "and_all"):
        keys = combined(keys, values["secondary_keys"], every=logic == "and_all")
    theirs["keys"] = keys


def _number(theirs: Theirs, number: int) -> None:
    seed = f"softlore/{number}/{theirs.get('displayName')}/{theirs.get('text')}"
    theirs["id"] = str(uuid.uuid5(uuid.NAMESPACE_OID, seed))


ENTRY = EntryForm(
    program="novelai",
    fields=(
        Field("keys", _keys.read, _write_keys),
        *(unread(ours, _write_keys) for ours in ("secondary_keys", "selective", "selective_logic")),
        at("enabled", "enabled", read=flag),
        at("constant", "forceActivation", read=flag),
        at("order", "contextConfig.budgetPriority", read=whole()),
    ),
    texts=("text",),
    titles=("displayName",),
    new=_NEW,
    number=_number,
)
FORM = BookForm(
    name="novelai",
    title="NovelAI's lorebook",
    takes=takes,
    entry=ENTRY,
    places=lambda data: PlaceCodes("entries", own="softlore"),
    new={
        "lorebookVersion": _LATEST,
        "entries": [],
        "settings": {"orderByKeyLocations": False},
        "categories": [],
    },
)
