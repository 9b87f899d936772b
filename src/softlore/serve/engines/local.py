"""The engine of this process: a running batch in a thread of its own, and a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import astuple

from softlore.decode import CacheUsage, GenerationRequest, ModelRunner, RunningBatch, Token
from softlore.decode.sequence_group import SequenceGroup
from softlore.errors import BusyError, EngineError, SoftloreError
from softlore.serve.engines.base import AsyncOutputStream, End, Engine, EngineLoad, OutputQueue

TRIM_SECONDS = 30.0  # interval at which free memory is returned to the system
_log = logging.getLogger(__name__)


class LocalEngine(Engine):
    """Generates texts by continuous batching: they join and leave between tokens.

        event loop                                  engine's thread
        start ── SequenceGroup (worker thread) ──▶ waiting ─▶ running ─▶ RunningBatch.step
        OutputQueue ◀── call_soon_threadsafe, once a step ──────────────┘

    Args:
        runner: runs the model, and is used by nothing else.
        slots: sequences of the batch; a text takes one, or one for each conditioning.
        queue: texts that may wait for a slot.
        queue_seconds: for how long; then iterating over the text raises BusyError.
        text_seconds: the most that a text may run; then it ends with "timeout".
    """

    def __init__(
        self,
        runner: ModelRunner,
        slots: int = 64,
        queue: int = 64,
        queue_seconds: float = 120.0,
        text_seconds: float = 600.0,
    ) -> None:
        super().__init__(runner.model, slots, queue)
        self._queue_seconds, self._text_seconds = queue_seconds, text_seconds
        self._batch = RunningBatch(runner)
        self._wake = threading.Condition()
        self._waiting: deque[_LocalStream] = deque()
        self._running: list[_LocalStream] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def prepare(self, request: GenerationRequest) -> SequenceGroup:
        return SequenceGroup.from_request(self._batch.runner, request)

    def enqueue(self, prepared: SequenceGroup, outputs: OutputQueue | None) -> AsyncOutputStream:
        with self._wake:
            stream = _LocalStream(self, prepared, outputs)
            self._waiting.append(stream)
            self._wake.notify()
        return stream

    def counts(self) -> tuple[int, int]:
        return len(self._running), len(self._waiting)

    def load(self) -> EngineLoad:
        memory = astuple(self._batch.memory_usage())
        return EngineLoad(*self.counts(), self.slots, self.queue, *memory)

    async def close(self, seconds: float = 10.0) -> None:
        with self._wake:
            self.closing = True
            self._wake.notify()
        end = time.monotonic() + seconds
        while (self._running or self._waiting) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for stream in [*self._waiting, *self._running]:
            stream.cancel()
        await asyncio.to_thread(self._thread.join)
        self._batch.runner.close()

    def wake(self) -> None:
        """Makes the thread check for new and cancelled texts."""
        with self._wake:
            self._wake.notify()

    # in the engine's thread --------------------------------------------------------------------

    def _run(self) -> None:
        trimmed = time.monotonic()
        while self._admit():
            if time.monotonic() - trimmed > TRIM_SECONDS:
                trim_memory()
                trimmed = time.monotonic()
            try:
                tokens = self._batch.step()
            except Exception as error:  # noqa: BLE001 - the thread must outlive any error
                self._fail(error)
            else:
                self._deliver(tokens)

    def _admit(self) -> bool:
        """Waits for texts, and adds those to the batch that there is room for; False at the end."""
        with self._wake:
            while not self._waiting and not self._running:
                if self.closing:
                    return False
                self._wake.wait()
            now, waiting = time.monotonic(), deque[_LocalStream]()
            while self._waiting:
                stream = self._waiting.popleft()
                if stream.cancelled:
                    _send([(stream, [], "cancelled")])
                elif now - stream.since > self._queue_seconds:
                    _send([(stream, [_waited(self._queue_seconds)], "cancelled")])
                elif waiting or not self._fits(stream.group):
                    waiting.append(stream)
                else:
                    stream.since = now
                    self._running.append(stream)
                    self._batch.add(stream.group)
            self._waiting = waiting
        return True

    def _fits(self, group: SequenceGroup) -> bool:
        used = sum(len(stream.group) for stream in self._running)
        return not used or used + len(group) <= self.slots

    def _deliver(self, step: Iterable[tuple[SequenceGroup, Token]]) -> None:
        """Passes on the tokens of a step, and removes texts that have ended for any reason."""
        tokens: dict[SequenceGroup, list[Token]] = {}
        for group, token in step:
            tokens.setdefault(group, []).append(token)
        deliveries: list[Delivery] = []
        now, running = time.monotonic(), []
        for stream in self._running:
            group = stream.group
            items: list[Token | Exception] = [*tokens.get(group, [])]
            finish: End | None = group.output.finish
            if finish is None and stream.cancelled:
                finish = "cancelled"
            elif finish is None and now - stream.since > self._text_seconds:
                finish = "timeout"
            if finish in ("cancelled", "timeout"):
                self._batch.remove(group)
                items += group.output.flush()
            if group.error is not None:
                _log.error("a text failed", exc_info=group.error)
                items, finish = [*items, _failure(group.error)], "cancelled"
            if items or finish is not None:
                deliveries.append((stream, items, finish))
            if finish is None:
                running.append(stream)
        self._running = running
        _send(deliveries)

    def _fail(self, error: Exception) -> None:
        """Ends all running texts: after a step that failed, the state of caches is unknown."""
        _log.error("the engine failed", exc_info=error)
        self._batch.runner.clear()
        self._batch = RunningBatch(self._batch.runner)
        failed, self._running = self._running, []
        _send([(stream, [_failure(error)], "cancelled") for stream in failed])


class _LocalStream(AsyncOutputStream):
    """A text of the local engine: written in its thread, read in the event loop."""

    def __init__(
        self, engine: LocalEngine, group: SequenceGroup, outputs: OutputQueue | None
    ) -> None:
        super().__init__(group.output, outputs)
        self.group = group
        self.since = time.monotonic()  # in the queue, then in the batch
        self.cancelled = False
        self._engine = engine

    @property
    def cache_usage(self) -> CacheUsage | None:
        return self.group.cache_usage

    def cancel(self) -> None:
        self.cancelled = True
        self._engine.wake()


Delivery = tuple[_LocalStream, Sequence[Token | Exception], End | None]


def _send(deliveries: Iterable[Delivery]) -> None:
    """Passes new tokens to each event loop, in one call for all of its streams."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
    for delivery in deliveries:
        by_loop.setdefault(delivery[0].outputs.loop, []).append(delivery)
    for loop, received in by_loop.items():
        try:
            loop.call_soon_threadsafe(_receive, received)
        except RuntimeError:  # the loop is closed: nobody reads them any more
            for stream, _, _ in received:
                stream.cancelled = True


def _receive(deliveries: Sequence[Delivery]) -> None:
    for stream, items, finish in deliveries:
        try:
            stream.deliver(items, finish)
        except Exception as error:  # noqa: BLE001 - of its callback, which must stop no other's
            _log.error("a text's callback failed", exc_info=error)


def trim_memory() -> None:
    """Returns free memory to the system, where the C library can (glibc).

    Keys and values of all lengths come and go; the gaps between them would add up.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _failure(error: Exception) -> SoftloreError:
    if isinstance(error, SoftloreError):
        return error
    return EngineError(
        f"the model could not write on ({type(error).__name__}); expected a forward to succeed; "
        "ask for less at once, and see the server's log"
    )


def _waited(seconds: float) -> BusyError:
    return BusyError(
        f"the text waited {seconds:g} seconds for its turn; expected it sooner; ask again later"
    )
