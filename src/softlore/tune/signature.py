"""What a run was made of, so that a checkpoint of another run is told from its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from softlore.errors import ConfigError, StorageError
from softlore.lore import Entry
from softlore.model import FrozenModel
from softlore.model.fingerprint import TOLERANCE, difference
from softlore.prompts import SoftPrompt
from softlore.settings import TrainingConfig
from softlore.tune.checkpoint import digest, load_checkpoint
from softlore.tune.result import entry_hash


def make_signature(
    model: FrozenModel,
    config: TrainingConfig,
    entries: Sequence[Entry],
    company: Mapping[str, SoftPrompt],
    company_entries: Sequence[Entry],
    **more: Any,
) -> dict[str, Any]:
    """All that must be the same for a run to go on from a checkpoint, as JSON."""
    told = settings_told(config) | more
    knows = {entry.name: entry_hash(entry) for entry in company_entries}
    return {
        "settings": told | {"dtype": str(model.dtype)},
        "entries": {entry.name: entry_hash(entry) for entry in entries},
        "company": {n: [digest(p.tensor), knows.get(n)] for n, p in sorted(company.items())},
        "model": model.fingerprint(config.kind),
    }


def settings_told(config: TrainingConfig) -> dict[str, Any]:
    """The settings as JSON, the story by its hash."""
    told = config.to_dict()
    if config.story is not None:
        told["story"] = hashlib.sha256(config.story.encode()).hexdigest()[:16]
    return told


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In which ways two runs differ, in plain words; empty when one can go on from the other."""
    found = []
    if any(
        name not in then["model"] or difference(sketch, then["model"][name]) > TOLERANCE
        for name, sketch in now["model"].items()
    ):
        found.append("it was on another model")
    for name in sorted({*then["settings"], *now["settings"]}):
        was, is_now = then["settings"].get(name), now["settings"].get(name)
        if was != is_now:
            found.append(f"{name} was {was!r:.60} and is {is_now!r:.60}")
    for what, these in (("entry", "entries"), ("kept prompt", "company")):
        for name in sorted({*then[these], *now[these]}):
            was, is_now = then[these].get(name), now[these].get(name)
            if was != is_now:
                state = "is new" if was is None else "is gone" if is_now is None else "has changed"
                found.append(f"{what} {name!r} {state}")
    if not found and list(then["entries"]) != list(now["entries"]):
        found.append("the entries stand in another order")
    return found


def find_checkpoint(
    path: Path, signature: dict[str, Any], again: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What a checkpoint holds, if there is one to go on from.

    Args:
        signature: of the run that wants to go on.
        again: begin anew where the checkpoint is of another run or can't be read.

    Raises:
        ConfigError: it is of another run.
        StorageError: it can't be read.
    """
    if not path.exists():
        return None
    try:
        tensors, facts = load_checkpoint(path)
    except StorageError:
        if again:
            return None
        raise
    differ = differences(facts["signature"], signature)
    if not differ:
        return tensors, facts
    if again:
        return None
    more = f", and {len(differ) - 3} more" if len(differ) > 3 else ""
    raise ConfigError(
        f"checkpoint {str(path)!r} is of another run ({'; '.join(differ[:3])}{more}); expected "
        "the same; to go on with it, run the command that made it; to begin anew, say so with "
        "again=True (--again)"
    )
