"""What every engine does: texts are started, told a token at a time, and cancelled."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from softlore.decode import CacheUsage, GenerationRequest, OutputStream, Token
from softlore.decode.output import FinishReason, OutputView
from softlore.model import LanguageModel

STRINGS = ("banned_strings", "dry_multiplier")  # samplers that look for strings in the vocabulary
End = FinishReason | Literal["cancelled", "timeout"]


@dataclass(frozen=True)
class EngineLoad:
    """How busy an engine is.

    Attributes:
        running: texts that are being read or written.
        waiting: texts in the queue.
        slots: texts that can run at once.
        queue: texts that can wait.
        tokens: of which keys and values are held for the running texts.
        bytes: what these take in memory.
        kept_tokens, kept_bytes: the same of texts that have ended and may go on.
    """

    running: int
    waiting: int
    slots: int
    queue: int
    tokens: int = 0
    bytes: int = 0
    kept_tokens: int = 0
    kept_bytes: int = 0


class AsyncOutputStream(OutputView, AsyncIterator[Token]):
    """A text that was started: its tokens as they come. Made and used within one event loop.

    Iteration ends when the text does; an engine that fails raises EngineError there.

    Attributes:
        finish: how it ended; None while it goes on.
        first: seconds from its start to its first token; None until then.
        on_end: called once, when it has ended.
    """

    def __init__(self, output: OutputStream) -> None:
        super().__init__(output)
        self.loop = asyncio.get_running_loop()
        self.finish: End | None = None
        self.first: float | None = None
        self.on_end: Callable[[AsyncOutputStream], None] | None = None
        self._start = time.monotonic()
        self._heard: asyncio.Queue[Token | Exception | None] = asyncio.Queue()

    @property
    def cache_usage(self) -> CacheUsage | None:
        """How much of the context was known, and how much was read; None if that is not known."""
        return None

    @abstractmethod
    def cancel(self) -> None:
        """Ends it at the next token; harmless once it has ended. Never blocks."""

    async def __anext__(self) -> Token:
        heard = await self._heard.get()
        if isinstance(heard, Token):
            return heard
        self._heard.put_nowait(heard)  # the end stays the end
        if heard is None:
            raise StopAsyncIteration
        raise heard

    async def drained(self) -> Self:
        """Itself, once it has come to its end."""
        async for _ in self:
            pass
        return self

    def hear(self, heard: Iterable[Token | Exception], why: End | None = None) -> None:
        """Takes in, within its event loop, what has come; `why` it has ended, if it has."""
        for one in heard:
            if self.first is None and isinstance(one, Token):
                self.first = time.monotonic() - self._start
            self._heard.put_nowait(one)
        if why is not None and self.finish is None:
            self.finish = why
            self._heard.put_nowait(None)
            if self.on_end is not None:
                self.on_end(self)


class Engine(ABC):
    """Writes texts with one model, several at once.

    Attributes:
        model: whose tokenizer, embeddings and context length count.
    """

    model: LanguageModel

    @abstractmethod
    def start(self, request: GenerationRequest) -> AsyncOutputStream:
        """Puts a text in the queue. Never blocks; called from within an event loop.

        Raises:
            BusyError: the queue is full, or the engine is closing.
            InputError: what is wished for cannot be written.
        """

    @abstractmethod
    def load(self) -> EngineLoad:
        """How busy it is now."""

    @abstractmethod
    async def close(self, seconds: float = 10.0) -> None:
        """Takes nothing new, lets what runs come to its end for so long, then cancels it."""


def warm(model: LanguageModel, sampling: Mapping[str, Any]) -> None:
    """Makes what these samplers need of the model, which takes a while: in a worker thread.

    `Engine.start` would make it on the event loop.
    """
    if any(sampling.get(name) for name in STRINGS):
        _ = model.vocabulary


async def merged(texts: Sequence[AsyncOutputStream]) -> AsyncGenerator[tuple[int, Token | None]]:
    """Tokens of several texts as they come, each with its text's number; None when that has ended.

    Closing it, and an error in one of them, ends those that still run.

    Raises:
        BusyError, EngineError: as an engine does.
    """
    heard: asyncio.Queue[tuple[int, Token | Exception | None]] = asyncio.Queue()

    async def follow(number: int, text: AsyncOutputStream) -> None:
        try:
            async for token in text:
                heard.put_nowait((number, token))
        except Exception as error:  # noqa: BLE001 - whoever listens raises it
            heard.put_nowait((number, error))
        else:
            heard.put_nowait((number, None))

    tasks = [asyncio.create_task(follow(number, text)) for number, text in enumerate(texts)]
    left = len(texts)
    try:
        while left:
            number, token = await heard.get()
            if isinstance(token, Exception):
                raise token
            left -= token is None
            yield number, token
    finally:
        cancel_all(texts)
        for task in tasks:
            task.cancel()


def cancel_all(texts: Iterable[AsyncOutputStream]) -> None:
    """Ends those that still run, at the next token."""
    for text in texts:
        if text.finish is None:
            text.cancel()
