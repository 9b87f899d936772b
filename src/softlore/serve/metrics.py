"""What the server counts: requests, texts and tokens, for Prometheus and the log."""

from __future__ import annotations

import contextvars
import secrets
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softlore.decode import Wish
from softlore.errors import BusyError
from softlore.model import FrozenModel
from softlore.serve.engines import Engine, Load, Running
from softlore.serve.logs import requests_log

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
_texts: contextvars.ContextVar[list[Running] | None] = contextvars.ContextVar("texts", default=None)


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

    def ended(self, text: Running) -> None:
        self.texts.labels(text.finish).inc()
        self.tokens.inc(len(text.ids))
        if text.first is not None:
            self.first.observe(text.first)


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
        self.model: FrozenModel = engine.model
        self.metrics = Metrics(engine)
        self._engine = engine

    def start(self, wish: Wish) -> Running:
        try:
            running = self._engine.start(wish)
        except BusyError:
            self.metrics.refused.inc()
            raise
        running.on_end = self.metrics.ended
        texts = _texts.get()
        if texts is not None:
            texts.append(running)
        return running

    def load(self) -> Load:
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
        start, status, texts = time.perf_counter(), 500, list[Running]()
        _texts.set(texts)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "(none)")
            method = scope["method"] if route != "(none)" else "any"
            seconds = time.perf_counter() - start
            self.metrics.requests.labels(method, route, status).inc()
            self.metrics.seconds.labels(method, route).observe(seconds)
            told = {
                "request": secrets.token_hex(4),
                "method": method,
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 1),
                "tokens": sum(len(text.ids) for text in texts),
            }
            quiet = route in ("/health", "/metrics") or route.startswith("/studio/static")
            requests_log.log(10 if quiet else 20, "%s %s", method, route, extra=told)
