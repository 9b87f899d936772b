"""Character cards of versions 1, 2 and 3, their lorebooks, and lorebooks by themselves.

Source: the Character Card V2 and V3 specifications; SillyTavern's use of `extensions`.
"""

from __future__ import annotations

from typing import Any

from softlore.lore.complaints import describe
from softlore.lore.entry import Entry
from softlore.lore.formats import own, paths
from softlore.lore.formats.exporting import SUBJECT
from softlore.lore.formats.forms import BookForm, EntryForm, Field, PlaceCodes, Theirs, Values, at
from softlore.lore.formats.importing import holds_no_lore, in_name_of
from softlore.lore.formats.keys import escaped, is_regex
from softlore.lore.formats.sillytavern import AKIN
from softlore.lore.formats.values import flag, texts
from softlore.lore.formats.worldinfo import POSITIONS, plain_fields, probability, selective

VERSIONS = {2: ("chara_card_v2", "2.0"), 3: ("chara_card_v3", "3.0")}
_NEW = {
    "keys": [],
    "content": "",
    "extensions": {},
    "enabled": True,
    "insertion_order": 100,
    "use_regex": False,
    "constant": False,
    "name": "",
    "comment": "",
    "selective": False,
    "secondary_keys": [],
    "position": "before_char",
}
_NEW_BOOK: dict[str, Any] = {"extensions": {}, "entries": []}
_NEW_CARD = {
    "spec": "chara_card_v3",
    "spec_version": "3.0",
    "data": {
        "name": "",
        "description": "",
        "personality": "",
        "scenario": "",
        "first_mes": "",
        "mes_example": "",
        "creator_notes": "",
        "system_prompt": "",
        "post_history_instructions": "",
        "alternate_greetings": [],
        "tags": [],
        "creator": "",
        "character_version": "",
        "extensions": {},
        "group_only_greetings": [],
        "character_book": _NEW_BOOK,
    },
}


def takes_card(data: Any) -> bool:
    """Whether data is a character card; one of version 1 has no `spec`."""
    if not isinstance(data, dict) or "entries" in data:
        return False
    spec = data.get("spec")
    if isinstance(spec, str):
        return spec.startswith("chara_card_v")
    return {"name", "description", "first_mes"} <= data.keys()


def takes_lorebook(data: Any) -> bool:
    """Whether data is a version 3 lorebook by itself."""
    return isinstance(data, dict) and data.get("spec") == "lorebook_v3"


def takes_book(data: Any) -> bool:
    """Whether data is what a card holds under `character_book`."""
    entries = data.get("entries") if isinstance(data, dict) else None
    return (
        isinstance(entries, list)
        and bool(entries)
        and all(isinstance(one, dict) and {"keys", "content"} <= one.keys() for one in entries)
    )


def as_version(card: Any, version: int) -> Any:
    """Returns a card as one of version 2 or 3: its `spec`, and what version 3 asks for."""
    data = card.get("data", {key: card[key] for key in card if key != "softlore"})
    spec, number = VERSIONS[version]
    if card.get("spec") == spec:
        return card
    if version == 3 and isinstance(data, dict):
        data = {**data}
        data.setdefault("group_only_greetings", [])
        entries = paths.get(data, "character_book.entries")
        for theirs in entries if isinstance(entries, list) else []:
            if isinstance(theirs, dict):
                theirs.setdefault("use_regex", False)
    return {**card, "spec": spec, "spec_version": number, "data": data}


def _of_sillytavern(theirs: Theirs) -> bool:
    """SillyTavern says `use_regex` of every entry, and means keys in slashes only."""
    return paths.has(theirs, "extensions.selectiveLogic")


def _keys(ours: str, place: str) -> Field:
    """Keys; `use_regex` says whether those of the entry are expressions, in slashes or without."""
    plain = at(ours, place, read=texts)

    def read(theirs: Theirs) -> list[str] | None:
        keys: list[str] | None = plain.read(theirs)
        if keys is None:
            return None
        flags = "" if theirs.get("case_sensitive") is True else "i"
        every = [theirs.get("keys"), theirs.get("secondary_keys")]
        slashed = any(
            is_regex(str(key)) for some in every if isinstance(some, list) for key in some
        )
        if theirs.get("use_regex") is True and not slashed and not _of_sillytavern(theirs):
            return [f"/{key.replace('/', _SLASH)}/{flags}" for key in keys]
        if theirs.get("use_regex") is False:  # slashes are slashes
            return [f"/{escaped(key)}/{flags}" if is_regex(key) else key for key in keys]
        return keys

    def write(theirs: Theirs, values: Values) -> None:
        if any(map(is_regex, [*values["keys"], *values["secondary_keys"]])):
            theirs["use_regex"] = True
        elif "use_regex" in theirs and not _of_sillytavern(theirs):
            theirs["use_regex"] = False
        theirs[place] = list(values[ours])

    return Field(ours, read, write)


def _case() -> Field:
    (both,) = plain_fields({"case_sensitive": ("extensions.case_sensitive", "case_sensitive")})

    def write(theirs: Theirs, values: Values) -> None:
        if values["case_sensitive"] is None:
            theirs.pop("case_sensitive", None)
        else:
            theirs["case_sensitive"] = values["case_sensitive"]
        if paths.has(theirs, "extensions.case_sensitive"):
            paths.put(theirs, "extensions.case_sensitive", values["case_sensitive"])

    return Field("case_sensitive", both.read, write)


def _position() -> Field:
    (by_number,) = plain_fields({"position": ("extensions.position", "position")})

    def write(theirs: Theirs, values: Values) -> None:
        """Cards know two positions; SillyTavern's others are an extension."""
        position = values["position"]
        theirs["position"] = "before_char" if position == "before_char" else "after_char"
        if theirs["position"] != position or paths.has(theirs, "extensions.position"):
            paths.put(theirs, "extensions.position", POSITIONS.index(position))

    return Field("position", by_number.read, write)


_SLASH = r"\/"
_EXTENSIONS = (
    "depth", "role", "scan_depth", "match_whole_words", "ignore_budget", "exclude_recursion",
    "prevent_recursion", "delay_until_recursion", "group", "group_override", "group_weight",
    "sticky", "cooldown", "delay",
)  # fmt: skip

ENTRY = EntryForm(
    program="card",
    fields=(
        _keys("keys", "keys"),
        _keys("secondary_keys", "secondary_keys"),
        *plain_fields(
            {
                "constant": ("constant",),
                "order": ("insertion_order",),
                "selective_logic": ("extensions.selectiveLogic",),
                **{ours: (f"extensions.{ours}",) for ours in _EXTENSIONS},
            }
        ),
        at("enabled", "enabled", read=flag),
        selective("selective", "secondary_keys"),
        probability("extensions.probability", "extensions.useProbability"),
        _case(),
        _position(),
    ),
    texts=("content",),
    titles=("comment", "name"),
    new=_NEW,
    decorated=True,
    own="extensions.softlore",
    number=lambda theirs, number: paths.put(theirs, "id", number),
    akin={"sillytavern": AKIN},
)


def _root(card: Any) -> str:
    """Where a card's fields stand: under `data`, in version 1 at the top."""
    return "data." if "data" in card else ""


def _card_places(card: Any) -> PlaceCodes:
    root = _root(card)
    book, own_place = f"{root}character_book", f"{root}extensions.softlore.lorebook"
    has_book = isinstance(paths.get(card, book), dict)
    names = (f"{book}.name", f"{root}name") if has_book else ()
    return PlaceCodes(f"{book}.entries", names, own_place)


def _card_name(card: Any) -> str:
    name = paths.get(card, f"{_root(card)}name")
    return name if isinstance(name, str) else ""


def _said(card: Any) -> dict[str, Any]:
    """What a card tells of its character, as fields of an entry."""
    found = [paths.get(card, f"{_root(card)}{field}") for field in ("description", "personality")]
    parts = [part.strip("\r\n") for part in found if isinstance(part, str) and part.strip()]
    name = _card_name(card)
    keys = [name] if name.strip() else []
    return {"keys": keys, "constant": True, "text": in_name_of(name, "\n".join(parts))}


def _read_character(card: Any) -> dict[str, Any] | None:
    """The character as an entry of its own, from description and personality."""
    if "data" in card and not isinstance(card["data"], dict):
        raise ValueError(f"`data` must be a mapping of fields, but is {describe(card['data'])}")
    place = f"{_root(card)}extensions.softlore.character"
    values = own.recalled(paths.get(card, place), _said(card))
    if holds_no_lore(values):
        return None
    name = _card_name(card)
    return {**values, "name": name, "origin": {"format": "card", "part": SUBJECT, "data": {}}}


def _write_character(card: Any, entry: Entry) -> None:
    root = _root(card)
    if entry.name != (entry.origin or {}).get("name"):
        paths.put(card, f"{root}name", entry.name)
    if entry.text != _said(card)["text"]:
        paths.put(card, f"{root}description", entry.text)
        paths.put(card, f"{root}personality", "")
    left = own.record(entry.model_dump(), _said(card), Entry)
    if left:
        paths.put(card, f"{root}extensions.softlore.character", left)
    else:
        paths.drop(card, f"{root}extensions.softlore.character")


CARD = BookForm(
    name="card",
    title="the character card",
    takes=takes_card,
    entry=ENTRY,
    places=_card_places,
    new=_NEW_CARD,
    read_subject=_read_character,
    write_subject=_write_character,
    subject_name=_card_name,
)
LOREBOOK = BookForm(
    name="lorebook-v3",
    title="the lorebook",
    takes=takes_lorebook,
    entry=ENTRY,
    places=lambda data: PlaceCodes("data.entries", ("data.name",), "data.extensions.softlore"),
    new={"spec": "lorebook_v3", "data": {"name": "", **_NEW_BOOK}},
)
BOOK = BookForm(
    name="character-book",
    title="the character book",
    takes=takes_book,
    entry=ENTRY,
    places=lambda data: PlaceCodes("entries", ("name",), "extensions.softlore"),
    new={"name": "", **_NEW_BOOK},
)
