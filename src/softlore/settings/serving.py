"""Settings of the server."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, ClassVar, Self

from pydantic import BeforeValidator, model_validator

from softlore.errors import ConfigError
from softlore.settings.lenient import strings
from softlore.settings.names import Names
from softlore.settings.table import Textual, setting

_ORIGIN = re.compile(r"https?://[^/\s?#]+|null")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_MIN_KEY = 8  # characters


def _origin(given: str) -> str:
    origin = given.rstrip("/").lower()
    if not _ORIGIN.fullmatch(origin):
        raise ConfigError(
            f"{origin!r} is not an origin; expected one such as https://lite.koboldai.net, without "
            "a path; fix --origin"
        )
    return origin


def _host(given: str) -> str:
    host = given.rstrip(".").lower()
    if not _HOST.fullmatch(host):
        raise ConfigError(
            f"{host!r} is not a host name; expected one such as story.example.net, without a port; "
            "fix --allow-host"
        )
    return host


def _each(read: Callable[[str], str]) -> BeforeValidator:
    return BeforeValidator(lambda given: tuple(map(read, given)))


_LIST = Textual(lambda text: (text,), "", strings)
Origins = Annotated[tuple[str, ...], _each(_origin), _LIST]
Hosts = Annotated[tuple[str, ...], _each(_host), _LIST]


class ServeSettings(Names):
    """How the server behaves. Raises ConfigError for what would be unsafe or cannot be."""

    noun: ClassVar[str] = "setting"

    # fmt: off
    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(5001, "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    api_key: str | None = setting(None, "Key that callers must send; needed where others than this "
        "machine can call.", env="SOFTLORE_API_KEY")
    origins: Origins = setting((), "Pages of this origin may call besides the server's own, such "
        "as https://lite.koboldai.net; may be given often.", option="--origin")
    hosts: Hosts = setting((), "Name by which the server may be called, besides its addresses and "
        "localhost; may be given often.", option="--allow-host")
    slots: int = setting(64, "Texts that are generated at once.", ge=1, le=10**4)
    queue: int = setting(64, "Texts that may wait; more are answered 503.", ge=0, le=10**6)
    queue_seconds: float = setting(120.0, "How long a text may wait.", gt=0, le=10**6,
        unit="seconds", option="--queue-timeout")
    text_seconds: float = setting(600.0, "How long a text may be generated; what there is by then "
        "is the answer.", gt=0, le=10**6, unit="seconds", option="--timeout")
    keep_mb: int = setting(512, "Cached keys and values of finished texts, for their next turns.",
        ge=0, le=10**7, unit="megabytes")
    upload_mb: int = setting(64, "Largest body of a request.", ge=1, le=10**6, unit="megabytes")
    close_seconds: float = setting(10.0, "How long texts may go on after the server is stopped.",
        ge=0, le=10**6, unit="seconds", option="--close-timeout")
    # fmt: on

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.api_key is not None and not _is_key(self.api_key):
            raise ConfigError(
                f"the API key has {len(self.api_key)} characters; expected at least {_MIN_KEY}, "
                "printable ASCII without spaces; choose another, such as one of "
                '`python -c "import secrets; print(secrets.token_urlsafe())"`'
            )
        if self.api_key is None and not self.loopback:
            raise ConfigError(
                f"the server would listen on {self.host}, where others than this machine can call "
                "it; expected an API key then; give one (--api-key-file FILE, or "
                "SOFTLORE_API_KEY), or stay on 127.0.0.1"
            )
        return self

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
    return len(key) >= _MIN_KEY and all("!" <= character <= "~" for character in key)
