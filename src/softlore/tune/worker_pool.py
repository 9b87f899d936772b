"""A crew: workers that are called, and answer when they are ready. Here: one, in this process."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from softlore.model import FrozenModel
from softlore.tune.worker import Worker


@dataclass(frozen=True)
class WorkerLost:
    """What comes in place of an answer when a worker has died."""

    why: str


@dataclass(frozen=True)
class WorkerReply:
    """What a worker's method returned, the exception that it raised, or `Lost`.

    Attributes:
        worker: which worker, counted from 0.
        method: what was called.
    """

    worker: int
    method: str
    value: Any

    def get(self) -> Any:
        """The value; an exception is raised."""
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class WorkerPool(Protocol):
    """Workers, and calls to them; a worker has one call at a time."""

    threads: int

    @property
    def size(self) -> int:
        """How many workers there are."""
        ...

    def call(self, worker: int, method: str, *arguments: Any) -> None:
        """Calls a method of a worker; the answer comes by `wait`."""
        ...

    def wait(self, seconds: float | None = None) -> WorkerReply | None:
        """The next answer; None when the time is over, or nothing was called."""
        ...

    def replace(self, worker: int) -> None:
        """A new worker in place of one that is lost."""
        ...

    def close(self) -> None:
        """Lets all workers go."""
        ...


class LocalWorkerPool:
    """One worker in this process; calls are made when they are waited for."""

    size = 1

    def __init__(self, model: FrozenModel, threads: int | None = None) -> None:
        self._before = torch.get_num_threads()
        self.threads = threads or self._before
        self._worker = Worker(model, self.threads)
        self._calls: deque[tuple[str, tuple[Any, ...]]] = deque()

    def call(self, worker: int, method: str, *arguments: Any) -> None:
        self._calls.append((method, arguments))

    def wait(self, seconds: float | None = None) -> WorkerReply | None:
        if not self._calls:
            return None
        method, arguments = self._calls.popleft()
        value: Any
        try:
            value = getattr(self._worker, method)(*arguments)
        except Exception as error:  # noqa: BLE001 - whoever waits is to have it
            value = error
        return WorkerReply(0, method, value)

    def replace(self, worker: int) -> None:
        raise AssertionError("this process does not die and go on")

    def close(self) -> None:
        torch.set_num_threads(self._before)
