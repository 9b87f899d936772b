"""Reads another program's data as a lorebook's fields, and stores the original as their origin.

::

    file's data ──layout──▶ entries ──field table──▶ softlore's fields ─┐
        │                      │                                        ├─▶ lorebook
        │                      └─▶ origin of each entry                 │
        ├─ extras (what exporting.py stored under softlore's own name) ─┘
        └─▶ origin of the lorebook: the data less its entries, and the entries without lore

An origin is `{"format", "name", "data"}`: `name` is the name in softlore at import, so that a later
change of it can be seen, and `data` the original. Entries also have their `key`, where the file
holds a mapping, and their `title`, where it is not their name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from softlore.errors import LoreError
from softlore.lore.formats.format import BookFormat, EntryFormat, ForeignEntry, first_present, get
from softlore.lore.formats.key_syntax import decorator_fields, split_decorators
from softlore.lore.macros import MacroNames
from softlore.lore.names import MAX_NAME, as_name
from softlore.lore.plain import plain
from softlore.lore.validation import describe

NO_EXTRAS = frozenset({"name", "origin", "entries"})  # fields that are never stored as extras
_ABSENT = object()
_TAG = re.compile(r"\s*\[\[soft:[^\]\[]*\]\]\s*")


def import_lorebook(data: Any, format: BookFormat, name: str) -> dict[str, Any]:
    """Returns the fields of the lorebook in `data`; its name is `name` if the data gives none.

    Raises LoreError for data that does not fit the format.
    """
    try:
        data = plain(data, mend=True)
        character = format.read_character(data)
    except ValueError as error:
        raise LoreError(f"{format.title} cannot be read: {error}; export it again") from None
    layout = format.layout(data)
    character_name = format.character_name(data)
    title = first_title(data, layout.names) or extras_name(data, layout.extras)
    names = UniqueNames()
    entries: list[dict[str, Any]] = []
    without_lore: list[dict[str, Any]] = []
    if character:
        unique = names.add(character["name"], "character")
        character["name"] = character["origin"]["name"] = unique
        entries.append(character)
    container = get(data, layout.entries)
    for place, (key, foreign) in enumerate(_list_entries(container, layout.entries)):
        original = {**({} if key is None else {"key": key}), "data": foreign}
        if foreign is None:
            without_lore.append({"place": place, **original})
            continue
        try:
            values = read_fields(foreign, format.entry, character_name)
        except ValueError as error:
            raise LoreError(
                f"entry {place + 1} of {format.title}: {error}; fix it, or export it again"
            ) from None
        values = with_extras(values, get(foreign, format.entry.extras))
        if holds_no_lore(values):
            without_lore.append({"place": place, **original})
        else:
            entries.append(
                _with_origin(values, original, format.entry, names, place, character_name)
            )
    extras = with_extras({}, get(data, layout.extras)) if layout.extras else {}
    book_name = as_name((title or character_name)[: 4 * MAX_NAME], name)
    if container:
        container.clear()  # in `data`, which is a copy
    origin = {"format": format.name, "name": book_name, "data": data}
    if without_lore:
        origin["without_lore"] = without_lore
    return {**extras, "name": book_name, "entries": entries, "origin": origin}


def _with_origin(
    values: dict[str, Any],
    original: dict[str, Any],
    format: EntryFormat,
    names: UniqueNames,
    place: int,
    character: str,
) -> dict[str, Any]:
    """An entry's fields with its name and origin."""
    foreign = original["data"]
    known_as = title_or_key(foreign, format, character)
    extras = get(foreign, format.extras)
    if isinstance(extras, dict) and extras.get("title") == known_as:
        known_as = extras_name(foreign, format.extras) or known_as
    name = names.add(known_as, f"entry {place + 1}")
    origin = {"format": format.program, "name": name}
    if (title := first_title(foreign, format.titles)) not in ("", name):
        origin["title"] = title
    return {**values, "name": name, "origin": origin | original}


def read_fields(foreign: Any, format: EntryFormat, character: str = "") -> dict[str, Any]:
    """Returns an entry's fields, without its name and extras; `keys` and `text` are always set.

    Raises ValueError if it is no entry.
    """
    if not isinstance(foreign, dict):
        raise ValueError(f"must be a mapping of fields to values, but is {describe(foreign)}")
    names = MacroNames(character)
    values: dict[str, Any] = {"keys": []}
    for field in format.fields:
        if (value := field.read(foreign)) is not None:
            if field.name in ("keys", "secondary_keys"):
                value = [names.fill_key(key) for key in value]
            values[field.name] = value
    path = first_present(foreign, format.texts)
    content = get(foreign, path)
    if content is not None and not isinstance(content, str):
        raise ValueError(f"`{path}` must be text, but is {describe(content)}")
    lines, text = split_decorators(content or "") if format.decorated else ([], content or "")
    text = names.fill(text).strip("\r\n")
    return {**values, **decorator_fields(lines), "text": text}


def with_extras(values: Mapping[str, Any], extras: Any) -> dict[str, Any]:
    """Returns `values` updated by a record of extras in a file (see `exporting.extras_of`).

    A field counts only while the file has the value it had when the record was written, so that a
    change made in the other program has effect.
    """
    record = extras if isinstance(extras, dict) else {}
    added, instead = record.get("fields"), record.get("instead_of", {})
    if not isinstance(added, dict) or not isinstance(instead, dict):
        return dict(values)
    same = [n for n in added if values.get(n, _ABSENT) == instead.get(n, _ABSENT)]
    return {**values, **{name: added[name] for name in same if name not in NO_EXTRAS}}


def holds_no_lore(values: dict[str, Any]) -> bool:
    """Whether there is nothing to train on: no blocks, and no text but a soft prompt's tag."""
    text = values.get("text")
    blank = isinstance(text, str) and (not text.strip() or _TAG.fullmatch(text) is not None)
    return blank and not values.get("blocks")


def _list_entries(entries: Any, path: str) -> list[tuple[str | None, Any]]:
    """A file's entries in order, each with its key where they are a mapping."""
    if isinstance(entries, dict):
        return list(entries.items())
    if isinstance(entries, list):
        return [(None, foreign) for foreign in entries]
    if entries is None:
        return []
    raise LoreError(
        f"`{path}` must be a list of entries or a mapping of numbers to entries, but is "
        f"{describe(entries)}; export the lorebook again"
    )


def extras_name(data: Any, path: str) -> str:
    """Returns the name among softlore's extras at a path; empty if there is none."""
    name = get(data, f"{path}.name") if path else None
    return name if isinstance(name, str) else ""


def first_title(data: Any, paths: tuple[str, ...]) -> str:
    """Returns the first title that has a letter or digit; empty if none has."""
    titles = (get(data, path) for path in paths)
    return next((title for title in titles if isinstance(title, str) and as_name(title, "")), "")


def title_or_key(foreign: ForeignEntry, format: EntryFormat, character: str = "") -> str:
    """Returns an entry's title, else its first key; empty if it has neither."""
    title = first_title(foreign, format.titles)
    keys = [] if title else read_fields(foreign, format, character)["keys"]
    return title or next((key for key in keys if as_name(key, "")), "")


class UniqueNames:
    """Makes legal names of titles, no two of which differ only in upper and lower case."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._numbers: Counter[str] = Counter()

    def make(self, title: str, fallback: str) -> str:
        """Returns the name for a title, with a number if the name is in use."""
        base = name = as_name(title[: 4 * MAX_NAME], fallback)
        while name.casefold() in self._used:
            suffix = f" {self._numbers[base.casefold()] + 2}"
            name = base[: MAX_NAME - len(suffix)].rstrip() + suffix
            self._numbers[base.casefold()] += name.casefold() in self._used
        return name

    def add(self, title: str, fallback: str) -> str:
        """Returns the name for a title, and marks it as in use."""
        name = self.make(title, fallback)
        self._used.add(name.casefold())
        return name
