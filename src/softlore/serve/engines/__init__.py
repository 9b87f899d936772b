"""Engines: generate the texts of a server's clients, in this process or on a vLLM server."""

from softlore.serve.engines.base import AsyncOutputStream, Engine, EngineLoad, OutputQueue

__all__ = ["AsyncOutputStream", "Engine", "EngineLoad", "OutputQueue"]
