"""Running the server: from when it is ready to an end that loses nothing."""

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
INTERRUPTED = 130
LAST_WORDS = 3.0  # seconds for answers that are cut short to be sent
_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Serves a state until it is told to stop; texts that run then may end, for some seconds.

    A signal stops it, and is nobody else's. A second Ctrl-C ends the process at once: what has
    been told of a story is on the disk.
    """

    def __init__(self, state: ServerState, ready: Callable[[], None] | None = None) -> None:
        self.state = state
        self._ready = ready
        config = uvicorn.Config(
            make_app(state),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            timeout_graceful_shutdown=round(state.settings.close_seconds + LAST_WORDS),
        )
        super().__init__(config)

    def serve_on(self, listening: socket.socket) -> None:
        """Serves at a socket that listens, until it is told to stop."""
        asyncio.run(self.serve(sockets=[listening]))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_unheard)
        await super().startup(sockets)
        if self._ready is not None:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.create_task(self.state.close())
        await super().shutdown(sockets)
        await closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            os.write(sys.stderr.fileno(), b"softlore: stopped at once\n")
            os._exit(INTERRUPTED)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which would send itself the signals once more at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {s: signal.signal(s, self.handle_exit) for s in SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def _unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An error in a task that nobody waits for; asyncio would show its message, and the task."""
    _log.error("in the background: %s", context.get("message"), exc_info=context.get("exception"))
