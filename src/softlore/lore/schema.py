"""Makes the JSON Schema of lorebooks, with which editors check and complete them.

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
    """Returns the JSON Schema of lorebook files, with every form of a block that is read."""
    book = Lorebook.model_json_schema(mode="validation")
    models = book.pop("$defs")
    models["Block"] = _any_block(models["Block"])
    models["Lorebook"] = {**book, "required": ["entries"]}  # the name defaults to the file's
    _tidy(list(models.values()))
    return {
        "$schema": _ID,
        "title": "softlore lorebook",
        "anyOf": [
            {"$ref": "#/$defs/Lorebook"},
            {"type": "array", "items": {"$ref": "#/$defs/Block"}},
            {"type": "array", "items": {"$ref": "#/$defs/Entry"}},
        ],
        "$defs": dict(sorted(models.items())),
    }


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


def _tidy(part: Any) -> None:
    """Removes titles that repeat a field's name, and line breaks in descriptions."""
    if isinstance(part, dict):
        if isinstance(part.get("description"), str):
            part["description"] = " ".join(part["description"].split())
        for field in part.get("properties", {}).values():
            field.pop("title", None)
    if isinstance(part, dict | list):
        for item in part.values() if isinstance(part, dict) else part:
            _tidy(item)


def schema_text() -> str:
    """Returns the schema as the text of the published file."""
    return json.dumps(lorebook_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(schema_text(), encoding="utf-8")
