"""The KoboldAI API, as KoboldAI Lite and SillyTavern call it."""

from __future__ import annotations

from fastapi import APIRouter

from softlore.serve.state import ServerState


def make_router(state: ServerState) -> APIRouter:
    """The routes under /api."""
    return APIRouter()
