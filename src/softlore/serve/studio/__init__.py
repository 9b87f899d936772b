"""The studio: a web page that writes stories, and what it calls."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from softlore.serve.state import ServerState
from softlore.serve.studio import books, compare, info, page, prompts, stories, training, writing
from softlore.serve.studio.context import StudioContext

# What every route may answer besides, for the description of the API.
FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"description": "What was sent cannot be used; the message says why"},
    404: {"description": "There is nothing of that name"},
    409: {"description": "The name is taken, or what it stands for is in use"},
    503: {"description": "As much is asked for as can be written; ask again later"},
    507: {"description": "The disk refuses"},
}


def make_router(state: ServerState) -> APIRouter:
    """The routes of the studio: the page, and its own API."""
    bench = StudioContext(state)
    state.at_close.append(bench.close)
    api = APIRouter(prefix="/studio/api", tags=["studio"], responses=FAILURES)
    for part in (info, stories, writing, books, training, prompts, compare):
        api.include_router(part.make_router(bench))
    router = APIRouter()
    router.include_router(api)
    router.include_router(page.make_router())
    return router
