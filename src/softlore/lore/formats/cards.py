"""Character cards of versions 1, 2 and 3, their lorebooks, and lorebooks by themselves.

A card's character becomes an entry of its own, from description and personality; the rest of the
card stays in the lorebook's origin. Source: the Character Card V2 and V3 specifications;
SillyTavern's use of `extensions`.
"""

from __future__ import annotations

from typing import Any

from softlore.lore.entry import Entry
from softlore.lore.formats.exporting import CHARACTER_PART, extras_of
from softlore.lore.formats.format import (
    POSITIONS,
    BookFormat,
    BookLayout,
    EntryFormat,
    FieldMapping,
    ForeignEntry,
    Values,
    drop,
    field,
    fields,
    get,
    has,
    probability,
    put,
    selective,
)
from softlore.lore.formats.importing import holds_no_lore, with_extras
from softlore.lore.formats.key_syntax import is_regex
from softlore.lore.formats.programs import CARD_EQUIVALENTS, is_list_of
from softlore.lore.macros import MacroNames
from softlore.lore.opening import CardOpening
from softlore.lore.patterns import escaped
from softlore.lore.validation import describe

VERSIONS = {2: ("chara_card_v2", "2.0"), 3: ("chara_card_v3", "3.0")}
_NEW_BOOK: dict[str, Any] = {"extensions": {}, "entries": []}
_NEW_CARD = {
    "spec": "chara_card_v3", "spec_version": "3.0", "data": {
        "name": "", "description": "", "personality": "", "scenario": "", "first_mes": "",
        "mes_example": "", "creator_notes": "", "system_prompt": "",
        "post_history_instructions": "", "alternate_greetings": [], "tags": [], "creator": "",
        "character_version": "", "extensions": {}, "group_only_greetings": [],
        "character_book": _NEW_BOOK,
    },
}  # fmt: skip


def as_version(card: Any, version: int) -> Any:
    """Returns a card as one of version 2 or 3: its `spec`, and what version 3 requires."""
    spec, spec_version = VERSIONS[version]
    if card.get("spec") == spec:
        return card
    data = card.get("data", {key: card[key] for key in card if key != "softlore"})
    if version == 3 and isinstance(data, dict):
        data = {**data, "group_only_greetings": data.get("group_only_greetings", [])}
        entries = get(data, "character_book.entries")
        for foreign in entries if isinstance(entries, list) else []:
            if isinstance(foreign, dict):
                foreign.setdefault("use_regex", False)
    return {**card, "spec": spec, "spec_version": spec_version, "data": data}


# Entries -----------------------------------------------------------------------------------------


def _is_sillytavern(foreign: ForeignEntry) -> bool:
    """SillyTavern writes `use_regex` in every entry, yet reads only keys in slashes as regex."""
    return has(foreign, "extensions.selectiveLogic")


def _keys(name: str) -> FieldMapping:
    """Keys; `use_regex` says whether they are expressions, with or without slashes."""
    plain = field(name, name)

    def read(foreign: ForeignEntry) -> list[str] | None:
        keys: list[str] | None = plain.read(foreign)
        if keys is None:
            return None
        flags = "" if foreign.get("case_sensitive") is True else "i"
        lists = [foreign.get("keys"), foreign.get("secondary_keys")]
        in_slashes = any(is_regex(str(k)) for ks in lists if isinstance(ks, list) for k in ks)
        if foreign.get("use_regex") is True and not in_slashes and not _is_sillytavern(foreign):
            return ["/{}/{}".format(key.replace("/", r"\/"), flags) for key in keys]
        if foreign.get("use_regex") is False:  # slashes are plain text
            return [f"/{escaped(key)}/{flags}" if is_regex(key) else key for key in keys]
        return keys

    def write(foreign: ForeignEntry, values: Values) -> None:
        if any(map(is_regex, [*values["keys"], *values["secondary_keys"]])):
            foreign["use_regex"] = True
        elif "use_regex" in foreign and not _is_sillytavern(foreign):
            foreign["use_regex"] = False
        foreign[name] = list(values[name])

    return FieldMapping(name, read, write)


def _write_case(foreign: ForeignEntry, values: Values) -> None:
    foreign["case_sensitive"] = case = values["case_sensitive"]
    if case is None:
        del foreign["case_sensitive"]
    if has(foreign, "extensions.case_sensitive"):
        put(foreign, "extensions.case_sensitive", case)


def _write_position(foreign: ForeignEntry, values: Values) -> None:
    """Cards have two positions; SillyTavern's others are an extension."""
    position = values["position"]
    foreign["position"] = "before_char" if position == "before_char" else "after_char"
    if foreign["position"] != position or has(foreign, "extensions.position"):
        put(foreign, "extensions.position", POSITIONS.index(position))


_EXTENSIONS = (
    "depth", "role", "scan_depth", "match_whole_words", "ignore_budget", "exclude_recursion",
    "prevent_recursion", "delay_until_recursion", "group", "group_override", "group_weight",
    "sticky", "cooldown", "delay",
)  # fmt: skip
_ENTRY = EntryFormat(
    program="card",
    fields=(
        _keys("keys"),
        _keys("secondary_keys"),
        field("constant", "constant"),
        field("order", "insertion_order"),
        field("selective_logic", "extensions.selectiveLogic"),
        *fields({name: f"extensions.{name}" for name in _EXTENSIONS}),
        field("enabled", "enabled"),
        selective("selective", "secondary_keys"),
        probability("extensions.probability", "extensions.useProbability"),
        field(
            "case_sensitive", "extensions.case_sensitive", "case_sensitive", writer=_write_case
        ),
        field("position", "extensions.position", "position", writer=_write_position),
    ),
    texts=("content",),
    titles=("comment", "name"),
    new={
        "keys": [], "content": "", "extensions": {}, "enabled": True, "insertion_order": 100,
        "use_regex": False, "constant": False, "name": "", "comment": "", "selective": False,
        "secondary_keys": [], "position": "before_char",
    },
    decorated=True,
    extras="extensions.softlore",
    set_number=lambda foreign, number: put(foreign, "id", number),
    equivalents={"sillytavern": tuple(CARD_EQUIVALENTS.items())},
)  # fmt: skip

# The character -----------------------------------------------------------------------------------


def _root(card: Any) -> str:
    """Where a card's fields are: under `data`, in version 1 at the top."""
    return "data." if "data" in card else ""


def _character_name(card: Any) -> str:
    name = get(card, f"{_root(card)}name")
    return name if isinstance(name, str) else ""


def _character_fields(card: Any) -> dict[str, Any]:
    """The fields of an entry for a card's character."""
    parts = [get(card, f"{_root(card)}{name}") for name in ("description", "personality")]
    text = "\n".join(part.strip("\r\n") for part in parts if isinstance(part, str) and part.strip())
    name = _character_name(card)
    keys = [name] if name.strip() else []
    return {"keys": keys, "constant": True, "text": MacroNames(name).fill(text)}


def _read_opening(card: Any) -> CardOpening:
    fields = card["data"] if isinstance(card.get("data"), dict) else card
    others = fields.get("alternate_greetings")
    greetings = [fields.get("first_mes"), *(others if isinstance(others, list) else [])]
    return CardOpening.of(greetings, fields.get("scenario"), fields.get("mes_example"))


def _read_character(card: Any) -> dict[str, Any] | None:
    if "data" in card and not isinstance(card["data"], dict):
        raise ValueError(f"`data` must be a mapping of fields, but is {describe(card['data'])}")
    extras = get(card, f"{_root(card)}extensions.softlore.character")
    values = with_extras(_character_fields(card), extras)
    if holds_no_lore(values):
        return None
    origin = {"format": "card", "part": CHARACTER_PART, "data": {}}
    return {**values, "name": _character_name(card), "origin": origin}


def _write_character(card: Any, entry: Entry) -> None:
    root = _root(card)
    if entry.name != (entry.origin or {}).get("name"):
        put(card, f"{root}name", entry.name)
    if entry.text != _character_fields(card)["text"]:
        put(card, f"{root}description", entry.text)
        put(card, f"{root}personality", "")
    if extras := extras_of(entry.model_dump(), _character_fields(card)):
        put(card, f"{root}extensions.softlore.character", extras)
    else:
        drop(card, f"{root}extensions.softlore.character")


# Files -------------------------------------------------------------------------------------------


def _is_card(data: Any) -> bool:
    """A card of version 1 has no `spec`."""
    if not isinstance(data, dict) or "entries" in data:
        return False
    if isinstance(spec := data.get("spec"), str):
        return spec.startswith("chara_card_v")
    return {"name", "description", "first_mes"} <= data.keys()


def _is_character_book(data: Any) -> bool:
    """Some programs write a mapping of numbers to entries, as World Info has it."""
    entries = data.get("entries") if isinstance(data, dict) else None
    listed = list(entries.values()) if isinstance(entries, dict) else entries
    return is_list_of(listed, lambda item: {"keys", "content"} <= item.keys())


def _card_layout(card: Any) -> BookLayout:
    root = _root(card)
    book = f"{root}character_book"
    names = (f"{book}.name", f"{root}name") if isinstance(get(card, book), dict) else ()
    return BookLayout(f"{book}.entries", names, f"{root}extensions.softlore.lorebook")


CARD = BookFormat(
    name="card",
    title="the character card",
    detect=_is_card,
    entry=_ENTRY,
    layout=_card_layout,
    new=_NEW_CARD,
    read_character=_read_character,
    write_character=_write_character,
    character_name=_character_name,
    read_opening=_read_opening,
)
LOREBOOK = BookFormat(
    name="lorebook-v3",
    title="the lorebook",
    detect=lambda data: isinstance(data, dict) and data.get("spec") == "lorebook_v3",
    entry=_ENTRY,
    layout=lambda data: BookLayout("data.entries", ("data.name",), "data.extensions.softlore"),
    new={"spec": "lorebook_v3", "data": {"name": "", **_NEW_BOOK}},
)
BOOK = BookFormat(
    name="character-book",
    title="the character book",
    detect=_is_character_book,
    entry=_ENTRY,
    layout=lambda data: BookLayout("entries", ("name",), "extensions.softlore"),
    new={"name": "", **_NEW_BOOK},
)
