"""The fields of SillyTavern's World Info, which softlore's entries share, wherever they stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from softlore.lore.entry import Position, Role, SelectiveLogic
from softlore.lore.formats import paths
from softlore.lore.formats.forms import Field, Theirs, Values, at, same
from softlore.lore.formats.values import Convert, choice, flag, real, text, texts, whole

POSITIONS: tuple[str, ...] = get_args(Position)
_LOGICS: tuple[str, ...] = get_args(SelectiveLogic)
_ROLES: tuple[str, ...] = get_args(Role)

# our name -> how it is read, how it is written
_PLAIN: dict[str, tuple[Convert, Convert]] = {
    "keys": (texts, same),
    "secondary_keys": (texts, same),
    "constant": (flag, same),
    "selective_logic": (choice(_LOGICS), _LOGICS.index),
    "order": (whole(), same),
    "position": (choice(POSITIONS), POSITIONS.index),
    "depth": (whole(0), same),
    "role": (choice(_ROLES), _ROLES.index),
    "scan_depth": (whole(0), same),
    "case_sensitive": (flag, same),
    "match_whole_words": (flag, same),
    "ignore_budget": (flag, same),
    "exclude_recursion": (flag, same),
    "prevent_recursion": (flag, same),
    "delay_until_recursion": (whole(0), same),
    "group": (text, same),
    "group_override": (flag, same),
    "group_weight": (whole(0), same),
    "sticky": (whole(0), same),
    "cooldown": (whole(0), same),
    "delay": (whole(0), same),
}


def plain_fields(places: Mapping[str, tuple[str, ...]]) -> tuple[Field, ...]:
    """Returns the fields that stand in one place each, by their names in softlore."""
    return tuple(
        at(ours, *there, read=_PLAIN[ours][0], write=_PLAIN[ours][1])
        for ours, there in places.items()
    )


def probability(percent: str, used: str) -> Field:
    """How often the entry is used: a number, and whether it counts."""
    number = at("probability", percent, read=real(0, 100))

    def read(theirs: Theirs) -> Any:
        counts = paths.get(theirs, used)
        return 100 if counts is not None and not flag(counts) else number.read(theirs)

    def write(theirs: Theirs, values: Values) -> None:
        number.write(theirs, values)
        paths.put(theirs, used, True)

    return Field("probability", read, write)


def selective(place: str, others: str) -> Field:
    """Whether secondary keys count: nothing is said while there are none.

    Programs write false, or nothing, for entries that have no secondary keys.
    """
    counts = at("selective", place, read=flag)

    def read(theirs: Theirs) -> Any:
        said = counts.read(theirs)
        return bool(said) if paths.get(theirs, others) else None

    return Field("selective", read, counts.write)
