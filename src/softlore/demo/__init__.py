"""The data of `softlore demo`: a lorebook about a small harbour town, and openings of stories."""

from pathlib import Path

import yaml

_HERE = Path(__file__).parent


def lorebook_path() -> Path:
    """Returns the path of the demo lorebook, for `Lorebook.load`."""
    return _HERE / "lorebook.yaml"


def openings() -> list[tuple[str, str]]:
    """Returns the story openings, as (entry name, text that the model continues)."""
    with (_HERE / "openings.yaml").open(encoding="utf-8") as file:
        return [(item["entry"], item["opening"]) for item in yaml.safe_load(file)]
