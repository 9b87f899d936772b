"""Responses that all APIs share: errors in each API's own shape, and server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from softlore.errors import (
    BusyError,
    EngineError,
    InputError,
    StorageError,
    StoryNotFoundError,
    UnknownPromptError,
)

RETRY_AFTER = {"Retry-After": "1"}  # seconds, beside every 503 for a full queue
STATUSES: tuple[tuple[type[Exception], int], ...] = (  # the first that fits
    (StoryNotFoundError, 404),
    (UnknownPromptError, 404),
    (InputError, 400),
    (BusyError, 503),
    (EngineError, 503),
    (StorageError, 507),
)
DONE = b"data: [DONE]\n\n"
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no buffering proxies


def status_of(error: Exception) -> int:
    """The HTTP status of an error."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def response_to(path: str, error: Exception) -> Response:
    """The response to a SoftloreError, in the shape of the API that `path` belongs to."""
    headers = RETRY_AFTER if isinstance(error, BusyError) else {}
    return error_response(path, status_of(error), str(error), type(error).__name__, headers)


def error_response(
    path: str,
    status: int,
    message: str,
    kind: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error in the shape of the API that `path` belongs to."""
    kind = kind or HTTPStatus(status).phrase.lower().replace(" ", "_")
    body: dict[str, Any] = {"error": {"message": message, "type": kind}}
    if f"{path}/".startswith("/api/"):
        body = kobold_error(message, "service_unavailable" if status == 503 else kind)
    elif f"{path}/".startswith("/v1/"):
        general = "invalid_request_error" if status < 500 else "server_error"
        body = openai_error(message, general, kind)
    return JSONResponse(body, status, headers)


def kobold_error(message: Exception | str, kind: str) -> dict[str, Any]:
    """The body of an error in the KoboldAI API."""
    return {"detail": {"msg": str(message), "type": kind}}


def openai_error(
    message: Exception | str, kind: str, code: str | None, param: str | None = None
) -> dict[str, Any]:
    """The body of an error in the OpenAI API."""
    return {"error": {"message": str(message), "type": kind, "param": param, "code": code}}


def event(data: Mapping[str, Any], name: str = "") -> bytes:
    """A server-sent event. Lines end in LF and JSON is ASCII, which KoboldAI Lite depends on."""
    field = f"event: {name}\n" if name else ""
    return f"{field}data: {json.dumps(data)}\n\n".encode("ascii")


async def event_stream(events: AsyncGenerator[bytes]) -> StreamingResponse:
    """A response that streams events. It starts with the first event.

    So an error before the first event can still be answered with a status of its own.

    Raises:
        SoftloreError: what the generator raised before its first event.
    """
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise

    async def body() -> AsyncGenerator[bytes]:
        try:
            yield first
            async for following in events:
                yield following
        finally:
            await events.aclose()

    return StreamingResponse(body(), media_type="text/event-stream", headers=_STREAM_HEADERS)
