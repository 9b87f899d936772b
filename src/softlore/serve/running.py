"""Running the server: a port that is free, an engine, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from softlore.errors import ConfigError
from softlore.serve.app import make_app
from softlore.serve.settings import ServeSettings
from softlore.serve.state import ServerState

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(settings: ServeSettings) -> socket.socket:
    """A socket at the address of the settings, before anything that takes long.

    Raises:
        ConfigError: the address is taken, or is not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(1024)
    except (OSError, OverflowError) as error:
        listening.close()
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen on {settings.host}, port {settings.port} ({why}); expected a free port "
            "of this machine; end what uses it, or choose another (--port, --host)"
        ) from None
    return listening


def url_of(listening: socket.socket) -> str:
    """The address to open in a browser on this machine."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def serve(state: ServerState, listening: socket.socket) -> bool:
    """Serves until it is told to stop; texts that run then may end, for some seconds.

    Returns:
        Whether it came to an end by itself: False where it was told twice.
    """
    config = uvicorn.Config(
        make_app(state),
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(state.settings.close_seconds)),
    )
    server = _Server(config)
    asyncio.run(server.serve(sockets=[listening]))
    return not server.force_exit


class _Server(uvicorn.Server):
    """uvicorn's server, which keeps a signal to itself once it has done what it asks."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {s: signal.signal(s, self.handle_exit) for s in SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
