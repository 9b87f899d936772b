"""Frozen models: loading, fingerprints, one forward over embeddings, positions and masks.

Importing this package is cheap: each name below imports its module, and with it torch, when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from softlore.model.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from softlore.model.families import TESTED_FAMILIES, Family
    from softlore.model.frozen import FrozenModel, require_frozen_model
    from softlore.model.kv_cache import KeysValues, KVCache
    from softlore.model.kv_slots import KVSlots
    from softlore.model.language import LanguageModel, prompt_shape

_WHERE = {
    "TESTED_FAMILIES": "families",
    "Family": "families",
    "FrozenModel": "frozen",
    "KVCache": "kv_cache",
    "KVSlots": "kv_slots",
    "KeysValues": "kv_cache",
    "LanguageModel": "language",
    "prompt_shape": "language",
    "require_frozen_model": "frozen",
}
__all__ = [
    "DEFAULT_MODEL",
    "TESTED_FAMILIES",
    "Family",
    "FrozenModel",
    "KVCache",
    "KVSlots",
    "KeysValues",
    "LanguageModel",
    "prompt_shape",
    "require_frozen_model",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'softlore.model' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"softlore.model.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
