"""What another program has no place for, kept in its file under softlore's own names.

Such a record is `{"fields": {name: value}, "instead_of": {name: what the file says}}`. A value
counts only while the file still says what it said when the record was written, so that what a
writer changes in the other program holds. An entry that would be read under another name also has
its `name`, and the `title` beside which that was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softlore.lore.base import LoreModel

_ABSENT = object()
NEVER = frozenset({"name", "origin", "entries"})  # told by other means


def defaults_of(model: type[LoreModel]) -> dict[str, Any]:
    """Returns the fields of a piece of lore that may be left out, with their defaults."""
    fields = model.model_fields.items()
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in fields
        if not field.is_required()
    }


def record(values: Mapping[str, Any], said: Mapping[str, Any], model: type[LoreModel]) -> Any:
    """Returns the record of what `values` hold and a file, which says `said`, does not; or None."""
    defaults = defaults_of(model)
    fields = {
        name: value
        for name, value in values.items()
        if name not in NEVER and said.get(name, defaults.get(name, _ABSENT)) != value
    }
    if not fields:
        return None
    instead = {name: said[name] for name in fields if name in said}
    return {"fields": fields, "instead_of": instead} if instead else {"fields": fields}


def recalled(found: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `said` with what a record, as it was found in a file, adds to it."""
    values = dict(said)
    fields = found.get("fields") if isinstance(found, dict) else None
    instead = found.get("instead_of", {}) if isinstance(found, dict) else {}
    if not isinstance(fields, dict) or not isinstance(instead, dict):
        return values
    for name, value in fields.items():
        if name not in NEVER and said.get(name, _ABSENT) == instead.get(name, _ABSENT):
            values[name] = value
    return values


def recalled_name(found: Any, title: str) -> str:
    """Returns the name in a record, if the entry is still called `title`; else nothing."""
    if not isinstance(found, dict) or found.get("title") != title:
        return ""
    return found["name"] if isinstance(found.get("name"), str) else ""
