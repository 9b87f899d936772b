"""A lorebook: entries under one name, read from a file and written to one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from softlore.errors import LoreError
from softlore.lore import files
from softlore.lore.base import LoreModel
from softlore.lore.complaints import describe, nearest, one_line
from softlore.lore.entry import Entry, Name, Origin
from softlore.lore.formats.readers import recognised, unpacked
from softlore.lore.formats.writers import write_as
from softlore.lore.names import as_name
from softlore.lore.plain import plain


class Lorebook(LoreModel):
    """Lore on several subjects, each an entry; no two entries share a name.

    `len(book)` counts the entries, a `for` loop goes through them, `book["Emma"]` finds one and
    `"Emma" in book` asks whether it is there.
    """

    name: Name
    """What the lorebook is called. In a file it may be left out: the file's own name is used."""

    model: str | None = None
    """The model the lore is meant for: a hub id, a folder, or `storyteller`."""

    training: dict[str, Any] = Field(default_factory=dict)
    """Settings to train with where the command names no others."""

    entries: list[Entry]
    """The subjects."""

    origin: Origin | None = None
    """Where the lorebook came from, if it was imported: the name of the `format`, and `data`, what
    the file held besides its entries. It goes back into the file on export."""

    @field_validator("training")
    @classmethod
    def _training_is_plain(cls, training: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = plain(training)
        return kept

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        places: dict[str, int] = {}
        for place, entry in enumerate(self.entries, start=1):
            # Names become file names, and some disks take `emma` and `Emma` for one.
            first = places.setdefault(entry.name.casefold(), place)
            if first != place:
                other = self.entries[first - 1].name
                same = "" if other == entry.name else f" (no other than {other!r} to some disks)"
                raise ValueError(
                    f"names two entries {entry.name!r}{same}: entry {first} and entry {place}; "
                    "rename one, or make them one entry"
                )
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str], name: str | None = None) -> Self:
        """Returns the lorebook in a YAML, JSON or TOML file, or in another program's file.

        The suffix says which of the three; under any other suffix the content does. Other
        programs' files, character cards in pictures among them, are known by what they hold:
        docs/lore-formats.md. `name` is for a file that gives none; without it the file's name,
        less its suffix, is used.

        Raises:
            LoreError: there is no such file, it is over 16 MiB, or it holds no lorebook.
        """
        path = Path(path)
        content, form = unpacked(files.read_bytes(path), str(path), files.form_of(path))
        data = files.parse(content, str(path), form)
        return cls.from_data(data, name=name or as_name(path.stem), source=str(path))

    @classmethod
    def from_data(cls, data: Any, name: str = "lore", source: str = "") -> Self:
        """Returns the lorebook that plain data describes.

        Args:
            data: the fields of a lorebook; a list of entries; or a bare list of blocks, such as
                `[{"call": ..., "response": ...}, ...]` or `[(call, [responses]), ...]`, which
                becomes one entry. Also what another program's JSON file holds.
            name: the lorebook's name if the data gives none, and a bare list's entry's.
            source: what messages call it, such as a file's path.

        Raises:
            LoreError: it is no lorebook.
        """
        try:
            return cls(**_fields(recognised(data, name), name))
        except LoreError as error:
            raise LoreError(one_line(f"{source}: {error}" if source else str(error))) from None

    def save(
        self,
        path: str | os.PathLike[str],
        format: str | None = None,
        into: str | os.PathLike[str] | None = None,
    ) -> None:
        """Writes the lorebook as YAML or JSON, as the path's suffix says.

        Args:
            format: another program's format to write instead, such as `sillytavern`; see
                `softlore.lore.formats.writers.WRITERS`.
            into: for a character card, the picture (.png) or archive (.charx) to put it into.

        Raises:
            LoreError: the suffix or the format is another, or what was put into the lorebook since
                it was made does not fit.
            StorageError: the file cannot be written.
        """
        path = Path(path)
        try:
            data = plain(self.data())
        except ValueError as error:
            raise LoreError(f"lorebook {self.name!r} cannot be saved: {error}") from None
        checked = type(self)(**data)  # what is written can be read again
        if format is None:
            files.write(data, path)
        else:
            write_as(checked, path, format, None if into is None else Path(into))

    def __iter__(self) -> Iterator[Entry]:  # type: ignore[override]
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return any(entry.name == name for entry in self.entries)

    def __getitem__(self, name: str) -> Entry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        names = [entry.name for entry in self.entries]
        raise LoreError(
            f"lorebook {self.name!r} has no entry {name!r}{nearest(str(name), names)}; its entries "
            f"are {', '.join(names) or 'none'}"
        )


def _fields(data: Any, name: str) -> dict[str, Any]:
    """Returns a lorebook's fields, whichever of its forms `data` has."""
    if isinstance(data, dict):
        for key in data:
            if not isinstance(key, str):
                raise LoreError(f"the field name {key!r:.60} is not text; put it in quotes")
        if "entries" not in data and ("blocks" in data or "text" in data):
            raise LoreError("this is a lone entry; put it into a list under `entries`")
        return {**data, "name": name if data.get("name") is None else data["name"]}
    if not isinstance(data, list | tuple):
        raise LoreError(f"a lorebook is fields or a list, but this is {describe(data)}")
    if all(isinstance(item, Entry) or _is_entry(item) for item in data):
        return {"name": name, "entries": list(data)}
    return {"name": name, "entries": [{"name": name, "blocks": _merged(data)}]}


def _is_entry(item: Any) -> bool:
    return isinstance(item, dict) and "name" in item and "call" not in item


def _merged(items: list[Any] | tuple[Any, ...]) -> list[Any]:
    """Returns blocks in which every call stands once, where it stood first."""
    responses: dict[Any, list[Any]] = {}
    for place, item in enumerate(items, start=1):
        call, answers = _pair(item, place)
        listed = list(answers) if isinstance(answers, list | tuple) else [answers]
        if not isinstance(call, str):
            raise LoreError(f"item {place}: `call` must be text, but is {describe(call)}")
        responses.setdefault(call, []).extend(listed)
    return [{"call": call, "responses": answers} for call, answers in responses.items()]


def _pair(item: Any, place: int) -> tuple[Any, Any]:
    if isinstance(item, list | tuple) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, dict) and "call" in item:
        for field in ("response", "responses"):
            if field in item:
                return item["call"], item[field]
        raise LoreError(f"item {place}: `response` is missing; add it")
    raise LoreError(
        f"item {place} must be {{call, response}}, a pair [call, [responses]], or an entry with "
        f"its `name`, but is {describe(item)}"
    )
