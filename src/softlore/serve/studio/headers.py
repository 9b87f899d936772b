"""Soft prompts as the page gets them, from what their files say of themselves."""

from __future__ import annotations

import math
from typing import Any

from softlore.errors import PromptFileError
from softlore.prompts import PromptHeader

Told = dict[str, Any]


def row_of(header: PromptHeader, fits: bool) -> Told:
    """A soft prompt in a list. `fits`: whether it is for the server's model."""
    return {
        "name": header.name,
        "kind": header.kind,
        "n_tokens": header.n_tokens,
        "model": header.metadata.get("base_model", ""),
        "bytes": header.data_bytes,
        "fits": fits,
        "trained": _trained(header),
    }


def share(nats: object) -> float | None:
    """Recall from 0 to 1, the mean probability of a right token, from nats a token."""
    if not isinstance(nats, int | float) or not math.isfinite(nats):
        return None
    return round(math.exp(-max(0.0, float(nats))), 4)


def fields_of(header: PromptHeader) -> Told:
    """A header's fields; of a file whose metadata are damaged, none."""
    try:
        return header.fields()
    except PromptFileError:
        return {}


def _trained(header: PromptHeader) -> Told:
    """How long it was trained, and what came of it."""
    fields = fields_of(header)
    training, metrics = (mapping(fields.get(name)) for name in ("training", "metrics"))
    told = {
        "steps": training.get("steps"),
        "loss": metrics.get("last_response", metrics.get("last_distil")),
        "recall": share(mapping(metrics.get("recall")).get("soft")),
    }
    return {name: value for name, value in told.items() if isinstance(value, int | float)}


def mapping(value: object) -> Told:
    """What should be a mapping; an empty one if it is none."""
    return value if isinstance(value, dict) else {}
