"""The lorebooks of SillyTavern, KoboldAI, AI Dungeon, NovelAI and Agnai."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from softlore.lore.formats.format import (
    BookFormat,
    BookLayout,
    EntryFormat,
    FieldMapping,
    ForeignEntry,
    Values,
    field,
    fields,
    first_present,
    inverted_flag,
    probability,
    selective,
    texts,
)
from softlore.lore.formats.key_syntax import (
    combine,
    from_ampersands,
    from_wildcards,
    join_list,
    key_list,
    to_ampersands,
    to_wildcards,
)


def is_list_of(data: Any, check: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether `data` is a list of mappings that pass `check`, with at least one."""
    listed = data if isinstance(data, list) else []
    return bool(listed) and all(isinstance(item, dict) and check(item) for item in listed)


# SillyTavern: a mapping of numbers to entries. Source: its world-info.js, 1.12 on. ---------------

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


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


# Paths of the same meaning in World Info and in a card's lorebook.
CARD_EQUIVALENTS = {_camel(name): f"extensions.{name}" for name in _EXTENSIONS}


def _is_world_info(data: Any) -> bool:
    entries = data.get("entries") if isinstance(data, dict) else None
    return isinstance(entries, dict) and all(
        isinstance(foreign, dict) and ("content" in foreign or "key" in foreign)
        for foreign in entries.values()
    )


SILLYTAVERN = BookFormat(
    name="sillytavern",
    title="SillyTavern's World Info",
    detect=_is_world_info,
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
        new={
            "key": [], "keysecondary": [], "comment": "", "content": "", "constant": False,
            "vectorized": False, "selective": True, "selectiveLogic": 0, "addMemo": True,
            "order": 100, "position": 0, "disable": False, "ignoreBudget": False,
            "excludeRecursion": False, "preventRecursion": False, "delayUntilRecursion": 0,
            "probability": 100, "useProbability": True, "depth": 4, "outletName": "", "group": "",
            "groupOverride": False, "groupWeight": 100, "scanDepth": None, "caseSensitive": None,
            "matchWholeWords": None, "useGroupScoring": None, "automationId": "", "role": 0,
            "sticky": None, "cooldown": None, "delay": None, "triggers": [],
        },
        decorated=True,
        set_number=lambda foreign, number: foreign.update(
            {"uid": number, "displayIndex": foreign.get("displayIndex", number)}
        ),
        equivalents={"card": tuple((there, here) for here, there in CARD_EQUIVALENTS.items())},
    ),
    layout=lambda data: BookLayout("entries", extras="softlore"),
    new={"entries": {}},
)  # fmt: skip

# KoboldAI: in a save of KoboldAI or KoboldAI Lite, or as a list by itself. -----------------------

_KEYS = ("key", "keys")  # the second in lists of AI Dungeon's first years, which KoboldAI reads


def _is_koboldai(data: Any) -> bool:
    if isinstance(data, dict):
        return isinstance(data.get("worldinfo"), list) or {"actions", "prompt"} <= data.keys()
    return is_list_of(data, _is_koboldai_entry)


def _is_koboldai_entry(foreign: ForeignEntry) -> bool:
    return ("key" in foreign or "keys" in foreign) and ("content" in foreign or "entry" in foreign)


def _read_list(foreign: ForeignEntry, *paths: str) -> list[str]:
    """The first list of keys that is not empty, as a comma list or as a list."""
    for path in paths:
        if (listed := foreign.get(path)) not in (None, ""):
            try:
                return key_list(listed)
            except ValueError as error:
                raise ValueError(f"`{path}` {error}") from None
    return []


def _write_list(foreign: ForeignEntry, path: str, keys: list[str], comma: str = ",") -> None:
    foreign[path] = list(keys) if isinstance(foreign.get(path), list) else join_list(keys, comma)


def _write_koboldai_keys(foreign: ForeignEntry, values: Values) -> None:
    _write_list(foreign, first_present(foreign, _KEYS), values["keys"])


def _read_logic(foreign: ForeignEntry) -> str | None:
    """`keyanti` holds keys that must not be there; it counts where `keysecondary` is empty."""
    return "not_any" if not foreign.get("keysecondary") and foreign.get("keyanti") else None


def _write_secondary(foreign: ForeignEntry, values: Values) -> None:
    """`not_all` has no equivalent here, and as secondary keys would mean the opposite."""
    logic, keys = values["selective_logic"], values["secondary_keys"]
    had_anti_keys = _read_logic(foreign) is not None
    _write_list(foreign, "keysecondary", keys if logic in ("and_any", "and_all") else [])
    if logic == "not_any" or had_anti_keys:
        _write_list(foreign, "keyanti", keys if logic == "not_any" else [])


KOBOLDAI = BookFormat(
    name="koboldai",
    title="KoboldAI's World Info",
    detect=_is_koboldai,
    entry=EntryFormat(
        program="koboldai",
        fields=(
            FieldMapping("keys", lambda foreign: _read_list(foreign, *_KEYS), _write_koboldai_keys),
            FieldMapping(
                "secondary_keys",
                lambda foreign: _read_list(foreign, "keysecondary", "keyanti"),
                _write_secondary,
            ),
            FieldMapping("selective_logic", _read_logic, _write_secondary),
            selective("selective", "keysecondary"),
            field("constant", "constant"),
            field("probability", "probability", write=lambda value: f"{value:g}"),
            field("group", "wigroup"),
            field("enabled", "widisabled", read=inverted_flag, write=inverted_flag),
        ),
        texts=("content", "entry"),
        titles=("comment", "title", "displayName", "name"),
        new={
            "key": "", "keysecondary": "", "keyanti": "", "content": "", "comment": "",
            "folder": None, "selective": False, "constant": False, "probability": "100",
            "wigroup": "", "widisabled": False,
        },
    ),
    layout=lambda data: (
        BookLayout("") if isinstance(data, list) else BookLayout("worldinfo", extras="softlore")
    ),
    new={
        "gamestarted": True, "prompt": "", "memory": "", "authorsnote": "", "anotetemplate": "",
        "actions": [], "worldinfo": [],
    },
)  # fmt: skip

# AI Dungeon: a list of story cards. --------------------------------------------------------------


def _write_card_keys(foreign: ForeignEntry, values: Values) -> None:
    """A card has no switch: one that is not enabled gets no keys, so that it is never activated."""
    _write_list(foreign, "keys", values["keys"] if values["enabled"] else [], ", ")


AIDUNGEON = BookFormat(
    name="aidungeon",
    title="AI Dungeon's story cards",
    detect=lambda data: is_list_of(data, lambda card: {"keys", "value"} <= card.keys()),
    entry=EntryFormat(
        program="aidungeon",
        fields=(
            field("keys", "keys", read=key_list, writer=_write_card_keys),
            field("enabled", writer=_write_card_keys),
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

# NovelAI: `lorebookVersion` 4 to 6, files that end in .lorebook. ---------------------------------


def _write_novelai_keys(foreign: ForeignEntry, values: Values) -> None:
    """NovelAI has no secondary keys, but keys of parts, all of which must be in the text."""
    keys = [to_ampersands(key) for key in values["keys"]]
    logic = values["selective_logic"]
    if values["selective"] and logic in ("and_any", "and_all"):
        keys = combine(keys, values["secondary_keys"], every=logic == "and_all")
    foreign["keys"] = keys


def _set_uuid(foreign: ForeignEntry, number: int) -> None:
    seed = f"softlore/{number}/{foreign.get('displayName')}/{foreign.get('text')}"
    foreign["id"] = str(uuid.uuid5(uuid.NAMESPACE_OID, seed))


NOVELAI = BookFormat(
    name="novelai",
    title="NovelAI's lorebook",
    detect=lambda data: isinstance(data, dict) and "lorebookVersion" in data,
    entry=EntryFormat(
        program="novelai",
        fields=(
            field(
                "keys",
                "keys",
                read=lambda keys: [from_ampersands(key) for key in texts(keys)],
                writer=_write_novelai_keys,
            ),
            field("secondary_keys", writer=_write_novelai_keys),
            field("selective", writer=_write_novelai_keys),
            field("selective_logic", writer=_write_novelai_keys),
            field("enabled", "enabled"),
            field("constant", "forceActivation"),
            field("order", "contextConfig.budgetPriority"),
        ),
        texts=("text",),
        titles=("displayName",),
        new={
            "text": "",
            "contextConfig": {
                "prefix": "", "suffix": "\n", "tokenBudget": 2048, "reservedTokens": 0,
                "budgetPriority": 400, "trimDirection": "trimBottom", "insertionType": "newline",
                "maximumTrimType": "sentence", "insertionPosition": -1,
            },
            "displayName": "", "keys": [], "searchRange": 1000, "enabled": True,
            "forceActivation": False, "keyRelative": False, "nonStoryActivatable": False,
            "category": "", "loreBiasGroups": [],
        },
        set_number=_set_uuid,
    ),
    layout=lambda data: BookLayout("entries", extras="softlore"),
    new={
        "lorebookVersion": 6, "entries": [], "settings": {"orderByKeyLocations": False},
        "categories": [],
    },
)  # fmt: skip

# Agnai: keywords with wildcards, a weight and a priority. ----------------------------------------


def _write_order(foreign: ForeignEntry, values: Values) -> None:
    """Weight is the insertion order, priority what is dropped first; softlore's order is both."""
    foreign["weight"] = foreign["priority"] = values["order"]


AGNAI = BookFormat(
    name="agnai",
    title="Agnai's memory book",
    detect=lambda data: (
        isinstance(data, dict) and data.get("kind") == "memory" and "entries" in data
    ),
    entry=EntryFormat(
        program="agnai",
        fields=(
            field(
                "keys",
                "keywords",
                read=lambda keys: [from_wildcards(key) for key in texts(keys)],
                write=lambda keys: [to_wildcards(key) for key in keys],
            ),
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
