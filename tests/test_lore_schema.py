"""The published schema is current, and docs/lorebook.md explains every field."""

import json
from pathlib import Path

from softlore.lore import Block, Entry, Lorebook
from softlore.lore.schema import schema_text

DOCS = Path(__file__).parent.parent / "docs"


def test_the_published_schema_is_current():
    published = (DOCS / "lorebook.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(), "run `make schema`"


def test_every_field_is_described_in_the_schema():
    kinds = json.loads(schema_text())["$defs"]
    assert set(kinds) == {"Block", "Entry", "Lorebook"}
    for kind, model in (("Entry", Entry), ("Lorebook", Lorebook)):
        properties = kinds[kind]["properties"]
        assert set(properties) == set(model.model_fields)
        assert all("description" in field for field in properties.values())


def test_the_page_explains_every_field():
    page = (DOCS / "lorebook.md").read_text(encoding="utf-8")
    for model in (Block, Entry, Lorebook):
        missing = [field for field in model.model_fields if f"`{field}`" not in page]
        assert not missing, f"docs/lorebook.md does not explain {model.__name__}'s {missing}"
