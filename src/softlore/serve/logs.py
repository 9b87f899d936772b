"""Logs: one line a request, as JSON or for people. Never what a story says, nor a query."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from contextvars import ContextVar
from types import TracebackType
from typing import Any

FIELDS = ("request", "method", "route", "status", "ms", "tokens")
requests_log = logging.getLogger("softlore.requests")
request_id: ContextVar[str] = ContextVar("request_id", default="")


def set_up(level: str, as_json: bool | None = None) -> None:
    """Sends the logs of softlore and of its server to standard error.

    `as_json`: lines of JSON; None: where nobody watches.
    """
    handler = logging.StreamHandler(sys.stderr)
    plain = sys.stderr.isatty() if as_json is None else not as_json
    handler.setFormatter(_Plain() if plain else _Json())
    for name in ("softlore", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel("WARNING")


def _trace(record: logging.LogRecord) -> str:
    """Where an error came from. What it says may hold a story's text: told when debugging only."""
    if logging.getLogger("softlore").isEnabledFor(logging.DEBUG) or not record.exc_info:
        return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    error, parts = record.exc_info[1], list[str]()
    while error is not None and len(parts) < 10:
        parts.append(f"{type(error).__name__}\n{_frames(error.__traceback__)}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "after ".join(parts)


def _frames(trace: TracebackType | None) -> str:
    return "".join(traceback.format_tb(trace))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := request_id.get():
            told["request"] = request
        told |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            told["traceback"] = _trace(record)
        return json.dumps(told)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        if not hasattr(record, "route"):
            text = f"{at}  {record.levelname.lower()}  {record.getMessage()}"
        else:
            told = {name: getattr(record, name, None) for name in FIELDS}
            text = f"{at}  {told['status']}  {told['ms']:7.0f} ms  {told['method']} {told['route']}"
            text += f"  {told['tokens']} tokens" if told["tokens"] else ""
        if record.exc_info:
            text += "\n" + _trace(record)
        return text
