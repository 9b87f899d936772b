"""The lorebooks of JanitorAI, RisuAI and Agnai, and the persona of Agnai's characters."""

from __future__ import annotations

from typing import Any

from softlore.lore.entry import Entry
from softlore.lore.formats.exporting import CHARACTER_PART, extras_of
from softlore.lore.formats.format import (
    BookFormat,
    BookLayout,
    EntryFormat,
    FieldMapping,
    ForeignEntry,
    Values,
    drop,
    field,
    get,
    has,
    put,
    selective,
    texts,
)
from softlore.lore.formats.importing import holds_no_lore, with_extras
from softlore.lore.formats.key_syntax import (
    from_wildcards,
    is_regex,
    join_list,
    key_list,
    to_wildcards,
)
from softlore.lore.formats.programs import has_key_and_content, is_list_of
from softlore.lore.macros import MacroNames
from softlore.lore.opening import CardOpening
from softlore.lore.patterns import escaped

# JanitorAI: a list of entries, with `enabled` and `insertion_order`. -----------------------------

_JANITOR_MARKS = ("enabled", "insertion_order", "matchWholeWords", "activationMode", "keysRaw")

JANITORAI = BookFormat(
    name="janitorai",
    title="JanitorAI's lorebook",
    detect=lambda data: is_list_of(
        data,
        lambda foreign: (
            has_key_and_content(foreign) and any(mark in foreign for mark in _JANITOR_MARKS)
        ),
    ),
    entry=EntryFormat(
        program="janitorai",
        fields=(
            field("keys", "key", "keys", read=key_list),
            field("secondary_keys", "keysecondary", "secondary_keys", read=key_list),
            field("constant", "constant"),
            field("enabled", "enabled"),
            field("order", "insertion_order", "order"),
            field("selective_logic", "selectiveLogic"),
            field("probability", "probability"),
            field("case_sensitive", "case_sensitive"),
            field("match_whole_words", "matchWholeWords"),
            field("group", "inclusionGroupRaw"),
            field("group_override", "prioritizeInclusion"),
            field("group_weight", "groupWeight"),
            field("delay", "minMessages"),
        ),
        texts=("content", "entry"),
        titles=("name", "comment"),
        new={
            "key": [], "keysecondary": [], "name": "", "comment": "", "content": "",
            "constant": False, "enabled": True, "insertion_order": 100, "priority": 10,
            "probability": 100, "selectiveLogic": 0, "case_sensitive": False,
            "matchWholeWords": False, "inclusionGroupRaw": "", "prioritizeInclusion": False,
            "groupWeight": 100, "minMessages": 0, "category": "", "extensions": {},
        },
    ),
    layout=lambda data: BookLayout(""),
    new=[],
)  # fmt: skip

# RisuAI: a lorebook by itself, or in a module. Source: RisuAI's lorebook.svelte.ts, modules.ts. ---


def _risuai_keys(name: str, path: str) -> FieldMapping:
    """Keys in a comma list; `useRegex` says whether all of them are expressions in slashes."""
    plain = field(name, path, read=key_list)

    def read(foreign: ForeignEntry) -> list[str] | None:
        keys: list[str] | None = plain.read(foreign)
        if keys is None or foreign.get("useRegex") is True:
            return keys
        return [f"/{escaped(key)}/i" if is_regex(key) else key for key in keys]

    def write(foreign: ForeignEntry, values: Values) -> None:
        """RisuAI has no switch: an entry that is not enabled gets no keys."""
        keys, both = values[name], [*values["keys"], *values["secondary_keys"]]
        if any(map(is_regex, both)):
            foreign["useRegex"] = True
            keys = [key if is_regex(key) else f"/{escaped(key)}/i" for key in keys]
        elif "useRegex" in foreign:
            foreign["useRegex"] = False
        foreign[path] = join_list(keys if values["enabled"] else [], ", ")

    return FieldMapping(name, read, write)


def _write_always_active(foreign: ForeignEntry, values: Values) -> None:
    foreign["alwaysActive"] = values["constant"] and values["enabled"]


def _write_risuai_switch(foreign: ForeignEntry, values: Values) -> None:
    foreign["key"] = join_list(values["keys"] if values["enabled"] else [], ", ")
    _write_always_active(foreign, values)


def _risuai_layout(data: Any) -> BookLayout:
    if get(data, "type") != "risuModule":
        return BookLayout("data", ("name",), "softlore")
    module = "module." if isinstance(get(data, "module"), dict) else ""
    return BookLayout(f"{module}lorebook", (f"{module}name",), "softlore")


RISUAI = BookFormat(
    name="risuai",
    title="RisuAI's lorebook",
    detect=lambda data: isinstance(data, dict) and data.get("type") in ("risu", "risuModule"),
    entry=EntryFormat(
        program="risuai",
        fields=(
            _risuai_keys("keys", "key"),
            _risuai_keys("secondary_keys", "secondkey"),
            selective("selective", "secondkey"),
            field("constant", "alwaysActive", writer=_write_always_active),
            field("order", "insertorder"),
            field("probability", "activationPercent"),
            field("case_sensitive", "extentions.risu_case_sensitive"),
            field("enabled", writer=_write_risuai_switch),
        ),
        texts=("content",),
        titles=("comment", "name"),
        new={
            "key": "", "secondkey": "", "insertorder": 100, "comment": "", "content": "",
            "mode": "normal", "alwaysActive": False, "selective": False,
        },
        decorated=True,
    ),
    layout=_risuai_layout,
    new={"type": "risu", "ver": 1, "data": []},
)  # fmt: skip

# Agnai: keywords with wildcards, a weight and a priority. ----------------------------------------


def _write_order(foreign: ForeignEntry, values: Values) -> None:
    """Weight is the insertion order, priority what is dropped first; softlore's order is both."""
    foreign["weight"] = foreign["priority"] = values["order"]


def _character_text(data: Any) -> str:
    """What the persona of an Agnai character says: texts, or attributes with their values."""
    attributes = get(data, "persona.attributes")
    lines = []
    for name, values in attributes.items() if isinstance(attributes, dict) else ():
        said = [v for v in values if isinstance(v, str)] if isinstance(values, list) else []
        if any(map(str.strip, said)):
            lines.append(("" if name == "text" else f"{name}: ") + ", ".join(said))
    parts = ["\n".join(lines), get(data, "appearance")]
    text = "\n".join(part for part in parts if isinstance(part, str) and part.strip())
    return MacroNames(_character_name(data)).fill(text.strip("\r\n"))


def _character_name(data: Any) -> str:
    name = get(data, "name") if _is_character(data) else ""
    return name if isinstance(name, str) else ""


def _is_character(data: Any) -> bool:
    parts = ("persona", "characterBook")
    return get(data, "kind") == "character" and any(has(data, part) for part in parts)


def _character_fields(data: Any) -> dict[str, Any]:
    name = _character_name(data)
    keys = [name] if name.strip() else []
    return {"keys": keys, "constant": True, "text": _character_text(data)}


def _read_opening(data: Any) -> CardOpening:
    if not _is_character(data):
        return CardOpening()
    others = data.get("alternateGreetings")
    greetings = [data.get("greeting"), *(others if isinstance(others, list) else [])]
    return CardOpening.of(greetings, data.get("scenario"), data.get("sampleChat"))


def _read_character(data: Any) -> dict[str, Any] | None:
    if not _is_character(data):
        return None
    values = with_extras(_character_fields(data), get(data, "softlore.character"))
    if holds_no_lore(values):
        return None
    origin = {"format": "agnai", "part": CHARACTER_PART, "data": {}}
    return {**values, "name": _character_name(data), "origin": origin}


def _write_character(data: Any, entry: Entry) -> None:
    if entry.name != (entry.origin or {}).get("name"):
        data["name"] = entry.name
    if entry.text != _character_text(data):
        data["persona"] = {"kind": "text", "attributes": {"text": [entry.text]}}
        data["appearance"] = ""
    if extras := extras_of(entry.model_dump(), _character_fields(data)):
        put(data, "softlore.character", extras)
    else:
        drop(data, "softlore.character")


def _agnai_layout(data: Any) -> BookLayout:
    if _is_character(data):
        names = ("characterBook.name",) if isinstance(get(data, "characterBook"), dict) else ()
        return BookLayout("characterBook.entries", names, "softlore.book")
    return BookLayout("entries", ("name",), "softlore")


def _is_agnai(data: Any) -> bool:
    return _is_character(data) or (get(data, "kind") == "memory" and has(data, "entries"))


AGNAI = BookFormat(
    name="agnai",
    title="Agnai's memory book",
    detect=_is_agnai,
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
    layout=_agnai_layout,
    new={"kind": "memory", "name": "", "description": "", "entries": []},
    read_character=_read_character,
    write_character=_write_character,
    character_name=_character_name,
    read_opening=_read_opening,
)  # fmt: skip
