"""Describes other programs' lorebook formats: tables of fields, and the layout of files.

Each program has an `EntryFormat` and a `BookFormat`, in `programs.py` or `cards.py`; `importing.py`
and `exporting.py` read and write by them, `registry.py` lists them. A format lists its fields as
`field("order", "contextConfig.budgetPriority")`: the field's name in softlore, and the path of keys
at which the other program stores it. How a value is read follows from the field's type in softlore,
unless the format gives its own conversion.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from softlore.lore.entry import Entry, Position, Role, SelectiveLogic
from softlore.lore.opening import CardOpening
from softlore.lore.validation import describe

ForeignEntry = dict[str, Any]  # an entry as another program stores it
Values = Mapping[str, Any]  # an entry's fields as softlore stores them
Convert = Callable[[Any], Any]
Write = Callable[[ForeignEntry, Values], None]

# Paths: "extensions.depth" is data["extensions"]["depth"]; the empty path is the data itself. -----


def get(data: Any, path: str) -> Any:
    """Returns the value at a path; None where there is none."""
    for step in path.split(".") if path else []:
        data = data.get(step) if isinstance(data, dict) else None
    return data


def put(data: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value at a path, and creates missing mappings along it."""
    *steps, last = path.split(".")
    for step in steps:
        if not isinstance(data.get(step), dict):
            data[step] = {}
        data = data[step]
    data[last] = value


def drop(data: Any, path: str) -> None:
    """Removes the value at a path, if there is one."""
    parent, _, last = path.rpartition(".")
    if has(data, path):
        del get(data, parent)[last]


def has(data: Any, path: str) -> bool:
    """Whether there is a value at a path; null is one."""
    parent, _, last = path.rpartition(".")
    container = get(data, parent)
    return isinstance(container, dict) and last in container


def first_present(data: Any, paths: tuple[str, ...]) -> str:
    """Returns the first path that has a value; the first of all if none has."""
    return next((path for path in paths if has(data, path)), paths[0])


# Conversions take a value from a file, never null, and return softlore's value, or None where the
# value says nothing. Programs write numbers as text, an empty text where there is no number, and
# flags as numbers. A ValueError describes any other value. ----------------------------------------


def flag(value: Any) -> bool:
    """True or false, also as 1 and 0 or as a word."""
    number = _FLAGS.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(number, int | float):
        raise ValueError(f"must be true or false, but is {describe(value)}")
    return bool(number)


def inverted_flag(value: Any) -> bool:
    """The opposite of a flag: one program has `disable` where another has `enabled`."""
    return not flag(value)


def number(low: float, high: float) -> Convert:
    """A number, also as text, clamped to its bounds; None for blank text."""

    def convert(value: Any) -> int | float | None:
        if isinstance(value, str) and not value.strip():
            return None
        try:
            parsed = float(value[:40]) if isinstance(value, str) else value
        except ValueError:
            parsed = None
        if not isinstance(parsed, int | float) or not math.isfinite(parsed):
            raise ValueError(f"must be a number, but is {describe(value)}")
        return min(max(parsed, low), high)

    return convert


def integer(low: int = -(2**63) + 1, high: int = 2**63 - 1) -> Convert:
    """A whole number, also as text or a flag, clamped to its bounds."""
    within = number(low, high)

    def convert(value: Any) -> int | None:
        parsed = within(value)
        return None if parsed is None else min(max(int(parsed), low), high)  # float(high) rounds up

    return convert


def text(value: Any) -> str:
    """Text; a number becomes text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be text, but is {describe(value)}")
    return str(value)


def texts(value: Any) -> list[str]:
    """A list of texts, or one text for a list of one; blank ones and nulls are left out."""
    listed = value if isinstance(value, list | tuple) else [value]
    return [item for item in map(text, filter(_is_given, listed)) if item.strip()]


def _is_given(value: Any) -> bool:
    return value is not None


def choice(words: Sequence[str]) -> Convert:
    """One of `words`, by its number or itself; None for a choice that softlore does not have.

    Some programs write an object, whose `type` is the choice.
    """

    def convert(value: Any) -> str | None:
        if isinstance(value, dict):
            value = value.get("type", "")
        if isinstance(value, str) and value in words:
            return value
        if not isinstance(value, int | float | str):
            expected = ", ".join(words)
            raise ValueError(f"must be one of {expected}, or its number, but is {describe(value)}")
        try:
            place = int(value)
        except (ValueError, OverflowError):
            return None
        return words[place] if 0 <= place < len(words) else None

    return convert


_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
POSITIONS: tuple[str, ...] = get_args(Position)
_CHOICES = {  # SillyTavern and cards write these as numbers, in this order
    "position": POSITIONS,
    "role": get_args(Role),
    "selective_logic": get_args(SelectiveLogic),
}
_READ: dict[str, Convert] = {
    **dict.fromkeys(("keys", "secondary_keys"), texts),
    **dict.fromkeys(("enabled", "constant", "selective", "group_override"), flag),
    **dict.fromkeys(("case_sensitive", "match_whole_words", "ignore_budget"), flag),
    **dict.fromkeys(("exclude_recursion", "prevent_recursion"), flag),
    **dict.fromkeys(("depth", "scan_depth", "delay_until_recursion", "group_weight"), integer(0)),
    **dict.fromkeys(("sticky", "cooldown", "delay"), integer(0)),
    **{name: choice(words) for name, words in _CHOICES.items()},
    "order": integer(),
    "probability": number(0, 100),
    "group": text,
}

# The table of a format ---------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldMapping:
    """One field of an entry: its name in softlore, and how it is read from and written to another.

    `read` returns None if the field is absent, and raises ValueError. `write` is given the other
    program's entry and all of softlore's fields.
    """

    name: str
    read: Callable[[ForeignEntry], Any]
    write: Write


def field(
    name: str,
    *paths: str,
    read: Convert | None = None,
    write: Convert | None = None,
    writer: Write | None = None,
) -> FieldMapping:
    """A field that is stored at a path; of several paths, the first that says something counts.

    Args:
        paths: none for a field that the program lacks but that changes how others are written.
        read: converts the program's value to softlore's; None: by the field's type in softlore.
        write: converts softlore's value back; None: choices as numbers, the rest unchanged.
        writer: replaces `write` and the path: writes the field, given the entry and all values.
    """
    convert = read or _READ[name]
    words = _CHOICES.get(name, ())

    def reading(foreign: ForeignEntry) -> Any:
        for path in paths:
            try:
                value = get(foreign, path)
                if value is not None and (converted := convert(value)) is not None:
                    return converted
            except ValueError as error:
                raise ValueError(f"`{path}` {error}") from None
        return None

    def writing(foreign: ForeignEntry, values: Values) -> None:
        value = values[name]
        converted = write(value) if write else words.index(value) if words else value
        put(foreign, first_present(foreign, paths), converted)

    return FieldMapping(name, reading, writer or writing)


def fields(paths: Mapping[str, str]) -> tuple[FieldMapping, ...]:
    """Fields that are stored at one path each, by their names in softlore."""
    return tuple(field(name, path) for name, path in paths.items())


def probability(percent: str, used: str) -> FieldMapping:
    """The probability: a number, and a flag that says whether it counts."""
    plain = field("probability", percent)

    def read(foreign: ForeignEntry) -> Any:
        counts = get(foreign, used)
        return 100 if counts is not None and not flag(counts) else plain.read(foreign)

    def write(foreign: ForeignEntry, values: Values) -> None:
        plain.write(foreign, values)
        put(foreign, used, True)

    return FieldMapping("probability", read, write)


def selective(path: str, secondary_keys: str) -> FieldMapping:
    """Whether secondary keys count; read only where there are such keys."""
    plain = field("selective", path)
    return FieldMapping(
        "selective",
        lambda foreign: bool(plain.read(foreign)) if get(foreign, secondary_keys) else None,
        plain.write,
    )


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
        equivalents: by another program, pairs of paths (there, here) of the same meaning that
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
    equivalents: Mapping[str, tuple[tuple[str, str], ...]] = dataclasses.field(default_factory=dict)


class BookLayout(NamedTuple):
    """Paths of a lorebook's parts in a file's data."""

    entries: str  # a list or a mapping; the empty path is the file itself
    names: tuple[str, ...] = ()  # the first with a value is read; a new file has it at all of them
    extras: str = ""  # as in `EntryFormat`; empty where the file has no place for it


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
        write_character: writes that entry to the card.
        character_name: what the macro {{char}} stands for; empty for nothing.
        read_opening: how a card's story begins.
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
    read_opening: Callable[[Any], CardOpening] = lambda data: CardOpening()
