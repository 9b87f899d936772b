"""The ASGI application: all routes of the server, its middleware and error handlers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softlore import __version__
from softlore.errors import SoftloreError
from softlore.serve import kobold, llamacpp, openai, studio
from softlore.serve.compose import model_name
from softlore.serve.metrics import CONTENT_TYPE, Counting, Metrics
from softlore.serve.responses import error_response, response_to
from softlore.serve.safety import Guard
from softlore.serve.service import GenerationService
from softlore.serve.state import ServerState

MESSAGES = {
    404: "there is nothing at this path; expected a path of the API; see /openapi.json",
    405: "this path does not take this method; expected one of the Allow header; see /openapi.json",
}
RESPONDERS = {  # to errors of an API's routes
    "/api/": kobold.respond,
    "/v1/": openai.respond,
    **dict.fromkeys(llamacpp.PATHS, llamacpp.respond),
}
DESCRIPTION = (
    "Stories with soft World Info. `[[soft:NAME]]` in any text stands for a soft prompt. "
    "Under /api is the KoboldAI API, under /v1 OpenAI's, under /studio the studio's own."
)
_log = logging.getLogger(__name__)


def make_app(state: ServerState) -> FastAPI:
    """The ASGI application for a state, which is closed with it."""
    metrics = Metrics(state.engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await state.close()

    app = FastAPI(
        title="softlore",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # the interactive pages would load scripts from another site
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.softlore = state
    service = GenerationService(state)
    app.include_router(kobold.make_router(service))
    app.include_router(openai.make_router(service))
    app.include_router(llamacpp.make_router(service))
    app.include_router(studio.make_router(state))
    app.include_router(_monitoring_router(state, metrics))
    _add_error_handlers(app)
    # The last is the outermost, so that requests which the guard rejects are counted.
    app.add_middleware(ErrorLogging)
    app.add_middleware(Guard, settings=state.settings)
    app.add_middleware(Counting, metrics=metrics)
    return app


class ErrorLogging:
    """ASGI middleware that logs unhandled exceptions and returns 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_through(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_through)
        except ClientDisconnect:
            pass
        except Exception as error:
            if scope["type"] != "http":
                raise
            _log.error("a request failed", exc_info=error)
            if not started:  # a response that has started breaks off, which its client sees
                message = "something went wrong in the server; its log says more"
                await error_response(scope["path"], 500, message)(scope, receive, send)


def _monitoring_router(state: ServerState, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/health")
    async def health() -> JSONResponse:
        """The server's state and load; 503 once it is closing."""
        status = "closing" if state.closing else "ok"
        load = dataclasses.asdict(state.engine.load())
        content = {"status": status, "model": model_name(state.engine.model), "load": load}
        return JSONResponse(content, 503 if state.closing else 200)

    @router.get("/metrics", response_class=Response)
    async def page() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    return router


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(SoftloreError)
    @app.exception_handler(ValidationError)
    async def softlore_error(request: Request, error: Exception) -> Response:
        for prefix, respond in RESPONDERS.items():
            if request.url.path.startswith(prefix):
                return respond(error)
        if isinstance(error, ValidationError):
            raise error
        return response_to(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where or 'the body'}: {first['msg']}; expected what the API takes; fix it"
        return error_response(request.url.path, 400, message, "invalid_request")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message, status = str(error.detail), error.status_code
        if message == HTTPStatus(status).phrase:
            message = MESSAGES.get(status, message)
        return error_response(request.url.path, status, message, headers=error.headers)
