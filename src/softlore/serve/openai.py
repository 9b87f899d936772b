"""The OpenAI API."""

from __future__ import annotations

from fastapi import APIRouter

from softlore.serve.state import ServerState


def make_router(state: ServerState) -> APIRouter:
    """The routes under /v1."""
    return APIRouter()
