"""The server's settings, checked, with their units and defaults."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from softlore.errors import ConfigError

_ORIGIN = re.compile(r"https?://[^/\s?#]+|null")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_LEAST_KEY = 8  # characters


@dataclass(frozen=True)
class ServeSettings:
    """How the server behaves. Raises ConfigError for what would be unsafe or cannot be.

    Attributes:
        host: the address it listens on.
        port: the port; 0 takes a free one.
        api_key: what callers must show; needed where others than this machine can call.
        origins: pages of these origins may call, besides the server's own.
        hosts: names by which it may be called, besides its addresses and localhost.
        slots: texts that are written at once.
        queue: texts that may wait; what comes then is answered 503.
        queue_seconds: how long one may wait.
        text_seconds: how long one may be written; what is there by then is the answer.
        keep_mb: keys and values of finished texts that are kept for their next turns, megabytes.
        upload_mb: the largest body of a request, megabytes.
        close_seconds: how long texts may go on when the server is told to stop.
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
    close_seconds: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "origins", tuple(_origin(one) for one in self.origins))
        object.__setattr__(self, "hosts", tuple(_host(one) for one in self.hosts))
        if self.api_key is not None and not _is_key(self.api_key):
            raise ConfigError(
                f"the API key has {len(self.api_key)} characters; expected {_LEAST_KEY} at least, "
                "printable ASCII without spaces; choose another, such as one of "
                '`python -c "import secrets; print(secrets.token_urlsafe())"`'
            )
        if self.api_key is None and not self.loopback:
            raise ConfigError(
                f"the server would listen on {self.host}, where others than this machine can call "
                "it; expected an API key then; give one (--api-key-file FILE, or "
                "SOFTLORE_API_KEY), or stay on 127.0.0.1"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can call."""
        return is_loopback(self.host)

    @property
    def any_address(self) -> bool:
        """Whether it listens on all addresses of the machine."""
        address = _address(self.host)
        return address is not None and address.is_unspecified


def is_loopback(host: str) -> bool:
    """Whether a host name or an address is this machine's own, and no other's."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def is_address(host: str) -> bool:
    """Whether it is an address, which no name server can point elsewhere."""
    return _address(host) is not None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _is_key(key: str) -> bool:
    return len(key) >= _LEAST_KEY and all("!" <= character <= "~" for character in key)


def _origin(given: str) -> str:
    origin = given.rstrip("/").lower()
    if not _ORIGIN.fullmatch(origin):
        raise ConfigError(
            f"the origin {given!r} is none; expected one such as https://lite.koboldai.net, "
            "without a path; mend --origin"
        )
    return origin


def _host(given: str) -> str:
    host = given.rstrip(".").lower()
    if not _HOST.fullmatch(host):
        raise ConfigError(
            f"the host name {given!r} is none; expected one such as story.example.net, without a "
            "port; mend --allow-host"
        )
    return host
