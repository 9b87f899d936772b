"""The lorebooks of SillyTavern, KoboldAI, AI Dungeon and NovelAI."""

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
    get,
    inverted_flag,
    probability,
    selective,
    texts,
)
from softlore.lore.formats.key_syntax import (
    combine,
    from_ampersands,
    join_list,
    key_list,
    to_ampersands,
)


def is_list_of(data: Any, check: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether `data` is a list of mappings that pass `check`, and nulls, with at least one."""
    listed = [item for item in data if item is not None] if isinstance(data, list) else []
    return bool(listed) and all(isinstance(item, dict) and check(item) for item in listed)


# SillyTavern: a mapping of numbers to entries. Source: its world-info.js, 1.12 on. ---------------

# Fields that have the same name here, in camel case.
_SAME = (
    "constant", "selective_logic", "position", "depth", "role", "scan_depth",
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
    """Some programs write its entries as a list."""
    entries = data.get("entries") if isinstance(data, dict) else None
    if not isinstance(entries, dict):
        return is_list_of(entries, lambda foreign: {"key", "content"} <= foreign.keys())
    return all(
        isinstance(foreign, dict)
        and ("key" in foreign or ("content" in foreign and "keys" not in foreign))
        for foreign in entries.values()
        if foreign is not None
    )


_DISABLED = field("enabled", "disable", read=inverted_flag)
_ENABLED = field("enabled", "enabled")


def _read_switch(foreign: ForeignEntry) -> bool | None:
    """`disable`; other programs that write this format have `enabled`."""
    value: bool | None = _DISABLED.read(foreign)
    return _ENABLED.read(foreign) if value is None else value


def _write_switch(foreign: ForeignEntry, values: Values) -> None:
    written = {"enabled": values["enabled"]} if "enabled" in foreign else {}
    foreign.update(written, disable=not values["enabled"])


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
            field("order", "order", "insertion_order"),
            FieldMapping("enabled", _read_switch, _write_switch),
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
_KOBOLDAI_FIELDS = frozenset(
    """
    key keysecondary keyanti content comment folder selective constant probability wigroup
    widisabled init num uid title manual_text wpp use_wpp type object_type softlore
    keys entry id _id name displayName description attributes public isSC genre generator hidden
    tags category createdAt updatedAt
    """.split()
)  # with those of AI Dungeon's old lists


def _is_koboldai(data: Any) -> bool:
    if isinstance(data, dict):
        return isinstance(data.get("worldinfo"), list) or {"actions", "prompt"} <= data.keys()
    return is_list_of(data, has_key_and_content) and not unknown_fields(data)


def has_key_and_content(foreign: ForeignEntry) -> bool:
    """Whether it is an entry as in KoboldAI's lists, or in another program's that are like them."""
    return ("key" in foreign or "keys" in foreign) and ("content" in foreign or "entry" in foreign)


def unknown_fields(entries: list[ForeignEntry]) -> list[str]:
    """The fields of a list of entries that KoboldAI's lists don't have, such as `enabled`."""
    return sorted({name for foreign in entries for name in foreign or ()} - _KOBOLDAI_FIELDS)


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

# AI Dungeon: a list of story cards, by itself or in a scenario or adventure. ---------------------

_CARD_LISTS = tuple(
    f"{outer}{name}"
    for outer in ("", "scenario.", "adventure.", "data.scenario.", "data.adventure.")
    for name in ("storyCards", "worldInfo")
)


def _card_list(data: Any) -> str | None:
    """Where the story cards are: the path of a list; None if there are none."""
    if is_list_of(data, lambda card: {"keys", "value"} <= card.keys()):
        return ""
    return next((path for path in _CARD_LISTS if isinstance(get(data, path), list)), None)


def _cards_layout(data: Any) -> BookLayout:
    if path := _card_list(data):
        outer = path.removesuffix(path.rpartition(".")[2])
        return BookLayout(path, (f"{outer}title",), f"{outer}softlore")
    return BookLayout("")


def _write_card_keys(foreign: ForeignEntry, values: Values) -> None:
    """A card has no switch: one that is not enabled gets no keys, so that it is never activated."""
    _write_list(foreign, "keys", values["keys"] if values["enabled"] else [], ", ")


AIDUNGEON = BookFormat(
    name="aidungeon",
    title="AI Dungeon's story cards",
    detect=lambda data: _card_list(data) is not None,
    entry=EntryFormat(
        program="aidungeon",
        fields=(
            field("keys", "keys", read=key_list, writer=_write_card_keys),
            field("enabled", writer=_write_card_keys),
        ),
        texts=("value", "entry"),
        titles=("title", "name"),
        new={
            "keys": "", "value": "", "type": "custom", "title": "", "description": "",
            "useForCharacterCreation": False,
        },
    ),
    layout=_cards_layout,
    new=[],
)  # fmt: skip

# NovelAI: `lorebookVersion` 1 to 6, files that end in .lorebook; scenarios and stories hold one. -

_NOVELAI_BOOKS = {  # a field of the file: where its lorebook is, and its title
    "lorebookVersion": ("", ""),
    "scenarioVersion": ("lorebook.", "title"),
    "storyContainerVersion": ("content.lorebook.", "metadata.title"),
}


def _novelai_layout(data: Any) -> BookLayout:
    kind = next((name for name in _NOVELAI_BOOKS if name in data), "lorebookVersion")
    book, title = _NOVELAI_BOOKS[kind]
    return BookLayout(f"{book}entries", (title,) if title else (), f"{book}softlore")


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
    detect=lambda data: isinstance(data, dict) and not _NOVELAI_BOOKS.keys().isdisjoint(data),
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
    layout=_novelai_layout,
    new={
        "lorebookVersion": 6, "entries": [], "settings": {"orderByKeyLocations": False},
        "categories": [],
    },
)  # fmt: skip
