"""Engines: what generates the texts that a server is asked for, side by side."""

from softlore.serve.engines.base import AsyncOutputStream, Engine, EngineLoad, OutputQueue

__all__ = ["AsyncOutputStream", "Engine", "EngineLoad", "OutputQueue"]
