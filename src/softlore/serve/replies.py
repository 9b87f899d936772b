"""Errors as replies: in the shape of the API that was called, whatever went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response

from softlore.errors import (
    BusyError,
    EngineError,
    InputError,
    StorageError,
    StoryNotFoundError,
    UnknownPromptError,
)

RETRY_SECONDS = "1"


def status_of(error: Exception) -> int:
    """The status of an error."""
    for kind, status in (
        (StoryNotFoundError, 404),
        (UnknownPromptError, 404),
        (InputError, 400),
        (BusyError, 503),
        (EngineError, 503),
        (StorageError, 507),
    ):
        if isinstance(error, kind):
            return status
    return 500


def reply_to(path: str, error: Exception) -> Response:
    """What a caller is told of one of softlore's errors."""
    status = status_of(error)
    headers = {"Retry-After": RETRY_SECONDS} if isinstance(error, BusyError) else {}
    return refusal(path, status, str(error), type(error).__name__, headers)


def refusal(
    path: str,
    status: int,
    message: str,
    kind: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A reply in the shape of the API that a path belongs to."""
    kind = kind or HTTPStatus(status).phrase.lower().replace(" ", "_")
    body: dict[str, Any] = {"error": {"message": message, "type": kind}}
    if f"{path}/".startswith("/api/"):
        body = as_kobold(message, "service_unavailable" if status == 503 else kind)
    elif f"{path}/".startswith("/v1/"):
        usual = "invalid_request_error" if status < 500 else "server_error"
        body = as_openai(message, usual, kind)
    return JSONResponse(body, status, headers)


def as_kobold(message: Exception | str, kind: str) -> dict[str, Any]:
    """What is told of an error in the KoboldAI API."""
    return {"detail": {"msg": str(message), "type": kind}}


def as_openai(
    message: Exception | str, kind: str, code: str | None, param: str | None = None
) -> dict[str, Any]:
    """What is told of an error in OpenAI's API."""
    return {"error": {"message": str(message), "type": kind, "param": param, "code": code}}
