"""The application: every route of the server, joined, behind its guard."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from softlore import __version__
from softlore.errors import SoftloreError
from softlore.serve import kobold, openai, studio
from softlore.serve.metrics import CONTENT_TYPE, CountedEngine, Counting
from softlore.serve.replies import refusal, reply_to
from softlore.serve.safety import Guard
from softlore.serve.state import ServerState

_log = logging.getLogger(__name__)
ABOUT = (
    "Stories with soft World Info. `[[soft:NAME]]` in any text stands for a soft prompt. "
    "Under /api is the KoboldAI API, under /v1 OpenAI's, under /studio the studio's own."
)


def make_app(state: ServerState) -> FastAPI:
    """An ASGI application that serves one state; the engine is closed with it."""
    engine = CountedEngine(state.engine)
    state.engine = engine

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close(state.settings.close_seconds)

    # The interactive pages would load scripts from another site.
    app = FastAPI(
        title="softlore",
        version=__version__,
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.softlore = state
    for router in (
        kobold.make_router(state),
        openai.make_router(state),
        studio.make_router(state),
        _facts(state, engine),
    ):
        app.include_router(router)
    _add_handlers(app)
    app.add_middleware(Counting, metrics=engine.metrics)  # the last added is the outermost
    app.add_middleware(Guard, settings=state.settings)
    return app


def _facts(state: ServerState, engine: CountedEngine) -> APIRouter:
    """What those who run the server ask it."""
    router = APIRouter(tags=["server"])

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server is there."""
        load = engine.load()
        return {"status": "ok", "running": load.running, "waiting": load.waiting}

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(engine.metrics.page(), media_type=CONTENT_TYPE)

    return router


def _add_handlers(app: FastAPI) -> None:
    """What a caller is told of what went wrong, wherever it did."""

    @app.exception_handler(SoftloreError)
    async def ours(request: Request, error: Exception) -> Response:
        return reply_to(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where or 'the body'}: {first['msg']}; expected what the API takes; mend it"
        return refusal(request.url.path, 400, message, "invalid_request")

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        told = {404: "there is nothing at this path", 405: "this path takes another method"}
        message = told.get(error.status_code, str(error.detail))
        path = request.url.path
        return refusal(path, error.status_code, message, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        _log.error("a request failed", exc_info=error)
        message = "something went wrong in the server; its log says more"
        return refusal(request.url.path, 500, message)
