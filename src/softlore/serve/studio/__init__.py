"""The studio: a web page that writes stories, and what it calls."""

from __future__ import annotations

from fastapi import APIRouter

from softlore.serve.state import ServerState


def make_router(state: ServerState) -> APIRouter:
    """The routes of the studio."""
    return APIRouter()
