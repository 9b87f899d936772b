"""From another program's data to a lorebook's fields, with what it was kept as their origin."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from softlore.errors import LoreError
from softlore.lore.complaints import describe
from softlore.lore.formats import decorators, own, paths
from softlore.lore.formats.forms import BookForm, EntryForm, Theirs
from softlore.lore.names import MAX_NAME, as_name
from softlore.lore.plain import plain

Rows = list[tuple[str | None, Theirs]]
_TAG = re.compile(r"\s*\[\[soft:[^\]\[]*\]\]\s*")
_CHARACTER = re.compile(r"\{\{char\}\}|<BOT>", re.IGNORECASE)


def lorebook_fields(data: Any, form: BookForm, name: str) -> dict[str, Any]:
    """Returns the fields of the lorebook that `data`, which is of the format `form`, holds.

    Entries that hold no lore are kept in the lorebook's origin; `name` is for data that has none.

    Raises:
        LoreError: an entry is not what the format says; the message has its place.
    """
    try:
        data = plain(data)
        subject = form.read_subject(data)
    except ValueError as error:
        raise LoreError(f"{form.title} cannot be read: {error}") from None
    places = form.places(data)
    title = title_of(data, places.names)
    names = Names()
    entries, without_lore = [], []
    if subject:
        subject["name"] = subject["origin"]["name"] = names.give(subject["name"], "character")
        entries.append(subject)
    for place, (key, theirs) in enumerate(rows_of(data, places.entries)):
        try:
            values = read_entry(theirs, form.entry, form.subject_name(data))
        except ValueError as error:
            raise LoreError(f"entry {place + 1} of {form.title}: {error}") from None
        where = {} if key is None else {"key": key}
        if holds_no_lore(values):
            without_lore.append({"place": place, **where, "data": theirs})
            continue
        said = called(theirs, form.entry)
        known = own.recalled_name(paths.get(theirs, form.entry.own), said)
        given = names.give(known or said, f"entry {place + 1}")
        entry_title = title_of(theirs, form.entry.titles)
        more = {"title": entry_title} if entry_title not in ("", given) else {}
        origin = {"format": form.entry.program, "name": given, **more, **where, "data": theirs}
        entries.append({**values, "name": given, "origin": origin})
    told = own.recalled(paths.get(data, places.own), {}) if places.own else {}
    said = title or own_name(data, places.own) or form.subject_name(data)
    book_name = as_name(said[: 4 * MAX_NAME], name)
    origin = {"format": form.name, "name": book_name, "data": emptied(data, places.entries)}
    kept = {"without_lore": without_lore} if without_lore else {}
    return {**told, "name": book_name, "entries": entries, "origin": {**origin, **kept}}


def read_entry(theirs: Any, form: EntryForm, subject: str = "") -> dict[str, Any]:
    """Returns an entry's fields, all but its name and origin; `keys` and `text` always.

    Raises ValueError, in plain words, for what is no entry.
    """
    return own.recalled(paths.get(theirs, form.own), said_by(theirs, form, subject))


def said_by(theirs: Any, form: EntryForm, subject: str = "") -> dict[str, Any]:
    """As `read_entry`, without what softlore has put there under its own names."""
    if not isinstance(theirs, dict):
        raise ValueError(f"must be a mapping of fields to values, but is {describe(theirs)}")
    values: dict[str, Any] = {"keys": []}
    for field in form.fields:
        if (value := field.read(theirs)) is not None:
            values[field.ours] = value
    way = paths.first(theirs, form.texts)
    content = paths.get(theirs, way)
    if content is not None and not isinstance(content, str):
        raise ValueError(f"`{way}` must be text, but is {describe(content)}")
    lines, text = decorators.split(content or "") if form.decorated else ([], content or "")
    values.update(decorators.fields_of(lines))
    values["text"] = in_name_of(subject, text).strip("\r\n")
    return values


def in_name_of(subject: str, text: str) -> str:
    """Text with the character's name where a macro stands for it."""
    return _CHARACTER.sub(lambda macro: subject, text) if subject else text


def holds_no_lore(values: dict[str, Any]) -> bool:
    """Whether there is nothing to learn: no blocks, and no text but a soft prompt's tag."""
    text = values.get("text")
    blank = isinstance(text, str) and (not text.strip() or _TAG.fullmatch(text) is not None)
    return blank and not values.get("blocks")


def rows_of(data: Any, way: str) -> Rows:
    """Returns a file's entries in order, each with its key where they are a mapping.

    Raises LoreError if they are neither a list nor a mapping.
    """
    found = paths.get(data, way)
    if isinstance(found, dict):
        return list(found.items())
    if isinstance(found, list):
        return [(None, theirs) for theirs in found]
    if found is None:
        return []
    raise LoreError(
        f"`{way}` must be a list of entries or a mapping of numbers to entries, but is "
        f"{describe(found)}; export the lorebook again"
    )


def emptied(data: Any, way: str) -> Any:
    """Returns a file's data without its entries."""
    found = paths.get(data, way)
    return paths.replaced(data, way, type(found)()) if isinstance(found, dict | list) else data


def own_name(data: Any, way: str) -> str:
    """The lorebook's name that softlore has put there; empty if it has not."""
    name = paths.get(data, f"{way}.name") if way else None
    return name if isinstance(name, str) else ""


def title_of(theirs: Any, places: tuple[str, ...]) -> str:
    """The first of some titles that holds a letter or digit; empty if none does."""
    for place in places:
        title = paths.get(theirs, place)
        if isinstance(title, str) and as_name(title, ""):
            return title
    return ""


def called(theirs: Theirs, form: EntryForm) -> str:
    """What an entry is called there: its title, else its first key; empty if it has neither."""
    title = title_of(theirs, form.titles)
    return title or next((key for key in said_by(theirs, form)["keys"] if as_name(key, "")), "")


class Names:
    """Names that are legal, and differ also to disks that take `emma` and `Emma` for one."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._numbers: Counter[str] = Counter()

    def free(self, title: str, fallback: str) -> str:
        """Returns the name that a title would be given now."""
        base = name = as_name(title[: 4 * MAX_NAME], fallback)
        while name.casefold() in self._taken:
            number = self._numbers[base.casefold()] + 2
            suffix = f" {number}"
            name = base[: MAX_NAME - len(suffix)].rstrip() + suffix
            if name.casefold() in self._taken:
                self._numbers[base.casefold()] += 1
        return name

    def give(self, title: str, fallback: str) -> str:
        """Returns the name that a title is given from now on."""
        name = self.free(title, fallback)
        self._taken.add(name.casefold())
        return name
