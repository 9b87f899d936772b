"""Models in GGUF files, run by llama.cpp."""

from softlore.model.gguf.model import GGUFModel
from softlore.model.gguf.runner import CacheTypes, LlamaCppContext

__all__ = ["CacheTypes", "GGUFModel", "LlamaCppContext"]
