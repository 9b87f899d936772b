"""The server's settings, checked, with their units and defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeSettings:
    """How the server behaves.

    Attributes:
        host: the address it listens on.
        port: the port; 0 takes a free one.
        api_key: what callers must show; needed where others than this machine can call.
        origins: pages of these origins may call, besides the server's own.
        hosts: names by which it may be called, besides its address and localhost.
        slots: texts that are written at once.
        queue: texts that may wait; what comes then is answered 503.
        queue_seconds: how long one may wait.
        text_seconds: how long one may be written; what is there by then is the answer.
        keep_mb: keys and values of finished texts that are kept for their next turns, megabytes.
        upload_mb: the largest body of a request, megabytes.
    """

    host: str = "127.0.0.1"
    port: int = 5001
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    slots: int = 64
    queue: int = 64
    queue_seconds: float = 120.0
    text_seconds: float = 600.0
    keep_mb: int = 512
    upload_mb: int = 64
