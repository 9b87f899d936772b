"""The interface of engines: they start texts and stream their tokens to the event loop."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from softlore.decode import CacheUsage, GenerationRequest, OutputStream, SamplingParams, Token
from softlore.decode.output import FinishReason, OutputView
from softlore.errors import BusyError
from softlore.model import LanguageModel

End = FinishReason | Literal["cancelled", "timeout"]


@dataclass(frozen=True)
class EngineLoad:
    """How busy an engine is.

    Attributes:
        running: texts that are being read or written.
        waiting: texts in the queue.
        slots: sequences that can run at once; a text that is sampled several times takes several.
        queue: texts that can wait.
        tokens, bytes: size of the keys and values of the running texts.
        kept_tokens, kept_bytes: the same of texts that have ended, cached for those that
            continue them.
    """

    running: int
    waiting: int
    slots: int
    queue: int
    tokens: int = 0
    bytes: int = 0
    kept_tokens: int = 0
    kept_bytes: int = 0


class OutputQueue(AsyncIterator[tuple["AsyncOutputStream", Token | None]]):
    """The tokens of one or more texts, in the order in which they are generated.

    Iteration gives each token with its stream, and None instead of a token when that stream has
    ended; it stops after the last one. An engine's error is raised there. Belongs to the event
    loop in which it was made.

    Attributes:
        streams: the texts, in the order in which they were started.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.streams: list[AsyncOutputStream] = []
        self._items: asyncio.Queue[tuple[AsyncOutputStream, Token | Exception | None]]
        self._items = asyncio.Queue()
        self._ended = 0
        self._error: Exception | None = None

    async def __anext__(self) -> tuple[AsyncOutputStream, Token | None]:
        if self._error is not None:
            raise self._error
        if self._ended == len(self.streams):
            raise StopAsyncIteration
        stream, item = await self._items.get()
        if isinstance(item, Exception):
            self._error = item
            raise item
        self._ended += item is None
        return stream, item

    def put(self, stream: AsyncOutputStream, item: Token | Exception | None) -> None:
        """Adds a token, an error, or None for the end of a stream; within the event loop."""
        self._items.put_nowait((stream, item))

    def cancel(self) -> None:
        """Ends the texts that still run, at their next token."""
        for stream in self.streams:
            if stream.finish is None:
                stream.cancel()


class AsyncOutputStream(OutputView, AsyncIterator[Token]):
    """A text that an engine generates. Iteration gives its tokens and raises what an engine does.

    If several streams share one `OutputQueue`, iterate over the queue instead.

    Attributes:
        number: its index among the streams of the queue.
        finish: how it ended; None while it runs.
        seconds_to_first: from its start to its first token; None until then.
        seconds: from its start to its end; None until then.
        on_end: called once, when it has ended.
    """

    def __init__(self, output: OutputStream, outputs: OutputQueue | None = None) -> None:
        super().__init__(output)
        self.outputs = outputs if outputs is not None else OutputQueue()
        self.number = len(self.outputs.streams)
        self.outputs.streams.append(self)
        self.finish: End | None = None
        self.seconds_to_first: float | None = None
        self.seconds: float | None = None
        self.on_end: Callable[[AsyncOutputStream], None] | None = None
        self._start = time.monotonic()

    @property
    def cache_usage(self) -> CacheUsage | None:
        """How much of the context was cached and how much was read; None where not known."""
        return None

    @abstractmethod
    def cancel(self) -> None:
        """Ends it at its next token. Never blocks; does nothing if it has ended."""

    async def __anext__(self) -> Token:
        _, token = await anext(self.outputs)
        if token is None:
            raise StopAsyncIteration
        return token

    async def drained(self) -> Self:
        """The stream itself, after its end."""
        async for _ in self:
            pass
        return self

    def deliver(self, items: Iterable[Token | Exception], finish: End | None = None) -> None:
        """Passes on generated tokens, and the end if there is one; within the event loop."""
        for item in items:
            if self.seconds_to_first is None and isinstance(item, Token):
                self.seconds_to_first = time.monotonic() - self._start
            self.outputs.put(self, item)
        if finish is not None and self.finish is None:
            self.finish = finish
            self.seconds = time.monotonic() - self._start
            self.outputs.put(self, None)
            if self.on_end is not None:
                self.on_end(self)


class Engine(ABC):
    """Generates texts with one model, several at once.

    Args:
        model: its tokenizer, embeddings and context length are those of the texts.
        slots: sequences that can run at once; a text that is sampled several times takes several.
        queue: texts that can wait.

    Attributes:
        closing: whether no more texts are accepted.
        on_start, on_busy: called with each text that was accepted, and for each that was not.
    """

    def __init__(self, model: LanguageModel, slots: int, queue: int) -> None:
        self.model = model
        self.slots, self.queue = slots, queue
        self.closing = False
        self.on_start: Callable[[AsyncOutputStream], None] | None = None
        self.on_busy: Callable[[], None] | None = None
        self._preparing = 0

    async def start(
        self, request: GenerationRequest, outputs: OutputQueue | None = None
    ) -> AsyncOutputStream:
        """Queues a text, whose tokens go to `outputs`, or to a queue of its own.

        Raises:
            BusyError: the queue is full, or the engine is closing.
            InputError: the request cannot be carried out.
        """
        try:
            self._check_room()
            self._preparing += 1
            try:
                prepared = await asyncio.to_thread(self.prepare, request)
            finally:
                self._preparing -= 1
            self._check_open()
        except BusyError:
            if self.on_busy is not None:
                self.on_busy()
            raise
        stream = self.enqueue(prepared, outputs)
        if self.on_start is not None:
            self.on_start(stream)
        return stream

    def without_effect(self, sampling: Mapping[str, Any]) -> list[str]:
        """Warnings for the settings of a text that have no effect here, a line each."""
        params = SamplingParams.of(sampling)
        if params.heal and params.constraint is not None:
            name = params.constraint[0]
            return [f"heal has no effect: a {name} begins where the text ends, as it is"]
        return []

    @abstractmethod
    def prepare(self, request: GenerationRequest) -> Any:
        """Does slow work, such as encoding; called in a worker thread."""

    @abstractmethod
    def enqueue(self, prepared: Any, outputs: OutputQueue | None) -> AsyncOutputStream:
        """Queues what `prepare` returned."""

    @abstractmethod
    def counts(self) -> tuple[int, int]:
        """Texts that run, and texts that wait."""

    def load(self) -> EngineLoad:
        """How busy it is now."""
        return EngineLoad(*self.counts(), self.slots, self.queue)

    @abstractmethod
    async def close(self, seconds: float = 10.0) -> None:
        """Accepts no more texts, waits so long for those that run, then cancels them."""

    def _check_open(self) -> None:
        if self.closing:
            raise BusyError("the server is shutting down; expected a running one; try again later")

    def _check_room(self) -> None:
        self._check_open()
        running, waiting = self.counts()
        waiting += self._preparing
        if running + waiting >= self.queue + self.slots:
            raise BusyError(
                f"{running} texts are being written and {waiting} wait; expected room in the "
                "queue; ask again later"
            )
