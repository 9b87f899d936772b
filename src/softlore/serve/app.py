"""The application: every route of the server, joined, behind its guard."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softlore import __version__
from softlore.errors import SoftloreError
from softlore.serve import kobold, openai, studio
from softlore.serve.compose import model_name
from softlore.serve.metrics import CONTENT_TYPE, CountedEngine, Counting
from softlore.serve.responses import error_response, response_to
from softlore.serve.safety import Guard
from softlore.serve.service import GenerationService
from softlore.serve.state import ServerState

USUAL = {
    404: "there is nothing at this path; expected one of the API's; see /openapi.json",
    405: "this path takes another method; expected what the Allow header says; see /openapi.json",
}
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
        await state.close()

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
    service = GenerationService(state)
    for router in (
        kobold.make_router(service),
        openai.make_router(service),
        studio.make_router(state),
        _facts(state, engine),
    ):
        app.include_router(router)
    _add_handlers(app)
    # The last added is the outermost: what the guard refuses is counted too.
    app.add_middleware(Caught)
    app.add_middleware(Guard, settings=state.settings)
    app.add_middleware(Counting, metrics=engine.metrics)
    return app


class Caught:
    """ASGI middleware: what nobody foresaw is logged, and the caller told that it happened."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:
            if scope["type"] != "http":
                raise
            _log.error("a request failed", exc_info=error)
            if not begun:  # else the answer breaks off, which its reader sees
                message = "something went wrong in the server; its log says more"
                await error_response(scope["path"], 500, message)(scope, receive, send)


def _facts(state: ServerState, engine: CountedEngine) -> APIRouter:
    """What those who run the server ask it."""
    router = APIRouter(tags=["server"])

    @router.get("/health")
    async def health() -> JSONResponse:
        """Whether the server is there, and how busy: 503 once it is closing."""
        told = {"status": "closing" if state.closing else "ok", "model": model_name(engine.model)}
        load = dataclasses.asdict(engine.load())
        return JSONResponse(told | {"load": load}, 503 if state.closing else 200)

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(engine.metrics.page(), media_type=CONTENT_TYPE)

    return router


def _add_handlers(app: FastAPI) -> None:
    """What a caller is told of what went wrong, wherever it did."""

    @app.exception_handler(SoftloreError)
    async def ours(request: Request, error: Exception) -> Response:
        return response_to(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where or 'the body'}: {first['msg']}; expected what the API takes; mend it"
        return error_response(request.url.path, 400, message, "invalid_request")

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message, status = str(error.detail), error.status_code
        if message == HTTPStatus(status).phrase:
            message = USUAL.get(status, message)
        return error_response(request.url.path, status, message, headers=error.headers)
