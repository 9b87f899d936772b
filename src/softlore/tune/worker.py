"""A worker: one resident model that trains groups, a little at a call, and tries settings.

It may live in this process, or in one of another machine: what goes in and out is plain data.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from softlore import __version__
from softlore.lore import Lorebook
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt
from softlore.tune.book import prompts_for_model, with_gain
from softlore.tune.groups import GroupTask
from softlore.tune.memory_plan import machine_memory
from softlore.tune.trainer import WorldInfoTrainer
from softlore.tune.trial import try_settings


@dataclass(frozen=True)
class ModelSpec:
    """A model as every machine can load it."""

    name: str
    dtype: str | None = None
    device: str | None = None

    def load(self) -> FrozenModel:
        """Raises ModelError."""
        return FrozenModel.from_pretrained(self.name, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself: versions, model, device, and bytes that it has."""

    softlore: str
    torch: str
    model: str
    device: str
    memory: int


@dataclass(frozen=True)
class GroupReport:
    """How far a group is.

    Attributes:
        done: share of its updates that are behind, 0 to 1.
        losses: the last mean loss of each entry, nats a token.
        finished: it has come to its end.
        checkpoint: what a worker elsewhere would go on from, where it was asked for.
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
        model: a model that is loaded already, or the name of one, which `load` loads.
        threads: that torch computes with; the same number everywhere gives the same bits.
    """

    def __init__(self, model: FrozenModel | ModelSpec, threads: int) -> None:
        torch.set_num_threads(threads)
        self._named = model
        self._model = model if isinstance(model, FrozenModel) else None
        self._trainer: WorldInfoTrainer | None = None
        self._number = 0

    @property
    def model(self) -> FrozenModel:
        if self._model is None:
            assert isinstance(self._named, ModelSpec)
            self._model = self._named.load()
        return self._model

    def load(self) -> WorkerInfo:
        """Loads the model, once. Raises ModelError."""
        model = self.model
        version = str(torch.__version__)
        return WorkerInfo(
            __version__, version, model.name, str(model.device), machine_memory(model)
        )

    def prompts_for_model(self, prompts: Mapping[str, SoftPrompt]) -> list[str]:
        """Names of the prompts that were made for this model."""
        return list(prompts_for_model(self.model, prompts))

    # groups ------------------------------------------------------------------------------------

    def begin(self, task: GroupTask, checkpoint: bytes | None) -> GroupReport:
        """Makes a group's examples, and goes on from a checkpoint if there is one.

        Raises:
            ConfigError, LoreError: settings or lore that can't be trained, or another run's
                checkpoint.
        """
        self._number = task.number
        self._trainer = trainer = WorldInfoTrainer(
            self.model,
            entries=task.entries,
            company=task.company,
            company_entries=task.company_entries,
            again=task.again,
            memory=task.memory,
            **task.settings,
        )
        with _kept_for_now(trainer) as path:
            if checkpoint is not None:
                path.write_bytes(checkpoint)
            trainer.prepare()
        return self._report(keep=False)

    def advance(self, seconds: float, keep: bool) -> GroupReport:
        """Makes updates for a while, one at least; with `keep`, hands out a checkpoint.

        Raises:
            DivergedError: every entry is as it was before the update.
        """
        trainer = self._begun()
        end = time.monotonic() + seconds
        while trainer.unfinished():
            trainer.update()
            if time.monotonic() >= end:
                break
        return self._report(keep)

    def keep(self) -> GroupReport:
        """A checkpoint of what has been done so far."""
        return self._report(keep=True)

    def finish(self) -> list[SoftPrompt]:
        """The group's prompts, each with what it is worth beside the entry's text."""
        trainer = self._begun()
        prompts = with_gain(trainer, list(trainer.prompts().values()))
        self._trainer = None
        return prompts

    def _begun(self) -> WorldInfoTrainer:
        assert self._trainer is not None, "begin comes first"
        return self._trainer

    def _report(self, keep: bool) -> GroupReport:
        trainer = self._begun()
        checkpoint = None
        if keep:
            with _kept_for_now(trainer) as path:
                trainer.save()
                checkpoint = path.read_bytes()
        progress = trainer.progress()
        losses = {}
        for name, trainable in progress.trainables.items():
            recent = [trainable.history.recent(kind) for kind in ("response", "distil")]
            known = [value for value in recent if value is not None]
            if known:
                losses[name] = known[0]
        finished = not trainer.unfinished()
        return GroupReport(self._number, trainer.step, progress.done, losses, finished, checkpoint)

    # settings ----------------------------------------------------------------------------------

    def trial(
        self, book: Lorebook, settings: Mapping[str, Any], distances: Sequence[int], seed: int
    ) -> dict[str, float]:
        """Trains a book with some settings and measures what comes of it; see `trial.Scores`."""
        return try_settings(self.model, book, settings, distances, seed)


@contextlib.contextmanager
def _kept_for_now(trainer: WorldInfoTrainer) -> Iterator[Path]:
    """A path for a checkpoint to the end of the block: a worker that is killed leaves no files."""
    with tempfile.TemporaryDirectory(prefix="softlore-worker-") as folder:
        trainer.checkpoint = Path(folder) / "group.checkpoint"
        try:
            yield trainer.checkpoint
        finally:
            trainer.checkpoint = None
