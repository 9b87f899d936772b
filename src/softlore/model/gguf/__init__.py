"""Models in GGUF files: run by llama.cpp, or loaded as weights."""

from typing import TYPE_CHECKING, Any

from softlore.model.gguf.cache_types import CacheTypes

if TYPE_CHECKING:
    from softlore.model.gguf.model import GGUFModel
    from softlore.model.gguf.runner import LlamaCppContext

__all__ = ["CacheTypes", "GGUFModel", "LlamaCppContext"]


def __getattr__(name: str) -> Any:
    """Imports llama.cpp's half when it is needed; it stands on models that this package loads."""
    if name in __all__:
        from softlore.model.gguf import model, runner

        return getattr(model if name == "GGUFModel" else runner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
