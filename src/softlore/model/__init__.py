"""Frozen models: loading, fingerprints, one forward over embeddings, positions and masks."""

from softlore.model.families import TESTED_FAMILIES, Family
from softlore.model.frozen import FrozenModel, require_frozen_model
from softlore.model.kv_cache import KeysValues, KVCache
from softlore.model.kv_slots import KVSlots
from softlore.model.language import LanguageModel, prompt_shape
from softlore.model.loading import DEFAULT_MODEL

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
