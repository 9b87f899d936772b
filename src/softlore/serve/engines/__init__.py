"""Engines: what writes the texts that a server is asked for, side by side."""

from softlore.serve.engines.base import (
    AsyncOutputStream,
    Engine,
    EngineLoad,
    cancel_all,
    merged,
    warm,
)

__all__ = ["AsyncOutputStream", "Engine", "EngineLoad", "cancel_all", "merged", "warm"]
