"""Writes a lorebook as another program's data: the imported original, with later changes.

An entry of the same program starts from its original object, and only fields that differ from it
are written, so that fields unknown to softlore are unchanged. Any other entry starts from an empty
object of the format. What the program has no place for is stored in the file under softlore's own
name (`extras`), for the next import.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from softlore.errors import LoreError
from softlore.lore.entry import Entry
from softlore.lore.formats.format import (
    BookFormat,
    EntryFormat,
    ForeignEntry,
    Values,
    drop,
    first_present,
    get,
    has,
    put,
)
from softlore.lore.formats.importing import (
    NO_EXTRAS,
    UniqueNames,
    extras_name,
    read_fields,
    title_or_key,
)
from softlore.lore.formats.key_syntax import split_decorators, valid_decorators
from softlore.lore.macros import MacroNames

CHARACTER_PART = "subject"  # an origin's `part`: the entry was made of a card's character
_ENTRY_DEFAULTS = {
    name: field.get_default(call_default_factory=True)
    for name, field in Entry.model_fields.items()
    if not field.is_required()
}


class BookContent(NamedTuple):
    """A lorebook's parts; `settings` are its other fields, such as `training`, without defaults."""

    name: str
    entries: list[Entry]
    origin: dict[str, Any] | None
    settings: dict[str, Any]


class _Row(NamedTuple):
    """An entry to write."""

    foreign: ForeignEntry
    key: str | None  # where entries are a mapping
    new: bool = False  # not in the original file
    name: str = ""  # in softlore; empty for one without lore


def export_lorebook(book: BookContent, format: BookFormat) -> Any:
    """Returns the content of a file of a format that holds the lorebook.

    Raises LoreError if an origin was changed by hand and no longer fits the format.
    """
    origin = book.origin if _is_of(book.origin, format) else None
    data = copy.deepcopy(origin["data"] if origin else format.new)
    character_name = format.character_name(data)  # of the original: its texts have the macro
    entries = list(book.entries)
    has_place = origin is not None and _has_character(data, format)
    for entry in filter(_is_character, book.entries if has_place else ()):
        format.write_character(data, entry)
        entries.remove(entry)
    if not any(field.name == "order" for field in format.entry.fields):
        entries.sort(key=lambda entry: entry.order)  # the place in the list is the order there
    _write_book(data, book, format, origin)
    if not origin:
        character_name = format.character_name(data)
    rows = [_row(entry, format, character_name) for entry in entries]
    for original in _entries_without_lore(origin):
        rows.insert(original["place"], _Row(copy.deepcopy(original["data"]), _key(original)))
    _write_names(data, rows, format, character_name)
    return _with_rows(data, rows, format)


def _has_character(data: Any, format: BookFormat) -> bool:
    """Whether the data has a character; a lorebook by itself has none."""
    try:
        return format.read_character(data) is not None
    except ValueError:  # it was changed by hand
        return True


def _row(entry: Entry, book_format: BookFormat, character: str) -> _Row:
    """An entry as the program stores it."""
    format, origin, original = book_format.entry, entry.origin, _original(entry, book_format.entry)
    foreign: ForeignEntry = copy.deepcopy(dict(format.new) if original is None else original)
    drop(foreign, format.extras)
    values = entry.model_dump()
    try:
        read_fields(foreign, format, character)
        _write_text(foreign, values, format, character)
        for _ in range(2):  # writing one field may change what another is read as
            current = {**_ENTRY_DEFAULTS, **read_fields(foreign, format, character)}
            for field in format.fields:
                if current[field.name] != values[field.name]:
                    field.write(foreign, values)
    except ValueError as error:
        raise LoreError(
            f"entry {entry.name!r}: its `origin`, the data it was imported with, is not valid in "
            f"{book_format.title}: {error}; remove `origin`, or import the file again"
        ) from None
    _write_title(foreign, entry, format)
    if original is None and origin:
        for there, here in format.equivalents.get(origin["format"], ()):
            if has(origin["data"], there):
                put(foreign, here, copy.deepcopy(get(origin["data"], there)))
    if extras := extras_of(values, read_fields(foreign, format, character)):
        put(foreign, format.extras, extras)
    key = None if original is None else _key(origin)
    return _Row(foreign, key, original is None, entry.name)


def extras_of(values: Values, current: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record of the entry's fields that differ from `current`, those in the file.

    The record is `{"fields": {name: value}, "instead_of": {name: value in the file}}`, without
    empty parts. An entry that would be read under another name gets its `name` too, and the
    `title` it had in the file at that time.
    """
    stored = {**_ENTRY_DEFAULTS, **current}
    added = {
        name: value
        for name, value in values.items()
        if name not in NO_EXTRAS and (name not in stored or stored[name] != value)
    }
    record = {"fields": added, "instead_of": {n: current[n] for n in added if n in current}}
    return {name: part for name, part in record.items() if part}


def _original(entry: Entry, format: EntryFormat) -> ForeignEntry | None:
    """The object that an entry was imported from, if the same program stored it."""
    origin = entry.origin
    if not origin or origin["format"] != format.program or _is_character(entry):
        return None
    return origin["data"] if isinstance(origin["data"], dict) else None


def _is_of(origin: dict[str, Any] | None, format: BookFormat) -> bool:
    """Whether a lorebook's origin is of the format, with data of the right kind."""
    if origin is None or origin["format"] != format.name:
        return False
    data = origin["data"]
    is_container = isinstance(data, dict | list)
    return is_container and isinstance(data, dict if format.layout(data).entries else list)


def _is_character(entry: Entry) -> bool:
    return entry.origin is not None and entry.origin.get("part") == CHARACTER_PART


def _write_text(foreign: ForeignEntry, values: Values, format: EntryFormat, character: str) -> None:
    """Writes the text; of an entry that is used as a soft prompt only, the tag that names it."""
    new_text = values["text"]
    if values["use"] == "soft" or not new_text.strip():
        new_text = f"[[soft:{values['name']}]]"
    path = first_present(foreign, format.texts)
    content = get(foreign, path) or ""
    lines, text = split_decorators(content) if format.decorated else ([], content)
    remaining = valid_decorators(lines, values)
    differs = MacroNames(character).fill(text).strip("\r\n") != new_text
    if differs or remaining != lines:
        put(foreign, path, "\n".join([*remaining, new_text if differs else text]))


def _write_title(foreign: ForeignEntry, entry: Entry, format: EntryFormat) -> None:
    """Writes the name: the title it was imported under, unless it was renamed since."""
    origin = entry.origin or {}
    renamed = entry.name != origin.get("name")
    title = entry.name if renamed else origin.get("title", entry.name)
    if _original(entry, format) is None:
        for path in format.titles:
            if has(format.new, path):
                put(foreign, path, title)
    elif renamed:
        used = (path for path in format.titles if get(foreign, path))
        put(foreign, next(used, format.titles[0]), title)


def _write_book(data: Any, book: BookContent, format: BookFormat, origin: Any) -> None:
    """Writes the lorebook's name, and its settings as extras."""
    layout = format.layout(data)
    if not layout.extras:  # a bare list
        return
    renamed = not origin or origin.get("name") != book.name
    for path in layout.names[: 1 if origin else None] if renamed else ():
        put(data, path, book.name)
    extras: dict[str, Any] = {"fields": book.settings} if book.settings else {}
    if not layout.names and (renamed or extras_name(data, layout.extras)):
        extras["name"] = book.name
    if extras:
        put(data, layout.extras, extras)
    else:
        drop(data, layout.extras)


def _key(original: Any) -> str | None:
    key = (original or {}).get("key")
    return key if isinstance(key, str) else None


def _entries_without_lore(origin: Any) -> list[Any]:
    """The entries that held no lore at import, by place; those changed by hand are left out."""
    listed = (origin or {}).get("without_lore")
    originals = (
        [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    )
    valid = [o for o in originals if isinstance(o.get("place"), int) and "data" in o]
    return sorted(valid, key=lambda original: original["place"])


def _write_names(data: Any, rows: list[_Row], format: BookFormat, character_name: str) -> None:
    """Stores an entry's name as an extra where the import would give it another.

    A trained prompt is found by its entry's name, so the name must survive the next import.
    """
    names = UniqueNames()
    if character := format.read_character(data):
        names.add(character["name"], "character")
    for place, row in enumerate(rows):
        if row.name:
            title = title_or_key(row.foreign, format.entry, character_name)
            if names.make(title, f"entry {place + 1}") != row.name:
                put(row.foreign, f"{format.entry.extras}.name", row.name)
                put(row.foreign, f"{format.entry.extras}.title", title)
            names.add(row.name, row.name)


def _with_rows(data: Any, rows: list[_Row], format: BookFormat) -> Any:
    """The data with its entries; new ones get numbers that no other has."""
    path = format.layout(data).entries
    container = get(data, path)
    if container is None:
        if not rows:
            return data
        container = get(format.new, format.layout(format.new).entries)
    foreign_dicts = [row.foreign for row in rows if isinstance(row.foreign, dict)]
    used = [row.key for row in rows]
    used += [foreign.get(name) for foreign in foreign_dicts for name in ("uid", "id")]
    last = max((int(n) for n in map(str, used) if n.isdecimal() and len(n) < 16), default=-1)
    by_key: dict[str, ForeignEntry] = {}
    for row in rows:
        needs_key = isinstance(container, dict) and (row.key is None or row.key in by_key)
        last += row.new or needs_key
        if row.new and format.entry.set_number:
            format.entry.set_number(row.foreign, last)
        by_key[str(last) if needs_key or row.key is None else row.key] = row.foreign
    filled: Any = by_key if isinstance(container, dict) else [row.foreign for row in rows]
    if not path:
        return filled
    put(data, path, filled)
    return data
