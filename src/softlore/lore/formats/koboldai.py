"""KoboldAI's World Info: in a save of KoboldAI or KoboldAI Lite, or as a list by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softlore.errors import LoreError
from softlore.lore.complaints import describe
from softlore.lore.formats import paths
from softlore.lore.formats.forms import BookForm, EntryForm, Field, PlaceCodes, Theirs, Values, at
from softlore.lore.formats.importing import lorebook_fields
from softlore.lore.formats.keys import join_list, split_list
from softlore.lore.formats.values import flag, no_flag, real, text, texts
from softlore.lore.formats.worldinfo import selective

if TYPE_CHECKING:
    from softlore.lore.lorebook import Lorebook

_NEW = {
    "key": "",
    "keysecondary": "",
    "keyanti": "",
    "content": "",
    "comment": "",
    "folder": None,
    "selective": False,
    "constant": False,
    "probability": "100",
    "wigroup": "",
    "widisabled": False,
}
_SAVE = {
    "gamestarted": True,
    "prompt": "",
    "memory": "",
    "authorsnote": "",
    "anotetemplate": "",
    "actions": [],
    "worldinfo": [],
}
_KEYS = ("key", "keys")  # the second in lists of AI Dungeon's first years, which KoboldAI reads


def takes(data: Any) -> bool:
    """Whether data is a save, or a list of World Info entries."""
    if isinstance(data, dict):
        return isinstance(data.get("worldinfo"), list) or {"actions", "prompt"} <= data.keys()
    return (
        isinstance(data, list)
        and bool(data)
        and all(
            isinstance(theirs, dict)
            and ("key" in theirs or "keys" in theirs)
            and ("content" in theirs or "entry" in theirs)
            for theirs in data
        )
    )


def lorebook_of_save(save: Any, name: str = "lore") -> Lorebook:
    """Returns the lorebook in a KoboldAI save, given its parsed JSON; the story stays out of it.

    Raises:
        LoreError: it is no save, or an entry is not what a save has.
    """
    from softlore.lore.lorebook import Lorebook  # which imports this module

    if not isinstance(save, dict):
        raise LoreError(
            f"a KoboldAI save must be a mapping of fields to values, but is {describe(save)}; save "
            "the story in KoboldAI again"
        )
    lore = {
        key: value for key, value in save.items() if str(key).startswith(("worldinfo", "wifolders"))
    }
    return Lorebook(**lorebook_fields({"worldinfo": [], **lore}, FORM, name))


def _listed(theirs: Theirs, *places: str) -> list[str]:
    """Keys, as a comma list or as a list."""
    for place in places:
        found = theirs.get(place)
        if found not in (None, ""):
            try:
                return texts(found) if isinstance(found, list) else split_list(text(found))
            except ValueError as error:
                raise ValueError(f"`{place}` {error}") from None
    return []


def _put_list(theirs: Theirs, place: str, keys: list[str]) -> None:
    theirs[place] = list(keys) if isinstance(theirs.get(place), list) else join_list(keys)


def _write_keys(theirs: Theirs, values: Values) -> None:
    _put_list(theirs, paths.first(theirs, _KEYS), values["keys"])


def _forbids(theirs: Theirs) -> bool:
    """Whether its only secondary keys are those that must not be there."""
    return not theirs.get("keysecondary") and bool(theirs.get("keyanti"))


def _read_others(theirs: Theirs) -> list[str]:
    return _listed(theirs, "keysecondary", "keyanti")


def _write_others(theirs: Theirs, values: Values) -> None:
    """`not_all` has no like here, and would say the opposite as secondary keys."""
    logic, others = values["selective_logic"], values["secondary_keys"]
    forbade = _forbids(theirs)
    _put_list(theirs, "keysecondary", others if logic in ("and_any", "and_all") else [])
    if logic == "not_any" or forbade:
        _put_list(theirs, "keyanti", others if logic == "not_any" else [])


ENTRY = EntryForm(
    program="koboldai",
    fields=(
        Field("keys", lambda theirs: _listed(theirs, *_KEYS), _write_keys),
        Field("secondary_keys", _read_others, _write_others),
        Field(
            "selective_logic",
            lambda theirs: "not_any" if _forbids(theirs) else None,
            _write_others,
        ),
        selective("selective", "keysecondary"),
        at("constant", "constant", read=flag),
        at("probability", "probability", read=real(0, 100), write=lambda value: f"{value:g}"),
        at("group", "wigroup", read=text),
        at("enabled", "widisabled", read=no_flag, write=no_flag),
    ),
    texts=("content", "entry"),
    titles=("comment", "title", "displayName", "name"),
    new=_NEW,
)


def _places(data: Any) -> PlaceCodes:
    return PlaceCodes("") if isinstance(data, list) else PlaceCodes("worldinfo", own="softlore")


FORM = BookForm(
    name="koboldai",
    title="KoboldAI's World Info",
    takes=takes,
    entry=ENTRY,
    places=_places,
    new=_SAVE,
)
