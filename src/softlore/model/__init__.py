"""Frozen models: loading, fingerprints, one forward over embeddings, positions and masks."""

from softlore.model.cache import KeysValues, Past
from softlore.model.families import PROVEN, Family
from softlore.model.frozen import FrozenModel, frozen
from softlore.model.language import LanguageModel, prompt_shape
from softlore.model.loading import DEFAULT_MODEL
from softlore.model.slots import Slots

__all__ = [
    "DEFAULT_MODEL",
    "PROVEN",
    "Family",
    "FrozenModel",
    "KeysValues",
    "LanguageModel",
    "Past",
    "Slots",
    "frozen",
    "prompt_shape",
]
