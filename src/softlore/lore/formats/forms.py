"""What a format is: where an entry's fields stand in an object, and the entries in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from softlore.lore.formats import paths
from softlore.lore.formats.values import Convert

if TYPE_CHECKING:
    from softlore.lore.entry import Entry

Theirs = dict[str, Any]  # an entry, as another program keeps it
Values = Mapping[str, Any]  # an entry's fields, as softlore keeps them


def same(value: Any) -> Any:
    """A value that both keep alike."""
    return value


@dataclass(frozen=True)
class Field:
    """One field of an entry, in softlore and in another program.

    Attributes:
        ours: its name in softlore.
        read: what it holds in the other program's object, as softlore has it; None where nothing
            is said. Raises ValueError.
        write: puts it into such an object, given all of softlore's fields.
    """

    ours: str
    read: Callable[[Theirs], Any]
    write: Callable[[Theirs, Values], None]


def at(ours: str, *places: str, read: Convert, write: Convert = same) -> Field:
    """A field that stands in one place; of several, the first that says something holds."""

    def reading(theirs: Theirs) -> Any:
        for place in places:
            if (value := paths.get(theirs, place)) is not None:
                try:
                    return read(value)
                except ValueError as error:
                    raise ValueError(f"`{place}` {error}") from None
        return None

    def writing(theirs: Theirs, values: Values) -> None:
        paths.put(theirs, paths.first(theirs, places), write(values[ours]))

    return Field(ours, reading, writing)


def unread(ours: str, write: Callable[[Theirs, Values], None]) -> Field:
    """A field that the program has no place for, but that has a say in how others are written."""
    return Field(ours, lambda theirs: None, write)


@dataclass(frozen=True)
class EntryForm:
    """How a program keeps an entry.

    Attributes:
        program: what an entry's origin calls it.
        fields: all but name and text.
        texts: where its text may stand; a new entry has it in the first.
        titles: where its name may stand, likewise; the first that is not empty is its name.
        new: an entry as the program makes it, before anything is put in.
        decorated: whether lines that begin with `@@` head its text.
        own: where what the program has no place for is kept, under softlore's own names.
        number: gives a new entry its number in the file, where entries are numbered.
        akin: by another program, places of the same meaning that softlore does not know:
            (there, here).
    """

    program: str
    fields: tuple[Field, ...]
    texts: tuple[str, ...]
    titles: tuple[str, ...]
    new: Mapping[str, Any]
    decorated: bool = False
    own: str = "softlore"
    number: Callable[[Theirs, int], None] | None = None
    akin: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)


class PlaceCodes(NamedTuple):
    """Where in a file's data what belongs to the lorebook stands; empty: nowhere.

    The first of `names` is the lorebook's own; the others stand in for it, and in a new file get
    it too.
    """

    entries: str
    names: tuple[str, ...] = ()
    own: str = ""


@dataclass(frozen=True)
class BookForm:
    """How a program keeps a lorebook.

    Attributes:
        name: what a lorebook's origin calls the format.
        title: what messages call it.
        takes: whether data is of the format.
        entry: how it keeps an entry.
        places: where things stand, given the data.
        new: a file with nothing in it.
        read_subject: what the file tells besides its entries, as an entry's fields, or None.
        write_subject: puts that entry back.
        subject_name: what the macro {{char}} stands for, given the data; empty for nothing.
    """

    name: str
    title: str
    takes: Callable[[Any], bool]
    entry: EntryForm
    places: Callable[[Any], PlaceCodes]
    new: Any
    read_subject: Callable[[Any], dict[str, Any] | None] = lambda data: None
    write_subject: Callable[[Any, Entry], None] = lambda data, entry: None
    subject_name: Callable[[Any], str] = lambda data: ""
