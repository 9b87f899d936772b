"""Who may call: checks of host, origin, key and size before anything else sees a request.

A page in the writer's browser can send requests to this machine, by its own name or, with DNS
rebinding, by a name that it controls. So the name must be ours, and a browser's page must be our
own or one that was allowed. (CVE-2024-28224 of ollama, CVE-2025-59425 of vLLM.)
"""

from __future__ import annotations

import hmac
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softlore.serve.responses import error_response
from softlore.settings.serving import ServeSettings, is_address, is_loopback

MEGABYTE = 2**20
TOO_LARGE = (
    "the request is too large; expected {} MB at most; send less, or start the server with a "
    "larger --upload-mb"
)
CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
BODIES = ("application/json", "application/octet-stream")  # a form can send neither
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\s:/@\[\]]+))(?::\d*)?")
OPEN = ("/health", "/", "/favicon.ico")  # need no key, and nor does what the page is made of
OPEN_UNDER = "/studio/static/"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
ALWAYS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware that answers what may not be, and passes on the rest as it comes."""

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
        answer = self._host(scope, headers) or self._origin(scope, headers)
        foreign = "" if answer else self._foreign(headers)
        if answer is None and scope["method"] == "OPTIONS":
            answer = _preflight(headers, foreign)
        answer = answer or self._key(scope, headers) or self._body(scope, headers)
        send = _with_headers(send, foreign)
        if answer is not None:
            await answer(scope, receive, send)
            return
        await self.app(scope, _counted(receive, self.settings.upload_mb), send)

    # checks, each giving a reply where it fails ------------------------------------------------

    def _host(self, scope: Scope, headers: Headers) -> Response | None:
        given = headers.getlist("host")
        if len(given) == 1 and self._is_ours(_name_of(given[0])):
            return None
        return error_response(
            scope["path"],
            403,
            f"the host {', '.join(given)!r:.100} is not this server's; expected its address or a "
            "name that it was started with; call it by its address, or start it with --allow-host",
            "wrong_host",
        )

    def _is_ours(self, name: str) -> bool:
        settings = self.settings
        if is_loopback(name) or name in settings.hosts:
            return True
        if settings.loopback:
            return False
        # Elsewhere an address is as good as another: rebinding needs a name.
        return name == settings.host.lower() or (settings.any_address and is_address(name))

    def _origin(self, scope: Scope, headers: Headers) -> Response | None:
        origins, site = headers.getlist("origin"), headers.get("sec-fetch-site", "")
        origin = ", ".join(origins)
        if origins:
            if self._own(headers) or origin.lower() in self.settings.origins:
                return None
        elif site not in ("cross-site", "same-site"):
            return None  # our own page, or no page at all
        elif scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate":
            return None  # a link to the studio
        return error_response(
            scope["path"],
            403,
            f"a page of {origin or 'another site':.100} may not call this server; expected one "
            "that it was told of; start it with --origin",
            "wrong_origin",
        )

    def _own(self, headers: Headers) -> bool:
        scheme, _, name = headers.get("origin", "").lower().partition("://")
        return scheme in ("http", "https") and name == headers.get("host", "").lower()

    def _foreign(self, headers: Headers) -> str:
        """The allowed origin of another site, which the browser must be told."""
        return "" if self._own(headers) else headers.get("origin", "")

    def _key(self, scope: Scope, headers: Headers) -> Response | None:
        key, path = self.settings.api_key, scope["path"]
        open_to_all = path in OPEN or path.startswith(OPEN_UNDER)
        if key is None or open_to_all:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        shown = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if hmac.compare_digest(shown.encode(), key.encode()):
            return None
        return error_response(
            path,
            401,
            "the API key is missing or wrong; expected the one that the server was started with; "
            "send it as `Authorization: Bearer KEY`",
            "wrong_key",
            {"WWW-Authenticate": "Bearer"},
        )

    def _body(self, scope: Scope, headers: Headers) -> Response | None:
        most, length = self.settings.upload_mb * MEGABYTE, headers.get("content-length")
        if length is not None and (not length.isdecimal() or int(length) > most):
            return error_response(scope["path"], 413, TOO_LARGE.format(self.settings.upload_mb))
        browser = "origin" in headers or "sec-fetch-site" in headers
        empty = length in (None, "0") and "transfer-encoding" not in headers
        if not browser or empty or scope["method"] not in CHANGING:
            return None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in BODIES:
            return None
        return error_response(
            scope["path"],
            415,
            f"a browser sent {kind or 'a body of no type'!r:.100}; expected {' or '.join(BODIES)}; "
            "set the Content-Type",
        )


def _counted(receive: Receive, most_mb: int) -> Receive:
    """Takes in a body as it comes, and refuses it where it is larger than it may be."""
    left = most_mb * MEGABYTE

    async def receiving() -> Message:
        nonlocal left
        message = await receive()
        if message["type"] == "http.request":
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, TOO_LARGE.format(most_mb))
        return message

    return receiving


def _name_of(host: str) -> str:
    """The host of a Host header, without its port: lower case, IPv6 without brackets."""
    found = HOST.fullmatch(host.strip().lower())
    return (found["address"] or found["name"]).rstrip(".") if found else ""


def _preflight(headers: Headers, foreign: str) -> Response:
    answer = Response(status_code=204)
    answer.headers["Allow"] = METHODS
    if foreign:
        wanted = headers.get("access-control-request-headers", "Authorization, Content-Type")
        answer.headers["Access-Control-Allow-Methods"] = METHODS
        answer.headers["Access-Control-Allow-Headers"] = wanted
        answer.headers["Access-Control-Max-Age"] = "600"
        if headers.get("access-control-request-private-network") == "true":
            answer.headers["Access-Control-Allow-Private-Network"] = "true"
    return answer


def _with_headers(send: Send, foreign: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in ALWAYS.items():
                headers.setdefault(name, value)
            headers.add_vary_header("Origin")
            if foreign:
                headers["Access-Control-Allow-Origin"] = foreign
                headers["Access-Control-Expose-Headers"] = "Retry-After, X-Request-Id"
        await send(message)

    return sending
