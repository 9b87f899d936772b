"""Opens the server's socket, before anything that takes long is loaded."""

from __future__ import annotations

import socket

from softlore.errors import ConfigError
from softlore.settings import ServeSettings

BACKLOG = 1024  # connections that may wait to be accepted


def listen(settings: ServeSettings) -> socket.socket:
    """A socket that listens at the address of the settings.

    Raises:
        ConfigError: the address is in use, or not one of this machine.
    """
    host = settings.host.strip("[]")
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, settings.port))
        listening.listen(BACKLOG)
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
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
