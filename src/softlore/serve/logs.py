"""Logs: one line a request, as JSON or for people. Never what a story says, nor a query."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

FIELDS = ("request", "method", "route", "status", "ms", "tokens")
requests_log = logging.getLogger("softlore.requests")


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


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
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
            text += "\n" + self.formatException(record.exc_info)
        return text
