"""The studio's page and what it is made of, from the package's own folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

FOLDER = Path(__file__).parent / "static"
INDEX, ICON = "index.html", "icon.svg"
# Not the system's table of types, which may call a script text/plain.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
    ".json": "application/json",
}


def make_router() -> APIRouter:
    """The page at /, and its files; none of them is in the description of the API."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    def index(request: Request) -> Response:
        return _answer(request, INDEX)

    @router.api_route("/favicon.ico", methods=["GET", "HEAD"])
    def icon(request: Request) -> Response:
        return _answer(request, ICON)

    @router.api_route("/studio/static/{name}", methods=["GET", "HEAD"])
    def file(name: str, request: Request) -> Response:
        return _answer(request, name)

    return router


def _answer(request: Request, name: str) -> Response:
    """A file of the page; nothing but what the folder lists, whatever the name."""
    found = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
    if name not in found:
        raise HTTPException(404, f"the page has no file {name!r:.80}; expected one of its own")
    content = found[name].read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"Cache-Control": "no-cache", "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=TYPES[found[name].suffix], headers=headers)
