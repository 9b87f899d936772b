"""What every engine does: texts are started, told a token at a time, and cancelled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Self

from softlore.decode import Reading, Token, Wish
from softlore.decode.telling import Finish
from softlore.model import FrozenModel

End = Finish | Literal["cancelled", "timeout"]


@dataclass(frozen=True)
class Load:
    """How busy an engine is.

    Attributes:
        running: texts that are being read or written.
        waiting: texts in the queue.
        slots: texts that can run at once.
        queue: texts that can wait.
        tokens: keys and values that are held, in tokens: running texts and kept ones.
        bytes: the same in bytes.
    """

    running: int
    waiting: int
    slots: int
    queue: int
    tokens: int = 0
    bytes: int = 0


class Running(AsyncIterator[Token]):
    """A text that was started: its tokens as they come. Used within one event loop.

    Iteration ends when the text does; an engine that fails raises EngineError there.

    Attributes:
        text, ids: what has come so far.
        finish: how it ended; None while it goes on.
        stopped_by: the stop string that ended it.
        reading: how much of the context was known, and how much was read; None until it was.
    """

    text: str = ""
    ids: list[int]
    finish: End | None = None
    stopped_by: str | None = None
    reading: Reading | None = None

    @abstractmethod
    async def __anext__(self) -> Token: ...

    @abstractmethod
    def cancel(self) -> None:
        """Ends it at the next token; harmless once it has ended. Never blocks."""

    async def drained(self) -> Self:
        """Itself, once it has come to its end."""
        async for _ in self:
            pass
        return self


class Engine(ABC):
    """Writes texts with one model, several at once.

    Attributes:
        model: whose tokenizer, embeddings and context length count.
    """

    model: FrozenModel

    @abstractmethod
    def start(self, wish: Wish) -> Running:
        """Puts a text in the queue. Never blocks; called from within an event loop.

        Raises:
            BusyError: the queue is full, or the engine is closing.
            InputError: what is wished for cannot be written.
        """

    @abstractmethod
    def load(self) -> Load:
        """How busy it is now."""

    @abstractmethod
    async def close(self, seconds: float = 10.0) -> None:
        """Takes nothing new, lets what runs come to its end for so long, then cancels it."""
