"""The studio: a web page for writing stories with lore, and its API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from softlore.serve.state import ServerState
from softlore.serve.studio import (
    books,
    chances,
    compare,
    info,
    prompts,
    stories,
    story_lore,
    training,
    writing,
)
from softlore.serve.studio.context import StudioContext

# Errors that any route may return, for the OpenAPI description.
_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is invalid; the message says why"},
    404: {"description": "Nothing has that name"},
    409: {"description": "The name is taken, or the object is in use"},
    503: {"description": "The server is at capacity; try again later"},
    507: {"description": "The disk could not be written"},
}
# The system's own table of media types may map scripts to text/plain.
_MEDIA_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


class PageFiles(StaticFiles):
    """The page's files, revalidated by ETag on each load so that an upgrade takes effect."""

    def file_response(self, full_path: Any, *args: Any, **options: Any) -> Response:
        response = super().file_response(full_path, *args, **options)
        response.headers["Cache-Control"] = "no-cache"
        if media_type := _MEDIA_TYPES.get(os.path.splitext(full_path)[1]):
            response.headers["Content-Type"] = media_type
        return response


def make_router(state: ServerState) -> APIRouter:
    """The routes of the studio: the page, its files, and its API under /studio/api."""
    context = StudioContext(state)
    state.at_close.append(context.close)
    api = APIRouter(prefix="/studio/api", tags=["studio"], responses=_FAILURES)
    for part in (info, stories, story_lore, writing, chances, books, training, prompts, compare):
        api.include_router(part.make_router(context))
    router = APIRouter()
    router.include_router(api)
    router.include_router(_make_page())
    return router


def _make_page() -> APIRouter:
    """The page at / and its files, which the OpenAPI description leaves out."""
    router = APIRouter(include_in_schema=False)
    files = PageFiles(directory=Path(__file__).parent / "static")

    async def serve(request: Request) -> Response:
        name = request.path_params.get("name", "")
        name = {"/": "index.html", "/favicon.ico": "icon.svg"}.get(request.url.path, name)
        return await files.get_response(name, request.scope)

    for path in ("/", "/favicon.ico", "/studio/static/{name}"):
        router.add_api_route(path, serve, methods=["GET", "HEAD"], response_class=Response)
    return router
