"""From a lorebook to another program's data: its original, with what was changed since put in.

Where an entry came from the same program, its original object is taken, and only fields that say
something else now are written. What the program has no place for goes under softlore's own names.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from softlore.errors import LoreError
from softlore.lore.entry import Entry
from softlore.lore.formats import decorators, own, paths
from softlore.lore.formats.forms import BookForm, EntryForm, Theirs, Values
from softlore.lore.formats.importing import Names, called, in_name_of, own_name, said_by

if TYPE_CHECKING:
    from softlore.lore.lorebook import Lorebook

SUBJECT = "subject"  # the part of a file, besides its entries, that an entry was made of


class _EntryRow(NamedTuple):
    """An entry of a file.

    `key` is its key where they are a mapping; `fresh`, whether the file did not have it before;
    `name`, its name in softlore, empty for one that holds no lore.
    """

    theirs: Theirs
    key: str | None
    fresh: bool = False
    name: str = ""


def lorebook_data(book: Lorebook, form: BookForm) -> Any:
    """Returns the whole content of a file of the format `form` that holds the lorebook.

    Raises LoreError if an origin was changed by hand, so that it is not what the format has.
    """
    origin = book.origin if _is_of(book.origin, form) else None
    data = copy.deepcopy(origin["data"] if origin else form.new)
    subject_name = form.subject_name(data)  # before it is changed: the originals speak of it
    entries = []
    for entry in book:
        if origin and _is_subject(entry):
            form.write_subject(data, entry)
        else:
            entries.append(entry)
    if not any(field.ours == "order" for field in form.entry.fields):
        entries.sort(key=lambda entry: entry.order)  # their place in the list is all there is
    _write_book(data, book, form, origin)
    if not origin:
        subject_name = form.subject_name(data)
    rows: list[_EntryRow] = []
    for entry in entries:
        fresh = original(entry, form.entry) is None
        key = None if fresh else _key(entry.origin)
        try:
            theirs = write_entry(entry, form.entry, subject_name)
        except ValueError as error:
            raise LoreError(
                f"entry {entry.name!r}: its `origin` is not what {form.title} has: {error}; take "
                "it out, or import the file again"
            ) from None
        rows.append(_EntryRow(theirs, key, fresh, entry.name))
    for kept in _without_lore(origin):
        rows.insert(kept["place"], _EntryRow(copy.deepcopy(kept["data"]), _key(kept)))
    _keep_names(data, rows, form)
    return _with_rows(data, form.places(data).entries, rows, form)


def write_entry(entry: Entry, form: EntryForm, subject: str = "") -> Theirs:
    """Returns an entry as the program keeps it, its original object taken where it has one.

    Args:
        subject: what {{char}} stands for in the original.

    Raises ValueError if the original is not what the program keeps.
    """
    source = original(entry, form)
    theirs: Theirs = copy.deepcopy(dict(form.new) if source is None else source)
    paths.drop(theirs, form.own)
    values = entry.model_dump()
    said_by(theirs, form, subject)  # which raises ValueError where it is not sound
    _write_text(theirs, values, form, subject)
    defaults = own.defaults_of(Entry)
    for _ in range(2):  # a field may mean something else once another was written
        said = said_by(theirs, form, subject)
        for field in form.fields:
            if said.get(field.ours, defaults[field.ours]) != values[field.ours]:
                field.write(theirs, values)
    _write_title(theirs, entry, form)
    if source is None and entry.origin:
        for there, here in form.akin.get(entry.origin["format"], ()):
            if paths.has(entry.origin["data"], there):
                paths.put(theirs, here, copy.deepcopy(paths.get(entry.origin["data"], there)))
    if left := own.record(values, said_by(theirs, form, subject), Entry):
        paths.put(theirs, form.own, left)
    return theirs


def original(entry: Entry, form: EntryForm) -> Theirs | None:
    """The object that an entry was made of, if the same program kept it."""
    origin = entry.origin
    if not origin or origin["format"] != form.program or _is_subject(entry):
        return None
    return origin["data"] if isinstance(origin["data"], dict) else None


def _is_of(origin: dict[str, Any] | None, form: BookForm) -> bool:
    """Whether a lorebook's origin is of the format, and the data in it of the right kind."""
    if origin is None or origin["format"] != form.name:
        return False
    data = origin["data"]
    return isinstance(data, dict | list) and isinstance(
        data, dict if form.places(data).entries else list
    )


def _is_subject(entry: Entry) -> bool:
    return entry.origin is not None and entry.origin.get("part") == SUBJECT


def _write_text(theirs: Theirs, values: Values, form: EntryForm, subject: str) -> None:
    """An entry that is to stand in a story as a soft prompt only is named there by its tag."""
    wanted = values["text"]
    if values["use"] == "soft" or not wanted.strip():
        wanted = f"[[soft:{values['name']}]]"
    way = paths.first(theirs, form.texts)
    content = paths.get(theirs, way) or ""
    lines, text = decorators.split(content) if form.decorated else ([], content)
    kept = decorators.still_true(lines, values)
    differs = in_name_of(subject, text).strip("\r\n") != wanted
    if differs or kept != lines:
        paths.put(theirs, way, decorators.joined(kept, wanted if differs else text))


def _write_title(theirs: Theirs, entry: Entry, form: EntryForm) -> None:
    """The name as it was once written, unless the entry was given another since."""
    origin = entry.origin or {}
    kept = entry.name == origin.get("name")
    fresh = original(entry, form) is None
    if kept and not fresh:
        return
    title = origin.get("title", entry.name) if kept else entry.name
    said = [way for way in form.titles if paths.get(theirs, way)]
    new = [way for way in form.titles if paths.has(form.new, way)]
    for way in new if fresh else said[:1] or form.titles[:1]:
        paths.put(theirs, way, title)


def _write_book(data: Any, book: Lorebook, form: BookForm, origin: Any) -> None:
    """The lorebook's name, and what only softlore knows of it."""
    places = form.places(data)
    if not places.own:  # a bare list
        return
    renamed = not origin or origin.get("name") != book.name
    for way in places.names[: 1 if origin else None] if renamed else ():
        paths.put(data, way, book.name)
    values = {k: v for k, v in book.model_dump().items() if k not in own.NEVER}
    left = own.record(values, {}, type(book)) or {}
    if not places.names and (renamed or own_name(data, places.own)):
        left["name"] = book.name
    if left:
        paths.put(data, places.own, left)
    else:
        paths.drop(data, places.own)


def _key(kept: Any) -> str | None:
    key = (kept or {}).get("key")
    return key if isinstance(key, str) else None


def _without_lore(origin: Any) -> list[Any]:
    """Entries that held no lore when the file was read, as far as they are whole."""
    found = (origin or {}).get("without_lore")
    sound = [
        kept
        for kept in (found if isinstance(found, list) else [])
        if isinstance(kept, dict) and isinstance(kept.get("place"), int) and "data" in kept
    ]
    return sorted(sound, key=lambda kept: kept["place"])


def _keep_names(data: Any, rows: list[_EntryRow], form: BookForm) -> None:
    """Puts an entry's name beside its title where the title alone would give it another.

    A trained prompt is found by its entry's name, so that must come back.
    """
    names = Names()
    if subject := form.read_subject(data):
        names.give(subject["name"], "character")
    for place, (theirs, _, _, name) in enumerate(rows):
        if name:
            title = called(theirs, form.entry)
            if names.free(title, f"entry {place + 1}") != name:
                paths.put(theirs, f"{form.entry.own}.name", name)
                paths.put(theirs, f"{form.entry.own}.title", title)
            names.give(name, name)


def _with_rows(data: Any, way: str, rows: list[_EntryRow], form: BookForm) -> Any:
    """The data with its entries; those that are new are given numbers that no other has."""
    shape = paths.get(data, way)
    if shape is None:
        if not rows:
            return data
        shape = paths.get(form.new, form.places(form.new).entries)
    said = [str(number) for row in rows for number in (row.key, *_numbers(row.theirs))]
    number = max((int(n) for n in said if n.isdecimal() and len(n) < 16), default=-1)
    listed: list[Theirs] = []
    by_key: dict[str, Theirs] = {}
    for theirs, key, fresh, _ in rows:
        unplaced = isinstance(shape, dict) and (key is None or key in by_key)
        number += fresh or unplaced
        if fresh and form.entry.number:
            form.entry.number(theirs, number)
        listed.append(theirs)
        by_key[str(number) if unplaced or key is None else key] = theirs
    filled: Any = by_key if isinstance(shape, dict) else listed
    if not way:
        return filled
    paths.put(data, way, filled)
    return data


def _numbers(theirs: Any) -> list[Any]:
    """The numbers by which programs know an entry."""
    return [theirs.get(field) for field in ("uid", "id")] if isinstance(theirs, dict) else []
