"""Metrics of requests, texts and tokens, for Prometheus and the log."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softlore.serve.engines import AsyncOutputStream, Engine
from softlore.serve.logs import request_id, requests_log

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
GAUGES = {  # name, field of EngineLoad, help
    "texts_running": ("running", "Texts that are read or written now."),
    "texts_waiting": ("waiting", "Texts in the queue."),
    "slots": ("slots", "Texts that can run at once."),
    "queue": ("queue", "Texts that can wait."),
    "running_tokens": ("tokens", "Keys and values of running texts, in tokens."),
    "running_bytes": ("bytes", "Keys and values of running texts, in bytes."),
    "kept_tokens": ("kept_tokens", "Cached keys and values of texts that have ended, in tokens."),
    "kept_bytes": ("kept_bytes", "Cached keys and values of texts that have ended, in bytes."),
}
STATIC = "/studio/static/"
QUIET = frozenset({"/health", "/metrics", STATIC})  # successes are logged on the debug level
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CLIENT_CLOSED = 499  # nginx's status for a client that disconnected before the response
_request_texts: ContextVar[list[AsyncOutputStream] | None] = ContextVar("texts", default=None)


class Metrics:
    """The metrics of one server, whose texts are those of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_LoadCollector(engine))
        route = ("method", "route")
        self.requests = self._counter("requests", "Requests, by route.", (*route, "status"))
        self.seconds = self._histogram(
            "request_seconds", "From the request to the end of its response.", route
        )
        self.texts = self._counter("texts", "Texts that have ended, by how.", ("finish",))
        self.tokens = self._counter("tokens", "Tokens written.")
        self.refused = self._counter("refused", "Texts refused, as the queue was full.")
        self.gone = self._counter("gone", "Requests whose client left before the response.")
        self.first = self._histogram(
            "first_token_seconds",
            "From a text's start to its first token, its time in the queue included.",
        )

        engine.on_start, engine.on_busy = self._follow, self.refused.inc

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"softlore_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: Sequence[str] = ()) -> Histogram:
        return Histogram(f"softlore_{name}", text, labels, buckets=SECONDS, registry=self.registry)

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _follow(self, text: AsyncOutputStream) -> None:
        """Counts a text when it ends, for the server and for the request that started it."""
        text.on_end = self._count_text
        if (texts := _request_texts.get()) is not None:
            texts.append(text)

    def _count_text(self, text: AsyncOutputStream) -> None:
        self.texts.labels(text.finish).inc()
        self.tokens.inc(len(text.ids))
        if text.seconds_to_first is not None:
            self.first.observe(text.seconds_to_first)


class _LoadCollector(Collector):
    """The engine's load, read when Prometheus asks for it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        load = self._engine.load()
        for name, (field, text) in GAUGES.items():
            yield GaugeMetricFamily(f"softlore_{name}", text, value=getattr(load, field))


class Counting:
    """ASGI middleware: counts and logs each request, by the path template of its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _Request(receive, send)
        _request_texts.set(request.texts)
        request_id.set(request.id)
        try:
            await self.app(scope, request.receive, request.send)
        finally:
            self._count(scope, request)

    def _count(self, scope: Scope, request: _Request) -> None:
        method, route = _labels(scope)
        seconds = time.perf_counter() - request.start
        self.metrics.requests.labels(method, route, request.status).inc()
        self.metrics.seconds.labels(method, route).observe(seconds)
        if request.disconnected:
            self.metrics.gone.inc()
        fields = {
            "method": method,
            "route": route,
            "status": request.status,
            "ms": round(seconds * 1000, 1),
            "tokens": sum(len(text.ids) for text in request.texts),
        }
        level = logging.DEBUG if route in QUIET and request.status < 400 else logging.INFO
        requests_log.log(level, "%s %s", method, route, extra=fields)


class _Request:
    """Follows the messages of a request: status of the response, disconnection of the client.

    Attributes:
        status: 499 where the client disconnected before the response started.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self.id = secrets.token_hex(4)
        self.start = time.perf_counter()
        self.texts: list[AsyncOutputStream] = []
        self.status = 500
        self.disconnected = False
        self._receive, self._send = receive, send
        self._started = self._ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._ended:
            self.disconnected = True
            self.status = self.status if self._started else CLIENT_CLOSED
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            self.status = CLIENT_CLOSED if self.disconnected else message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = self.id
        elif not message.get("more_body", False):
            self._ended = True
        await self._send(message)


def _labels(scope: Scope) -> tuple[str, str]:
    """Method and route of a request as labels, of which there are few."""
    method = scope["method"] if scope["method"] in METHODS else "other"
    if scope["path"].startswith(STATIC):
        return method, STATIC
    return method, getattr(scope.get("route"), "path", "(none)")
