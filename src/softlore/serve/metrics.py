"""What the server counts: requests, texts and tokens, for Prometheus and the log."""

from __future__ import annotations

import contextvars
import logging
import secrets
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softlore.decode import GenerationRequest
from softlore.errors import BusyError
from softlore.model import LanguageModel
from softlore.serve.engines import AsyncOutputStream, Engine, EngineLoad, OutputQueue
from softlore.serve.logs import request_id, requests_log

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
GAUGES = {
    "texts_running": ("running", "Texts that are read or written now."),
    "texts_waiting": ("waiting", "Texts in the queue."),
    "slots": ("slots", "Texts that can run at once."),
    "queue": ("queue", "Texts that can wait."),
    "running_tokens": ("tokens", "Keys and values held for running texts, in tokens."),
    "running_bytes": ("bytes", "Keys and values held for running texts, in bytes."),
    "kept_tokens": ("kept_tokens", "Keys and values kept of texts that have ended, in tokens."),
    "kept_bytes": ("kept_bytes", "Keys and values kept of texts that have ended, in bytes."),
}
STATIC = "/studio/static/"
QUIET = frozenset({"/health", "/metrics", STATIC})  # logged only when debugging, if all is well
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
GONE = 499
_texts: contextvars.ContextVar[list[AsyncOutputStream] | None] = contextvars.ContextVar(
    "texts", default=None
)


class Metrics:
    """The counts of one server."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "softlore_requests",
            "Requests, by route.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "softlore_request_seconds",
            "From the request to the end of its answer.",
            ("method", "route"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.texts = Counter(
            "softlore_texts", "Texts that have ended, by how.", ("finish",), registry=self.registry
        )
        self.tokens = Counter("softlore_tokens", "Tokens written.", registry=self.registry)
        self.refused = Counter(
            "softlore_refused", "Texts refused, as the queue was full.", registry=self.registry
        )
        self.gone = Counter(
            "softlore_gone",
            "Requests whose caller went before the end of the answer; what was written for them "
            "ended there.",
            registry=self.registry,
        )
        self.first = Histogram(
            "softlore_first_token_seconds",
            "From a text's start to its first token, its time in the queue with it.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Gauges(engine))

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

    def ended(self, text: AsyncOutputStream) -> None:
        self.texts.labels(text.finish).inc()
        self.tokens.inc(len(text.ids))
        if text.seconds_to_first is not None:
            self.first.observe(text.seconds_to_first)


class _Gauges:
    """How busy the engine is, when it is asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        load = self._engine.load()
        for name, (field, told) in GAUGES.items():
            yield GaugeMetricFamily(f"softlore_{name}", told, value=getattr(load, field))


class CountedEngine(Engine):
    """An engine whose texts are counted, for the server and for the request that started them."""

    def __init__(self, engine: Engine) -> None:
        self.model: LanguageModel = engine.model
        self.metrics = Metrics(engine)
        self._engine = engine

    async def start(
        self, request: GenerationRequest, outputs: OutputQueue | None = None
    ) -> AsyncOutputStream:
        try:
            stream = await self._engine.start(request, outputs)
        except BusyError:
            self.metrics.refused.inc()
            raise
        stream.on_end = self.metrics.ended
        texts = _texts.get()
        if texts is not None:
            texts.append(stream)
        return stream

    def load(self) -> EngineLoad:
        return self._engine.load()

    async def close(self, seconds: float = 10.0) -> None:
        await self._engine.close(seconds)


class Counting:
    """ASGI middleware: counts and logs each request by the template of its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        one = _Request(receive, send)
        _texts.set(one.texts)
        request_id.set(one.id)
        try:
            await self.app(scope, one.receive, one.send)
        finally:
            self._tell(scope, one)

    def _tell(self, scope: Scope, one: _Request) -> None:
        method, route = _kind_of(scope)
        seconds = time.perf_counter() - one.since
        self.metrics.requests.labels(method, route, one.status).inc()
        self.metrics.seconds.labels(method, route).observe(seconds)
        if one.gone:
            self.metrics.gone.inc()
        told = {
            "method": method,
            "route": route,
            "status": one.status,
            "ms": round(seconds * 1000, 1),
            "tokens": sum(len(text.ids) for text in one.texts),
        }
        level = logging.DEBUG if route in QUIET and one.status < 400 else logging.INFO
        requests_log.log(level, "%s %s", method, route, extra=told)


class _Request:
    """A request under way: how it is answered, and whether its caller stays for that.

    Attributes:
        status: what was answered; 499, as others have it, where the caller had gone before.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self.id = secrets.token_hex(4)
        self.since = time.perf_counter()
        self.texts: list[AsyncOutputStream] = []
        self.status = 500
        self.gone = False
        self._receive, self._send = receive, send
        self._begun = self._ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._ended:
            self.gone = True
            self.status = self.status if self._begun else GONE
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            self.status = GONE if self.gone else message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = self.id
        elif not message.get("more_body", False):
            self._ended = True
        await self._send(message)


def _kind_of(scope: Scope) -> tuple[str, str]:
    """Method and route of a request, of which there are only so many."""
    method = scope["method"] if scope["method"] in METHODS else "other"
    if scope["path"].startswith(STATIC):
        return method, STATIC
    return method, getattr(scope.get("route"), "path", "(none)")
