"""Lorebook: entries under one name, loaded from a file, checked, and saved to one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from softlore.errors import LoreError
from softlore.lore import files
from softlore.lore.entry import Entry, Name, Origin, PlainFields
from softlore.lore.formats.containers import read_card
from softlore.lore.formats.exporting import BookContent
from softlore.lore.formats.registry import (
    card_opening,
    character_name,
    export_file,
    find_exporter,
    lorebook_fields,
)
from softlore.lore.macros import MacroNames, Named
from softlore.lore.names import as_name
from softlore.lore.opening import CardOpening
from softlore.lore.plain import plain
from softlore.lore.validation import LoreModel, describe, nearest, one_line
from softlore.settings.arguments import BYTES, PATH, PATHLIKE, TEXT, expecting


class Lorebook(LoreModel):
    """Lore on several subjects, each an entry; no two entries have the same name.

    It is a collection of its entries: `len(book)`, `for entry in book`, `book["Emma"]` and
    `"Emma" in book` work.
    """

    name: Name
    """What the lorebook is called. In a file it may be left out: the file's own name is used."""

    model: str | None = None
    """The model the lore is meant for: a short name, a folder, a GGUF file or a hub id."""

    training: PlainFields = Field(default_factory=dict)
    """Settings to train with where the command names no others."""

    char: str = ""
    """Name that the macro `{{char}}` stands for in the lore. Empty: the imported card's."""

    user: str = ""
    """Name that the macro `{{user}}` stands for in the lore, the reader's. Empty: `You`."""

    entries: list[Entry]
    """The subjects."""

    origin: Origin | None = None
    """Where the lorebook came from, if it was imported: the name of the `format`, and `data`, what
    the file held besides its entries. It goes back into the file on export."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        numbers: dict[str, int] = {}
        for number, entry in enumerate(self.entries, start=1):
            # Names become file names, and some file systems do not tell `emma` from `Emma`.
            first = numbers.setdefault(entry.name.casefold(), number)
            if first != number:
                other = self.entries[first - 1].name
                same = "" if other == entry.name else f" (the same as {other!r} on some disks)"
                raise ValueError(
                    f"names two entries {entry.name!r}{same}: entry {first} and entry {number}; "
                    "rename one, or merge them"
                )
        return self

    @classmethod
    @expecting(path=PATHLIKE, name=TEXT.optional)
    def load(cls, path: str | os.PathLike[str], name: str | None = None) -> Self:
        """Returns the lorebook in a YAML, JSON or TOML file, or in another program's file.

        The syntax follows from the suffix, or with any other suffix from the content. Other
        programs' files, such as pictures with a character card, are detected by their content:
        docs/lore-formats.md.

        Args:
            name: the lorebook's name if the file gives none; None: the file's name, less its
                suffix.

        Raises:
            LoreError: there is no such file, it is over 16 MiB, or it holds no lorebook.
        """
        return cls.from_bytes(files.read_bytes(Path(path)), str(path), name)

    @classmethod
    @expecting(content=BYTES, source=TEXT, name=TEXT.optional)
    def from_bytes(cls, content: bytes, source: str, name: str | None = None) -> Self:
        """Returns the lorebook in a file's content; `source` is the file's path or name.

        Raises LoreError as `load` does.
        """
        files.check_size(len(content), source)
        card = read_card(content, source)
        syntax = "json" if card else files.syntax_of(Path(source))
        data = files.parse(content if card is None else card, source, syntax)
        return cls.from_data(data, name=name or as_name(Path(source).stem), source=source)

    @classmethod
    def from_data(cls, data: Any, name: str = "lore", source: str = "") -> Self:
        """Returns the lorebook that plain data describes.

        Args:
            data: the fields of a lorebook; a list of entries; or a bare list of blocks, such as
                `[{"call": ..., "response": ...}, ...]` or `[(call, [responses]), ...]`, which
                becomes one entry. Also the content of another program's JSON file.
            name: the lorebook's name if the data gives none, and a bare list's entry's.
            source: what messages call it, such as a file's path.

        Raises:
            LoreError: it is no lorebook.
        """
        try:
            return cls(**(lorebook_fields(data, name) or _fields(data, name)))
        except LoreError as error:
            raise LoreError(one_line(f"{source}: {error}" if source else str(error))) from None

    def names(self, *before: Named | None) -> MacroNames:
        """Returns the names that macros stand for: the book's, unless `before` it one is given."""
        card = MacroNames(char=character_name(self.origin))
        return MacroNames.first(*before, self, card)

    def resolved(self, *before: Named | None) -> Self:
        """Returns the book as a model reads it: with names in place of its macros.

        Args:
            before: settings whose names stand in place of the book's own.
        """
        names = self.names(*before)
        return self.model_copy(update={"entries": list(map(names.fill_entry, self.entries))})

    def opening(self, *before: Named | None) -> CardOpening:
        """Returns how the imported card's story begins; an empty opening for no card."""
        return card_opening(self.origin).fill(self.names(*before))

    @expecting(format=TEXT)
    def to_format(self, format: str) -> Any:
        """Returns the data of another program's file that holds the lorebook.

        `format` is a name in `softlore.lore.formats.registry.EXPORTERS`, such as `sillytavern`.
        Raises LoreError for others, and for a format that can store none of the lorebook.
        """
        return find_exporter(format).data(self._content())

    @expecting(LoreError, path=PATH, format=TEXT.optional, into=PATH.optional)
    def save(
        self,
        path: str | os.PathLike[str],
        format: str | None = None,
        into: str | os.PathLike[str] | None = None,
    ) -> None:
        """Writes the lorebook as YAML or JSON, by the path's suffix, atomically.

        Args:
            format: another program's format to write instead, as in `to_format`.
            into: for a character card, the picture (.png) or archive (.charx) to put it into.

        Raises:
            LoreError: an unknown suffix or format, or a value was assigned to the lorebook that
                does not fit.
            StorageError: the file cannot be written.
        """
        path = Path(path)
        try:
            data = plain(self.data())
        except ValueError as error:
            raise LoreError(f"lorebook {self.name!r} cannot be saved: {error}") from None
        checked = type(self)(**data)  # assignments are not validated, so what is written is
        if format is None:
            files.write(data, path)
        else:
            export_file(checked._content(), path, format, None if into is None else Path(into))

    def _content(self) -> BookContent:
        settings = self.model_dump(exclude={"name", "entries", "origin"}, exclude_defaults=True)
        return BookContent(self.name, self.entries, self.origin, settings)

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
    """Returns a lorebook's fields from softlore's own data."""
    if isinstance(data, dict):
        for key in data:
            if not isinstance(key, str):
                raise LoreError(f"the field name {key!r:.60} is not text; put it in quotes")
        if "entries" not in data and ("blocks" in data or "text" in data):
            raise LoreError("this is a single entry; put it into a list under `entries`")
        return {**data, "name": name if data.get("name") is None else data["name"]}
    if not isinstance(data, list | tuple):
        raise LoreError(
            f"a lorebook is fields or a list, not {describe(data)}; see docs/lorebook.md"
        )
    if all(isinstance(item, Entry) or _is_entry(item) for item in data):
        return {"name": name, "entries": list(data)}
    return {"name": name, "entries": [{"name": name, "blocks": _merge_blocks(data)}]}


def _is_entry(item: Any) -> bool:
    return isinstance(item, dict) and "name" in item and "call" not in item


def _merge_blocks(items: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns mkultra's bare list as blocks, each call once, where it is first."""
    responses: dict[str, list[Any]] = {}
    for number, item in enumerate(items, start=1):
        match item:
            case (
                [call, answers]
                | {"call": call, "response": answers}
                | {"call": call, "responses": answers}
            ):
                if not isinstance(call, str):
                    raise LoreError(
                        f"item {number}: `call` must be text, but is {describe(call)}; change it"
                    )
                listed = answers if isinstance(answers, list | tuple) else [answers]
                responses.setdefault(call, []).extend(listed)
            case {"call": _}:
                raise LoreError(f"item {number}: `response` is missing; add it")
            case _:
                raise LoreError(
                    f"item {number} must be {{call, response}}, a pair [call, [responses]], or an "
                    f"entry with its `name`, but is {describe(item)}; change it"
                )
    return [{"call": call, "responses": answers} for call, answers in responses.items()]
