"""Logs to standard error, as JSON or plain lines; never the text of a story or a query string."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from contextvars import ContextVar
from typing import Any

FIELDS = ("request", "method", "route", "status", "ms", "tokens")  # of a request's line
requests_log = logging.getLogger("softlore.requests")
request_id: ContextVar[str] = ContextVar("request_id", default="")


def set_up(level: str, as_json: bool | None = None) -> None:
    """Sends the logs of softlore and uvicorn to standard error.

    `as_json`: one JSON object a line; None: unless standard error is a terminal.
    """
    handler = logging.StreamHandler(sys.stderr)
    plain = sys.stderr.isatty() if as_json is None else not as_json
    handler.setFormatter(PlainFormatter() if plain else JsonFormatter())
    for name in ("softlore", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel("WARNING")


def _traceback(record: logging.LogRecord) -> str:
    """A record's traceback. Unless debugging, without error messages: they may quote a story."""
    if not record.exc_info:
        return ""
    if logging.getLogger("softlore").isEnabledFor(logging.DEBUG):
        return logging.Formatter().formatException(record.exc_info)
    error, parts = record.exc_info[1], list[str]()
    while error is not None and len(parts) < 10:
        parts.append(f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "after ".join(parts)


class JsonFormatter(logging.Formatter):
    """A record as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := request_id.get():
            fields["request"] = request
        fields |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            fields["traceback"] = _traceback(record)
        return json.dumps(fields)


class PlainFormatter(logging.Formatter):
    """A record as a plain line."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock}  {record.levelname.lower()}  {record.getMessage()}"
        if hasattr(record, "route"):
            f = record.__dict__
            text = f"{clock}  {f['status']}  {f['ms']:7.0f} ms  {f['method']} {f['route']}"
            text += f"  {f['tokens']} tokens" if f["tokens"] else ""
        return f"{text}\n{_traceback(record)}" if record.exc_info else text
