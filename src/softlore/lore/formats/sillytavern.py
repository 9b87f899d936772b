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
from softlore.lore.formats.format import BookFormat, EntryFormat, Layout

# What SillyTavern stores that softlore has no field for: paths in World Info, and in its cards.
CARD_EQUIVALENTS = {
    "vectorized": "extensions.vectorized",
    "displayIndex": "extensions.display_index",
    "useGroupScoring": "extensions.use_group_scoring",
    "automationId": "extensions.automation_id",
    "outletName": "extensions.outlet_name",
    "matchPersonaDescription": "extensions.match_persona_description",
    "matchCharacterDescription": "extensions.match_character_description",
    "matchCharacterPersonality": "extensions.match_character_personality",
    "matchCharacterDepthPrompt": "extensions.match_character_depth_prompt",
    "matchScenario": "extensions.match_scenario",
    "matchCreatorNotes": "extensions.match_creator_notes",
    "triggers": "extensions.triggers",
}
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
            *fields(
                {
                    "keys": "key",
                    "secondary_keys": "keysecondary",
                    "constant": "constant",
                    "selective_logic": "selectiveLogic",
                    "order": "order",
                    "position": "position",
                    "depth": "depth",
                    "role": "role",
                    "scan_depth": "scanDepth",
                    "case_sensitive": "caseSensitive",
                    "match_whole_words": "matchWholeWords",
                    "ignore_budget": "ignoreBudget",
                    "exclude_recursion": "excludeRecursion",
                    "prevent_recursion": "preventRecursion",
                    "delay_until_recursion": "delayUntilRecursion",
                    "group": "group",
                    "group_override": "groupOverride",
                    "group_weight": "groupWeight",
                    "sticky": "sticky",
                    "cooldown": "cooldown",
                    "delay": "delay",
                }
            ),
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
    layout=lambda data: Layout("entries", extras="softlore"),
    new={"entries": {}},
)
