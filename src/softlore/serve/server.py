"""Runs the server until it is stopped; running texts may end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from softlore.serve.app import make_app
from softlore.serve.state import ServerState

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130  # exit code
FLUSH_SECONDS = 3.0  # after `close_seconds`, for the rest of the responses to be sent
_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Serves a state until a signal stops it; running texts then have `close_seconds` to end.

    A second Ctrl-C ends the process at once. Nothing is lost by it: what has been generated of a
    story is on the disk.

    Args:
        ready: called when requests are accepted.

    Attributes:
        next_model: the name of the model that the studio has asked for, if that stopped it.
    """

    def __init__(self, state: ServerState, ready: Callable[[], None] | None = None) -> None:
        self.state = state
        self.next_model: str | None = None
        self._ready = ready
        config = uvicorn.Config(
            make_app(state),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            timeout_graceful_shutdown=round(state.settings.close_seconds + FLUSH_SECONDS),
        )
        super().__init__(config)

    def change_model(self, name: str) -> None:
        """Stops as a signal does, with `next_model` set; a signal goes before it."""
        if not self.should_exit:
            self.next_model, self.should_exit = name, True

    def serve_on(self, listening: socket.socket) -> None:
        """Serves at a listening socket; returns when stopped."""
        asyncio.run(self.serve(sockets=[listening]))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_log_background_error)
        await super().startup(sockets)
        if self._ready is not None:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(self.state.close())
        await super().shutdown(sockets)
        await closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and self.next_model is None and sig == signal.SIGINT:
            os.write(sys.stderr.fileno(), b"softlore: stopped at once\n")
            os._exit(INTERRUPTED)
        self.next_model, self.should_exit = None, True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which would raise the captured signals again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[signal.Signals, Any] = {
            number: signal.signal(number, self.handle_exit) for number in SIGNALS
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _log_background_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs the error of a task that nobody awaits, without the task's repr, unlike asyncio."""
    _log.error("in the background: %s", context.get("message"), exc_info=context.get("exception"))
