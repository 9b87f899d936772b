"""Engines: what writes the texts that a server is asked for, side by side."""

from softlore.serve.engines.base import Engine, Load, Running, cancel_all, merged, warm

__all__ = ["Engine", "Load", "Running", "cancel_all", "merged", "warm"]
