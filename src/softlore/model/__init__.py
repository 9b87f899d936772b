"""Frozen models: loading, fingerprints, one forward over embeddings, positions and masks."""

from softlore.model.cache import KeysValues, Past
from softlore.model.families import PROVEN, Family
from softlore.model.frozen import DEFAULT_MODEL, FrozenModel, prompt_shape

__all__ = ["DEFAULT_MODEL", "PROVEN", "Family", "FrozenModel", "KeysValues", "Past", "prompt_shape"]
