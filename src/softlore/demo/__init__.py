"""The demo's data: a lorebook about a small harbour town, and how its stories begin.

It holds no model and no code but the ways to its files; `softlore demo` does the rest.
"""

from pathlib import Path

import yaml

_HERE = Path(__file__).parent


def lorebook_path() -> Path:
    """Returns where the demo lorebook is, for `Lorebook.load`."""
    return _HERE / "lorebook.yaml"


def openings() -> list[tuple[str, str]]:
    """Returns the demo's story openings: (entry name, text that the model is to go on from)."""
    with (_HERE / "openings.yaml").open(encoding="utf-8") as file:
        return [(item["entry"], item["opening"]) for item in yaml.safe_load(file)]
