"""Engines: what writes the texts that a server is asked for, side by side."""

from softlore.serve.engines.base import Engine, Load, Running

__all__ = ["Engine", "Load", "Running"]
