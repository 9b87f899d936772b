"""SillyTavern's World Info: a mapping of numbers to entries. Source: its world-info.js, 1.12 on."""

from __future__ import annotations

from typing import Any

from softlore.lore.formats.forms import BookForm, EntryForm, PlaceCodes, Theirs, at
from softlore.lore.formats.values import no_flag
from softlore.lore.formats.worldinfo import plain_fields, probability, selective

# What SillyTavern keeps that softlore does not know: here, and in a character card.
AKIN = tuple(
    (here, f"extensions.{there}")
    for here, there in {
        "vectorized": "vectorized",
        "displayIndex": "display_index",
        "useGroupScoring": "use_group_scoring",
        "automationId": "automation_id",
        "outletName": "outlet_name",
        "matchPersonaDescription": "match_persona_description",
        "matchCharacterDescription": "match_character_description",
        "matchCharacterPersonality": "match_character_personality",
        "matchCharacterDepthPrompt": "match_character_depth_prompt",
        "matchScenario": "match_scenario",
        "matchCreatorNotes": "match_creator_notes",
        "triggers": "triggers",
    }.items()
)
_NEW = {
    "key": [],
    "keysecondary": [],
    "comment": "",
    "content": "",
    "constant": False,
    "vectorized": False,
    "selective": True,
    "selectiveLogic": 0,
    "addMemo": True,
    "order": 100,
    "position": 0,
    "disable": False,
    "ignoreBudget": False,
    "excludeRecursion": False,
    "preventRecursion": False,
    "delayUntilRecursion": 0,
    "probability": 100,
    "useProbability": True,
    "depth": 4,
    "outletName": "",
    "group": "",
    "groupOverride": False,
    "groupWeight": 100,
    "scanDepth": None,
    "caseSensitive": None,
    "matchWholeWords": None,
    "useGroupScoring": None,
    "automationId": "",
    "role": 0,
    "sticky": None,
    "cooldown": None,
    "delay": None,
    "triggers": [],
}


def takes(data: Any) -> bool:
    """Whether data is a mapping of entries, each with SillyTavern's fields."""
    entries = data.get("entries") if isinstance(data, dict) else None
    return isinstance(entries, dict) and all(
        isinstance(theirs, dict) and ("content" in theirs or "key" in theirs)
        for theirs in entries.values()
    )


def _number(theirs: Theirs, number: int) -> None:
    theirs.update({"uid": number, "displayIndex": theirs.get("displayIndex", number)})


ENTRY = EntryForm(
    program="sillytavern",
    fields=(
        *plain_fields(
            {
                "keys": ("key",),
                "secondary_keys": ("keysecondary",),
                "constant": ("constant",),
                "selective_logic": ("selectiveLogic",),
                "order": ("order",),
                "position": ("position",),
                "depth": ("depth",),
                "role": ("role",),
                "scan_depth": ("scanDepth",),
                "case_sensitive": ("caseSensitive",),
                "match_whole_words": ("matchWholeWords",),
                "ignore_budget": ("ignoreBudget",),
                "exclude_recursion": ("excludeRecursion",),
                "prevent_recursion": ("preventRecursion",),
                "delay_until_recursion": ("delayUntilRecursion",),
                "group": ("group",),
                "group_override": ("groupOverride",),
                "group_weight": ("groupWeight",),
                "sticky": ("sticky",),
                "cooldown": ("cooldown",),
                "delay": ("delay",),
            }
        ),
        at("enabled", "disable", read=no_flag, write=no_flag),
        probability("probability", "useProbability"),
        selective("selective", "keysecondary"),
    ),
    texts=("content",),
    titles=("comment",),
    new=_NEW,
    decorated=True,
    number=_number,
    akin={"card": tuple((there, here) for here, there in AKIN)},
)
FORM = BookForm(
    name="sillytavern",
    title="SillyTavern's World Info",
    takes=takes,
    entry=ENTRY,
    places=lambda data: PlaceCodes("entries", own="softlore"),
    new={"entries": {}},
)
