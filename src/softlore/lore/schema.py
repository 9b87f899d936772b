"""The lorebook's JSON Schema, for editors to check and complete lorebooks with.

`python -m softlore.lore.schema docs/lorebook.schema.json` writes the published copy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from softlore.lore.lorebook import Lorebook

_ID = "https://json-schema.org/draft/2020-12/schema"


def lorebook_schema() -> dict[str, Any]:
    """Returns the JSON Schema of lorebook files in all the forms that are read."""
    schema = Lorebook.model_json_schema(mode="validation")
    kinds = schema.pop("$defs")
    book = {**schema, "required": ["entries"]}  # the file's name stands in for the lorebook's
    kinds["Block"] = _any_block(kinds["Block"])
    kinds["Lorebook"] = book
    full: dict[str, Any] = {
        "$schema": _ID,
        "title": "softlore lorebook",
        "anyOf": [
            {"$ref": "#/$defs/Lorebook"},
            {"type": "array", "items": {"$ref": "#/$defs/Block"}},
            {"type": "array", "items": {"$ref": "#/$defs/Entry"}},
        ],
        "$defs": dict(sorted(kinds.items())),
    }
    for kind in full["$defs"].values():
        _tidy(kind)
    return full


def _any_block(fields: dict[str, Any]) -> dict[str, Any]:
    call, responses = fields["properties"]["call"], fields["properties"]["responses"]
    pair = {"type": "array", "prefixItems": [call, responses], "minItems": 2, "maxItems": 2}
    forms = [
        {
            "type": "object",
            "properties": {"call": call, field: responses},
            "required": ["call", field],
            "additionalProperties": False,
        }
        for field in ("responses", "response")
    ]
    return {"title": "Block", "description": fields["description"], "anyOf": [*forms, pair]}


def _tidy(kind: dict[str, Any]) -> None:
    """Takes out titles that repeat a field's name, and joins wrapped descriptions."""
    for part in _walk(kind):
        if isinstance(part.get("description"), str):
            part["description"] = " ".join(part["description"].split())
        if isinstance(part.get("properties"), dict):
            for field in part["properties"].values():
                field.pop("title", None)


def _walk(value: Any) -> list[dict[str, Any]]:
    parts = list(value.values()) if isinstance(value, dict) else value
    found = [value] if isinstance(value, dict) else []
    for part in parts if isinstance(parts, list) else []:
        found += _walk(part)
    return found


def schema_text() -> str:
    """Returns the schema as the published file holds it."""
    return json.dumps(lorebook_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(schema_text(), encoding="utf-8")
