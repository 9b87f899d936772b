"""Models in GGUF files, run by llama.cpp."""

from softlore.model.gguf.model import GGUFModel
from softlore.model.gguf.runner import Cache, Runner

__all__ = ["Cache", "GGUFModel", "Runner"]
