"""Guards the server: checks host, origin, API key and size of a request before anything else.

A page in the writer's browser can send requests to this machine, by its own name or, with DNS
rebinding, by a name that the page's owner controls. So a request must name this server, and a
browser's page must be the server's own or of an origin that was allowed. (CVE-2024-28224 of ollama,
CVE-2025-59425 of vLLM.)
"""

from __future__ import annotations

import hmac
import logging
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softlore.serve.responses import error_response
from softlore.settings.serving import ServeSettings, is_address, is_loopback

_log = logging.getLogger(__name__)
MEGABYTE = 2**20
TOO_LARGE = (
    "the request is too large; expected {} MB at most; send less, or start the server with a "
    "larger --upload-mb"
)
WRITING_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
BODY_TYPES = ("application/json", "application/octet-stream")  # an HTML form can send neither
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\s:/@\[\]]+))(?::\d*)?")
# Paths that need no key; KoboldAI's clients ask some of them whether there is one.
KOBOLD_FACTS = ("model", "info/version", "config/max_context_length", "config/max_length")
PUBLIC = frozenset({
    "/health", "/", "/favicon.ico", "/api/extra/version", "/api/extra/true_max_context_length",
    *(f"/api/{version}/{fact}" for version in ("v1", "latest") for fact in KOBOLD_FACTS),
})  # fmt: skip
PUBLIC_FOLDER = "/studio/static/"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
RESPONSE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware that answers requests which are not allowed, and passes on the others."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        response = self._check_host(scope, headers) or self._check_origin(scope, headers)
        allowed_origin = "" if response else self._foreign_origin(headers)
        if response is None and scope["method"] == "OPTIONS":
            response = _preflight(headers, allowed_origin)
        response = response or self._check_key(scope, headers) or self._check_body(scope, headers)
        send = _adding_headers(send, allowed_origin)
        if response is not None:
            await response(scope, receive, send)
            return
        await self.app(scope, _limited(receive, self.settings.upload_mb), send)

    # Each check returns a response where it fails.

    def _check_host(self, scope: Scope, headers: Headers) -> Response | None:
        hosts = headers.getlist("host")
        if len(hosts) == 1 and self._is_own_name(_name_of(hosts[0])):
            return None
        return error_response(
            scope["path"],
            403,
            f"the host {', '.join(hosts)!r:.100} is not this server's; expected its address or a "
            "name that it was started with; call it by its address, or start it with --allow-host",
            "wrong_host",
        )

    def _is_own_name(self, name: str) -> bool:
        settings = self.settings
        if is_loopback(name) or name in settings.hosts:
            return True
        if settings.loopback:
            return False
        # Other addresses are safe where the server listens on all: DNS rebinding needs a name.
        return name == settings.host.lower() or (settings.any_address and is_address(name))

    def _check_origin(self, scope: Scope, headers: Headers) -> Response | None:
        origins, site = headers.getlist("origin"), headers.get("sec-fetch-site", "")
        origin = ", ".join(origins)
        if origins:
            if self._is_own_page(headers) or origin.lower() in self.settings.origins:
                return None
        elif site not in ("cross-site", "same-site"):
            return None  # the server's own page, or no browser
        elif scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate":
            return None  # a link to the studio
        _log.warning(
            "refused %s %s %.100r: its origin is not allowed; to allow it start the server with "
            "--origin %.100s", _page(headers), scope["method"], scope["path"], repr(origin)[1:-1],
        )  # fmt: skip
        return error_response(
            scope["path"],
            403,
            f"a page of {origin or 'another site':.100} may not call this server; expected an "
            "origin that was allowed; start the server with --origin",
            "wrong_origin",
        )

    def _is_own_page(self, headers: Headers) -> bool:
        scheme, _, name = headers.get("origin", "").lower().partition("://")
        return scheme in ("http", "https") and name == headers.get("host", "").lower()

    def _foreign_origin(self, headers: Headers) -> str:
        """The allowed origin of another site, which the response must name; "" for none."""
        return "" if self._is_own_page(headers) else headers.get("origin", "")

    def _check_key(self, scope: Scope, headers: Headers) -> Response | None:
        key, path = self.settings.api_key, scope["path"]
        if key is None or path in PUBLIC or path.startswith(PUBLIC_FOLDER):
            return None
        if has_key(headers, key):
            return None
        _log.warning(
            "refused %s %s %.100r: the API key is missing or wrong; its program "
            "must send the one that the server was started with (--api-key-file)",
            _page(headers), scope["method"], path,
        )  # fmt: skip
        return error_response(
            path,
            401,
            "the API key is missing or wrong; expected the one that the server was started with; "
            "send it as `Authorization: Bearer KEY`",
            "wrong_key",
            {"WWW-Authenticate": "Bearer"},
        )

    def _check_body(self, scope: Scope, headers: Headers) -> Response | None:
        limit, length = self.settings.upload_mb * MEGABYTE, headers.get("content-length")
        if length is not None and (not length.isdecimal() or int(length) > limit):
            return error_response(scope["path"], 413, TOO_LARGE.format(self.settings.upload_mb))
        browser = "origin" in headers or "sec-fetch-site" in headers
        empty = length in (None, "0") and "transfer-encoding" not in headers
        if not browser or empty or scope["method"] not in WRITING_METHODS:
            return None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in BODY_TYPES:
            return None
        return error_response(
            scope["path"],
            415,
            f"a browser sent {kind or 'a body of no type'!r:.100}; expected "
            f"{' or '.join(BODY_TYPES)}; set the Content-Type",
        )


def has_key(headers: Headers, key: str | None) -> bool:
    """Whether a request's headers hold the API key, where there is one."""
    if key is None:
        return True
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return hmac.compare_digest(given.encode(), key.encode())


def _page(headers: Headers) -> str:
    """Which page sent a request, for the log."""
    page = headers.get("origin") or headers.get("referer", "")
    return f"a page of {page!r:.100}" if page else "a program other than a browser's page,"


def _limited(receive: Receive, upload_mb: int) -> Receive:
    """Receives a body; raises 413 as soon as it is larger than allowed."""
    left = upload_mb * MEGABYTE

    async def receive_limited() -> Message:
        nonlocal left
        message = await receive()
        if message["type"] == "http.request":
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, TOO_LARGE.format(upload_mb))
        return message

    return receive_limited


def _name_of(host: str) -> str:
    """The name in a Host header, without the port: lower case, IPv6 without brackets."""
    match = HOST.fullmatch(host.strip().lower())
    return (match["address"] or match["name"]).rstrip(".") if match else ""


def _preflight(headers: Headers, allowed_origin: str) -> Response:
    """The response to a browser's CORS preflight."""
    response = Response(status_code=204, headers={"Allow": METHODS})
    if allowed_origin:
        requested = headers.get("access-control-request-headers", "Authorization, Content-Type")
        response.headers["Access-Control-Allow-Methods"] = METHODS
        response.headers["Access-Control-Allow-Headers"] = requested
        response.headers["Access-Control-Max-Age"] = "600"
        if headers.get("access-control-request-private-network") == "true":
            response.headers["Access-Control-Allow-Private-Network"] = "true"
    return response


def _adding_headers(send: Send, allowed_origin: str) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in RESPONSE_HEADERS.items():
                headers.setdefault(name, value)
            headers.add_vary_header("Origin")
            if allowed_origin:
                headers["Access-Control-Allow-Origin"] = allowed_origin
                headers["Access-Control-Expose-Headers"] = "Retry-After, X-Request-Id"
        await send(message)

    return send_with_headers
