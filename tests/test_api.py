"""The reference has every public name with its signature; the table of families is current."""

import inspect
import re
from pathlib import Path

import pytest

import models_table
import softlore
from softlore import control

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)


def test_every_public_name_is_on_the_page():
    named = set(re.findall(r"\w+", PAGE))
    assert set(softlore.__all__) - named == {"__version__"}
    assert {heading.split("(")[0].split(".")[0] for heading in HEADINGS} >= {
        name for name in softlore.__all__ if name not in {"__version__", "SoftloreError"}
    }


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_heading_is_a_signature(heading):
    named = heading.split("(")[0]
    found = control if named in control.__all__ else softlore
    for part in heading.split("(")[0].split("."):
        found = getattr(found, part)
    signature = inspect.signature(found)
    bare = [
        p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"
    ]
    plain = signature.replace(parameters=bare, return_annotation=signature.empty)
    told = heading.removesuffix("…)") if heading.endswith("…)") else heading
    assert f"{heading.split('(')[0]}{plain}".startswith(told)
    assert told != heading or heading.endswith(str(plain))


def test_the_table_of_families_is_current():
    page = models_table.PAGE.read_text(encoding="utf-8")
    assert models_table.table() in page, "run tools/models_table.py"
