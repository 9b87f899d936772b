"""SillyTavern's World Info: a mapping of numbers to entries. Source: its world-info.js, 1.12 on."""

from __future__ import annotations

from typing import Any

from softlore.lore.formats.fields import (
    ForeignEntry,
    field,
    fields,
    inverted_flag,
    probability,
    selective,
)
from softlore.lore.formats.format import BookFormat, BookLayout, EntryFormat

# Fields that have the same name here, in camel case.
_SAME = (
    "constant", "selective_logic", "order", "position", "depth", "role", "scan_depth",
    "case_sensitive", "match_whole_words", "ignore_budget", "exclude_recursion",
    "prevent_recursion", "delay_until_recursion", "group", "group_override", "group_weight",
    "sticky", "cooldown", "delay",
)  # fmt: skip
# What SillyTavern stores that softlore has no field for: in its cards it is an extension.
_EXTENSIONS = (
    "vectorized", "display_index", "use_group_scoring", "automation_id", "outlet_name",
    "match_persona_description", "match_character_description", "match_character_personality",
    "match_character_depth_prompt", "match_scenario", "match_creator_notes", "triggers",
)  # fmt: skip
_NEW = {
    "key": [], "keysecondary": [], "comment": "", "content": "", "constant": False,
    "vectorized": False, "selective": True, "selectiveLogic": 0, "addMemo": True, "order": 100,
    "position": 0, "disable": False, "ignoreBudget": False, "excludeRecursion": False,
    "preventRecursion": False, "delayUntilRecursion": 0, "probability": 100,
    "useProbability": True, "depth": 4, "outletName": "", "group": "", "groupOverride": False,
    "groupWeight": 100, "scanDepth": None, "caseSensitive": None, "matchWholeWords": None,
    "useGroupScoring": None, "automationId": "", "role": 0, "sticky": None, "cooldown": None,
    "delay": None, "triggers": [],
}  # fmt: skip


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


# Paths of the same meaning in World Info and in a card's lorebook.
CARD_EQUIVALENTS = {_camel(name): f"extensions.{name}" for name in _EXTENSIONS}


def _detect(data: Any) -> bool:
    entries = data.get("entries") if isinstance(data, dict) else None
    return isinstance(entries, dict) and all(
        isinstance(foreign, dict) and ("content" in foreign or "key" in foreign)
        for foreign in entries.values()
    )


def _set_number(foreign: ForeignEntry, number: int) -> None:
    foreign.update({"uid": number, "displayIndex": foreign.get("displayIndex", number)})


FORMAT = BookFormat(
    name="sillytavern",
    title="SillyTavern's World Info",
    detect=_detect,
    entry=EntryFormat(
        program="sillytavern",
        fields=(
            field("keys", "key"),
            field("secondary_keys", "keysecondary"),
            *fields({name: _camel(name) for name in _SAME}),
            field("enabled", "disable", read=inverted_flag, write=inverted_flag),
            probability("probability", "useProbability"),
            selective("selective", "keysecondary"),
        ),
        texts=("content",),
        titles=("comment",),
        new=_NEW,
        decorated=True,
        set_number=_set_number,
        equivalents={"card": tuple((there, here) for here, there in CARD_EQUIVALENTS.items())},
    ),
    layout=lambda data: BookLayout("entries", extras="softlore"),
    new={"entries": {}},
)
