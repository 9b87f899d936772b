"""The engine of this process: one model, a running batch in its own thread, a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable

from softlore.decode import CacheUsage, GenerationRequest, ModelRunner, RunningBatch, Token
from softlore.decode.batch import SequenceGroup
from softlore.errors import BusyError, EngineError
from softlore.serve.engines.base import AsyncOutputStream, End, Engine, EngineLoad

TRIM_SECONDS = 30.0  # between two times that free memory is given back
_log = logging.getLogger(__name__)


class LocalEngine(Engine):
    """Writes texts by continuous batching: they join and leave between tokens.

    Args:
        runner: what runs the model, used by nothing else.
        slots: rows of the batch; a text takes one, or one a head.
        queue: texts that may wait for one.
        queue_seconds: how long; then BusyError is raised in their iteration.
        text_seconds: how long a text may be read and written; then it ends with "timeout".
    """

    def __init__(
        self,
        runner: ModelRunner,
        slots: int = 64,
        queue: int = 64,
        queue_seconds: float = 120.0,
        text_seconds: float = 600.0,
    ) -> None:
        self.model = runner.model
        self._slots, self._queue = slots, queue
        self._queue_seconds, self._text_seconds = queue_seconds, text_seconds
        self._batch = RunningBatch(runner)
        self._wake = threading.Condition()
        self._waiting: deque[_Local] = deque()
        self._running: list[_Local] = []
        self._closing = False
        self._load = EngineLoad(0, 0, slots, queue)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def start(self, request: GenerationRequest) -> AsyncOutputStream:
        self._refuse_if_busy()  # before the text is made, which takes longer
        running = _Local(self, SequenceGroup.from_request(self._batch.runner, request))
        with self._wake:
            self._refuse_if_busy()
            self._waiting.append(running)
            self._wake.notify()
        return running

    def load(self) -> EngineLoad:
        held = self._batch.memory_usage()
        return EngineLoad(
            running=len(self._running),
            waiting=len(self._waiting),
            slots=self._slots,
            queue=self._queue,
            tokens=held.tokens,
            bytes=held.bytes,
            kept_tokens=held.cached_tokens,
            kept_bytes=held.cached_bytes,
        )

    async def close(self, seconds: float = 10.0) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        end = time.monotonic() + seconds
        while (self._running or self._waiting) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for running in [*self._waiting, *self._running]:
            running.cancel()
        await asyncio.to_thread(self._thread.join)
        self._batch.runner.close()

    def wake(self) -> None:
        """Lets the thread look at what has changed."""
        with self._wake:
            self._wake.notify()

    # in the engine's thread --------------------------------------------------------------------

    def _work(self) -> None:
        trimmed = time.monotonic()
        while self._take_in():
            if time.monotonic() - trimmed > TRIM_SECONDS:
                give_back_memory()
                trimmed = time.monotonic()
            told: list[tuple[SequenceGroup, Token]] = []
            try:
                told = self._batch.step()
            except Exception as error:  # noqa: BLE001 - whatever it is, the others must go on
                self._fail(error)
            self._tell(told)

    def _take_in(self) -> bool:
        """Waits for something to do, and takes in what there is room for; False is the end."""
        with self._wake:
            while not self._waiting and not self._running:
                if self._closing:
                    return False
                self._wake.wait()
            now, kept_waiting = time.monotonic(), deque[_Local]()
            while self._waiting:
                one = self._waiting.popleft()
                if one.cancelled:
                    one.end("cancelled")
                elif now - one.since > self._queue_seconds:
                    one.fail(_waited(self._queue_seconds))
                elif kept_waiting or not self._fits(one.writing):
                    kept_waiting.append(one)
                else:
                    one.since = now
                    self._running.append(one)
                    self._batch.add(one.writing)
            self._waiting = kept_waiting
        return True

    def _fits(self, text: SequenceGroup) -> bool:
        taken = sum(len(one.writing) for one in self._running)
        return not taken or taken + len(text) <= self._slots

    def _tell(self, told: Iterable[tuple[SequenceGroup, Token]]) -> None:
        """Hands tokens over, and lets texts go that have ended, for whatever reason."""
        tokens: dict[SequenceGroup, list[Token]] = {}
        for text, token in told:
            tokens.setdefault(text, []).append(token)
        now, going_on, batches = time.monotonic(), [], _Batches()
        for one in self._running:
            mine = tokens.get(one.writing, [])
            why: End | None = one.writing.output.finish
            if why is None and one.cancelled:
                why = "cancelled"
            elif why is None and now - one.since > self._text_seconds:
                why = "timeout"
            if why in ("cancelled", "timeout"):
                self._batch.remove(one.writing)
                mine += one.writing.output.flush()
            batches.add(one, mine, why)
            if why is None:
                going_on.append(one)
        self._running = going_on
        batches.send()

    def _fail(self, error: Exception) -> None:
        """A step that failed leaves nothing to go on from: all that ran have failed."""
        _log.error("the engine failed", exc_info=error)
        self._batch.runner.clear()
        self._batch = RunningBatch(self._batch.runner)
        running, self._running = self._running, []
        for one in running:
            one.fail(
                EngineError(
                    f"the model could not write on ({type(error).__name__}); expected a forward "
                    "to succeed; ask for less at once, and see the server's log"
                )
            )

    def _refuse_if_busy(self) -> None:
        if self._closing:
            raise BusyError("the server is closing; expected it to go on; ask again later")
        if len(self._waiting) + len(self._running) >= self._queue + self._slots:
            raise BusyError(
                f"{len(self._running)} texts are being written and {len(self._waiting)} wait; "
                "expected room in the queue; ask again later"
            )


class _Local(AsyncOutputStream):
    """A text in the local engine: the thread writes it, the event loop hears of it."""

    def __init__(self, engine: LocalEngine, writing: SequenceGroup) -> None:
        super().__init__(writing.output)
        self.writing = writing
        self.since = time.monotonic()
        self.cancelled = False
        self._engine = engine

    @property
    def cache_usage(self) -> CacheUsage | None:
        return self.writing.cache_usage

    def cancel(self) -> None:
        self.cancelled = True
        self._engine.wake()

    def end(self, why: End) -> None:
        """Says, from the engine's thread, that nothing more comes."""
        batches = _Batches()
        batches.add(self, [], why)
        batches.send()

    def fail(self, error: Exception) -> None:
        batches = _Batches()
        batches.add(self, [error], "cancelled")
        batches.send()


class _Batches:
    """What has come in a step, handed to each event loop in a single call."""

    def __init__(self) -> None:
        self._by_loop: dict[
            asyncio.AbstractEventLoop, list[tuple[_Local, list[Token | Exception], End | None]]
        ] = {}

    def add(self, one: _Local, tokens: Iterable[Token | Exception], why: End | None) -> None:
        heard = list(tokens)
        if heard or why is not None:
            self._by_loop.setdefault(one.loop, []).append((one, heard, why))

    def send(self) -> None:
        for loop, heard in self._by_loop.items():
            try:
                loop.call_soon_threadsafe(_hear, heard)
            except RuntimeError:  # the loop has closed: nobody listens any more
                for one, _, _ in heard:
                    one.cancelled = True


def _hear(heard: list[tuple[_Local, list[Token | Exception], End | None]]) -> None:
    for one, tokens, why in heard:
        one.hear(tokens, why)


def give_back_memory() -> None:
    """Gives memory that is free back to the system, where the C library can (glibc).

    Keys and values of all lengths come and go, and what lies free between them would add up.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _waited(seconds: float) -> BusyError:
    return BusyError(
        f"the text waited {seconds:g} seconds for its turn; expected it sooner; ask again later"
    )
