"""KoboldAI's World Info: in a save of KoboldAI or KoboldAI Lite, or as a list by itself."""

from __future__ import annotations

from typing import Any

from softlore.lore.formats.fields import (
    FieldMapping,
    ForeignEntry,
    Values,
    field,
    first_present,
    inverted_flag,
    selective,
)
from softlore.lore.formats.format import BookFormat, BookLayout, EntryFormat
from softlore.lore.formats.key_syntax import join_list, key_list

_KEYS = ("key", "keys")  # the second in lists of AI Dungeon's first years, which KoboldAI reads


def _detect(data: Any) -> bool:
    if isinstance(data, dict):
        return isinstance(data.get("worldinfo"), list) or {"actions", "prompt"} <= data.keys()
    if not isinstance(data, list) or not data:
        return False
    return all(
        isinstance(foreign, dict)
        and ("key" in foreign or "keys" in foreign)
        and ("content" in foreign or "entry" in foreign)
        for foreign in data
    )


def _read_list(foreign: ForeignEntry, *paths: str) -> list[str]:
    """The first list of keys that is not empty, as a comma list or as a list."""
    for path in paths:
        if (listed := foreign.get(path)) not in (None, ""):
            try:
                return key_list(listed)
            except ValueError as error:
                raise ValueError(f"`{path}` {error}") from None
    return []


def _write_list(foreign: ForeignEntry, path: str, keys: list[str]) -> None:
    foreign[path] = list(keys) if isinstance(foreign.get(path), list) else join_list(keys)


def _write_keys(foreign: ForeignEntry, values: Values) -> None:
    _write_list(foreign, first_present(foreign, _KEYS), values["keys"])


def _read_secondary(foreign: ForeignEntry) -> list[str]:
    return _read_list(foreign, "keysecondary", "keyanti")


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


def _layout(data: Any) -> BookLayout:
    return BookLayout("") if isinstance(data, list) else BookLayout("worldinfo", extras="softlore")


FORMAT = BookFormat(
    name="koboldai",
    title="KoboldAI's World Info",
    detect=_detect,
    entry=EntryFormat(
        program="koboldai",
        fields=(
            FieldMapping("keys", lambda foreign: _read_list(foreign, *_KEYS), _write_keys),
            FieldMapping("secondary_keys", _read_secondary, _write_secondary),
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
    layout=_layout,
    new={
        "gamestarted": True, "prompt": "", "memory": "", "authorsnote": "", "anotetemplate": "",
        "actions": [], "worldinfo": [],
    },
)  # fmt: skip
