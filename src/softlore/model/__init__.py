"""Frozen models: loading, fingerprints, one forward over embeddings, positions and masks."""

from softlore.model.cache import KeysValues, Past
from softlore.model.families import PROVEN, Family
from softlore.model.frozen import FrozenModel, prompt_shape
from softlore.model.loading import DEFAULT_MODEL

__all__ = ["DEFAULT_MODEL", "PROVEN", "Family", "FrozenModel", "KeysValues", "Past", "prompt_shape"]
