"""What describes another program's lorebook format: its entries, and its files.

Each program's module declares one `EntryFormat` and one `BookFormat` (character cards: three);
`importing.py` and `exporting.py` read and write by them, `registry.py` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from softlore.lore.entry import Entry
from softlore.lore.formats.fields import FieldMapping, ForeignEntry


@dataclass(frozen=True)
class EntryFormat:
    """How a program stores an entry.

    Attributes:
        program: the `format` in the origin of an imported entry.
        fields: all but name and text.
        texts: paths where the text may be; a new entry has it at the first.
        titles: paths where the name may be; the first that is not empty is used.
        new: an entry as the program creates it, before anything is filled in.
        decorated: whether the text may begin with lines of decorators (`@@depth 4`).
        extras: path of what the program has no place for, stored under softlore's own names.
        set_number: gives a new entry its number in the file, where entries are numbered.
        equivalents: by another program, pairs of paths (there, here) that mean the same and that
            softlore has no field for.
    """

    program: str
    fields: tuple[FieldMapping, ...]
    texts: tuple[str, ...]
    titles: tuple[str, ...]
    new: Mapping[str, Any]
    decorated: bool = False
    extras: str = "softlore"
    set_number: Callable[[ForeignEntry, int], None] | None = None
    equivalents: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)


class BookLayout(NamedTuple):
    """Paths of a lorebook's parts in a file's data.

    Attributes:
        entries: a list or a mapping; the empty path is the file itself.
        names: the lorebook's name first, then what is used where that is missing; a new file gets
            the name at all of them.
        extras: as in `EntryFormat`; empty where the file has no place for it.
    """

    entries: str
    names: tuple[str, ...] = ()
    extras: str = ""


@dataclass(frozen=True)
class BookFormat:
    """How a program stores a lorebook.

    Attributes:
        name: the `format` in the origin of an imported lorebook.
        title: what error messages call it.
        detect: whether data is of this format.
        layout: where its parts are, given the data.
        new: the data of an empty file.
        read_character: a card's character as the fields of an entry, or None.
        write_character: puts that entry back into the card.
        character_name: what the macro {{char}} stands for; empty for nothing.
    """

    name: str
    title: str
    detect: Callable[[Any], bool]
    entry: EntryFormat
    layout: Callable[[Any], BookLayout]
    new: Any
    read_character: Callable[[Any], dict[str, Any] | None] = lambda data: None
    write_character: Callable[[Any, Entry], None] = lambda data, entry: None
    character_name: Callable[[Any], str] = lambda data: ""
