"""Workers that train groups and try settings, and pools of them; here a pool of one worker.

A worker has a resident model. It may live in this process or on another machine: arguments and
results are plain data.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from softlore import __version__
from softlore.lore import Lorebook
from softlore.model import FrozenModel
from softlore.model.memory import total_memory
from softlore.prompts import SoftPrompt
from softlore.tune.checkpoint import Checkpointing
from softlore.tune.execution import Execution
from softlore.tune.groups import GroupTask
from softlore.tune.lorebook_training import prompts_for_model, with_gain
from softlore.tune.search_space import try_settings
from softlore.tune.trainer import PromptSet, WorldInfoTrainer
from softlore.tune.training_data import Company


@dataclass(frozen=True)
class ModelSpec:
    """The name of a model, which every machine loads for itself."""

    name: str
    dtype: str | None = None
    device: str | None = None
    quantize: str | None = None

    def load(self) -> FrozenModel:
        """Raises ModelError."""
        return FrozenModel.from_pretrained(self.name, self.dtype, self.device, self.quantize)


@dataclass(frozen=True)
class WorkerInfo:
    """A worker's versions, model and device, and the bytes of memory of that device."""

    softlore: str
    torch: str
    model: str
    device: str
    memory: int


@dataclass(frozen=True)
class GroupReport:
    """The state of a group's training.

    Attributes:
        done: share of its updates that have been made, 0 to 1.
        losses: the recent mean loss of each entry, nats a token.
        finished: all updates have been made.
        checkpoint: the content of a checkpoint file, if one was asked for.
    """

    number: int
    step: int
    done: float
    losses: dict[str, float] = field(default_factory=dict)
    finished: bool = False
    checkpoint: bytes | None = None


class Worker:
    """Trains one group at a time.

    Args:
        model: a model that is loaded already, or the name of one for `load`.
        threads: that torch computes with; the same number everywhere gives the same bits.
    """

    def __init__(self, model: FrozenModel | ModelSpec, threads: int) -> None:
        torch.set_num_threads(threads)
        self._spec = model
        self._model = model if isinstance(model, FrozenModel) else None
        self._trainer: WorldInfoTrainer[PromptSet] | None = None
        self._number = 0

    @property
    def model(self) -> FrozenModel:
        """The model, loaded when it is first used."""
        if self._model is None:
            assert isinstance(self._spec, ModelSpec)
            self._model = self._spec.load()
        return self._model

    def load(self) -> WorkerInfo:
        """Loads the model. Raises ModelError."""
        model, version = self.model, str(torch.__version__)
        memory = total_memory(model.device)
        return WorkerInfo(__version__, version, model.name, str(model.device), memory)

    def prompts_for_model(self, prompts: Mapping[str, SoftPrompt]) -> list[str]:
        """Names of the prompts that were made for this model."""
        return list(prompts_for_model(self.model, prompts))

    # groups ------------------------------------------------------------------------------------

    def begin(self, task: GroupTask, checkpoint: bytes | None) -> GroupReport:
        """Makes a group's examples, and resumes from the content of a checkpoint, if given.

        Raises:
            ConfigError, LoreError: settings or lore that can't be trained, or another run's
                checkpoint.
        """
        self._number = task.number
        self._trainer = trainer = WorldInfoTrainer(
            self.model,
            entries=task.entries,
            company=Company(task.company, task.company_entries),
            checkpointing=Checkpointing(overwrite=task.overwrite),
            execution=Execution(memory=task.memory),
            **task.settings,
        )
        with _temporary_checkpoint(trainer) as path:
            if checkpoint is not None:
                path.write_bytes(checkpoint)
            trainer.prepare()
        return self.report()

    def advance(self, seconds: float, checkpoint: bool) -> GroupReport:
        """Makes updates for a while, at least one; reports, with a checkpoint if asked for.

        Raises:
            DivergedError: every entry is as it was before the update.
        """
        trainer = self._begun()
        end = time.monotonic() + seconds
        while trainer.unfinished():
            trainer.update()
            if time.monotonic() >= end:
                break
        return self.report(checkpoint)

    def report(self, checkpoint: bool = False) -> GroupReport:
        """The state of the group, with the content of a checkpoint if asked for."""
        trainer, content = self._begun(), None
        if checkpoint:
            with _temporary_checkpoint(trainer) as path:
                trainer.save()
                content = path.read_bytes()
        progress = trainer.progress()
        losses = {}
        for name, trainable in progress.trainables.items():
            shown = trainable.history.shown()
            recent = None if shown is None else trainable.history.recent(shown)
            if recent is not None:
                losses[name] = recent
        finished = not trainer.unfinished()
        return GroupReport(self._number, trainer.step, progress.done, losses, finished, content)

    def finish(self) -> list[SoftPrompt]:
        """The group's prompts, each with its measured gain."""
        trainer = self._begun()
        prompts = with_gain(trainer, list(trainer.prompts().values()))
        self._trainer = None
        return prompts

    def _begun(self) -> WorldInfoTrainer[PromptSet]:
        assert self._trainer is not None, "begin comes first"
        return self._trainer

    # settings ----------------------------------------------------------------------------------

    def trial(
        self, book: Lorebook, settings: Mapping[str, Any], distances: Sequence[int], seed: int
    ) -> dict[str, float]:
        """Trains a book with some settings and measures the prompts; see `Scores`."""
        return try_settings(self.model, book, settings, distances, seed)


@contextlib.contextmanager
def _temporary_checkpoint(trainer: WorldInfoTrainer[PromptSet]) -> Iterator[Path]:
    """Lets a trainer checkpoint to a file that exists to the end of the block only."""
    without = trainer.checkpointing
    with tempfile.TemporaryDirectory(prefix="softlore-worker-") as folder:
        path = Path(folder) / "group.checkpoint"
        trainer.checkpointing = replace(without, path=path)
        try:
            yield path
        finally:
            trainer.checkpointing = without


# pools -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerLost:
    """In place of a result: the worker has died."""

    why: str


@dataclass(frozen=True)
class WorkerReply:
    """What a worker's method returned, the exception that it raised, or `WorkerLost`.

    Attributes:
        worker: index of the worker.
        method: name of the method.
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
    """Workers and calls to them; a worker has one call at a time."""

    threads: int

    @property
    def size(self) -> int:
        """Number of workers."""
        ...

    def call(self, worker: int, method: str, *arguments: Any) -> None:
        """Starts a call of a worker's method; `wait` returns the reply."""
        ...

    def wait(self, seconds: float | None = None) -> WorkerReply | None:
        """The next reply; None after `seconds`, or if no call is pending."""
        ...

    def replace(self, worker: int) -> None:
        """Starts a new worker in place of one that was lost."""
        ...

    def close(self) -> None:
        """Stops all workers."""
        ...


class LocalWorkerPool:
    """One worker in this process; calls are made by `wait`."""

    size = 1

    def __init__(self, model: FrozenModel, threads: int | None = None) -> None:
        self._threads_before = torch.get_num_threads()
        self.threads = threads or self._threads_before
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
        except Exception as error:  # noqa: BLE001 - raised by WorkerReply.get
            value = error
        return WorkerReply(0, method, value)

    def replace(self, worker: int) -> None:
        raise AssertionError("a worker in this process can't be lost")

    def close(self) -> None:
        torch.set_num_threads(self._threads_before)
