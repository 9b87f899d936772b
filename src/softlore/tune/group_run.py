"""Training a book in groups: dealt out to workers, kept now and then, taken up when one dies."""

from __future__ import annotations

import contextlib
import glob
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softlore.disk import write_atomically
from softlore.errors import LoreError, SoftloreError, TrainingError
from softlore.lore import Lorebook
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.settings import TrainingConfig
from softlore.tune.book import checkpoint_path, finished
from softlore.tune.checkpoint import only_run, remove_checkpoint
from softlore.tune.groups import (
    GroupRecord,
    GroupTask,
    find_record,
    group_name,
    record_path,
    split_book,
)
from softlore.tune.signature import settings_told
from softlore.tune.worker import GroupReport, WorkerInfo
from softlore.tune.worker_pool import WorkerLost, WorkerPool, WorkerReply

SLICE_SECONDS = 1.0  # of training between two words with a worker
DEATHS = 3  # of workers over one group, without an update between, before it is given up
PATIENCE_SECONDS = 30.0  # for workers that are to hand out what they have, when all is stopped


@dataclass(frozen=True)
class GroupEvent:
    """What is told of a group while it trains.

    Attributes:
        event: "begun", "update", "done", "lost" (its worker has died) or "failed".
        said: why, of a group that was lost or has failed.
    """

    event: str
    names: list[str]
    report: GroupReport
    said: str = ""


@dataclass(frozen=True)
class GroupRunResult:
    """What came of a run over groups.

    Attributes:
        made: prompts that this run trained, in the book's order.
        kept: names of those that were there already and stay.
        paths: where the prompts that were made have been written.
        lost: how often a worker has died.
    """

    made: list[SoftPrompt]
    kept: list[str]
    paths: list[Path] = field(default_factory=list)
    lost: int = 0


class GroupRun:
    """A book's training in groups, over a crew.

    Args:
        crew: who trains; see `softlore.tune.worker_pool`.
        library: the folder that the prompts go to, and where checkpoints are kept meanwhile.
        group_size: entries a group.
        only: names of entries to train; all when empty.
        again: train even what is there, and leave another run's checkpoints aside.
        checkpoint_seconds: of training that a worker's death may cost.
        on_news: called with whatever happens to a group.
        settings: fields of `TrainingConfig`; they win over the book's own `training`.

    Raises:
        ConfigError, LoreError: settings or lore that can't be trained.
    """

    def __init__(
        self,
        crew: WorkerPool,
        book: Lorebook,
        library: PromptLibrary,
        *,
        group_size: int,
        only: Sequence[str] = (),
        again: bool = False,
        checkpoint_seconds: float = 10.0,
        on_news: Callable[[GroupEvent], None] | None = None,
        **settings: Any,
    ) -> None:
        if not book.entries:
            raise LoreError(
                f"lorebook {book.name!r} has no entries; expected at least one; add one"
            )
        for name in only:
            book[name]  # complains of a name that is not there
        self.crew, self.book, self.library = crew, book, library
        self.parts = split_book(book, group_size)
        self.only, self.again = list(only), again
        self.checkpoint_seconds = checkpoint_seconds
        self.on_news = on_news or (lambda news: None)
        self.settings = {**book.training, **settings}
        self.config = TrainingConfig.of(self.settings)
        self.record_path = record_path(library.folder, book.name)
        self.made: dict[str, SoftPrompt] = {}
        self.paths: dict[str, Path] = {}
        self.failures: list[SoftloreError] = []
        self.lost = 0
        self._queue: list[GroupTask] = []
        self._jobs: dict[int, _Job] = {}
        self._loading: set[int] = set()
        self._anew = again
        self._deaths: dict[int, int] = {}

    def run(self) -> GroupRunResult:
        """Trains all that is to be trained, or goes on where an earlier run was stopped.

        Raises:
            DivergedError and others: the first that a group ended in; the other groups were
                trained nevertheless.
            TrainingError: one group's workers died again and again.
            KeyboardInterrupt: after keeping what every worker has.
        """
        with only_run(self.record_path):
            facts = self._load()
            kept = self._plan(facts)
            try:
                self._deal()
                while self._jobs or self._queue:
                    if answer := self.crew.wait():
                        self._heard(answer)
            except KeyboardInterrupt:
                self._keep_all()
                raise
            if self.failures:
                raise self.failures[0]
            self._clean_up()
        with contextlib.suppress(OSError):
            self.record_path.parent.rmdir()  # unless something else is in it
        order = [entry.name for entry in self.book if entry.name in self.made]
        paths = [self.paths[name] for name in order]
        return GroupRunResult([self.made[name] for name in order], kept, paths, self.lost)

    # before ------------------------------------------------------------------------------------

    def _load(self) -> WorkerInfo:
        """Loads the models; what the first worker says that is ready will do to begin with."""
        for worker in range(self.crew.size):
            self.crew.call(worker, "load")
            self._loading.add(worker)
        while True:
            facts = self._loaded(self.crew.wait())
            if facts is not None:
                return facts

    def _loaded(self, answer: WorkerReply | None) -> WorkerInfo | None:
        """What a worker says that has loaded its model; None where another answer came."""
        if answer is None or answer.method != "load":
            return None
        if isinstance(answer.value, WorkerLost):
            self._bury(answer.worker, 0, answer.value)
            return None
        self._loading.discard(answer.worker)
        facts: WorkerInfo = answer.get()
        return facts

    def _fitting(self, prompts: dict[str, SoftPrompt]) -> dict[str, SoftPrompt]:
        """Those made for the model, as a worker that has it says."""
        if not prompts:
            return {}
        free = next(w for w in range(self.crew.size) if w not in self._loading)
        self.crew.call(free, "fitting", prompts)
        while True:
            answer = self.crew.wait()
            if answer is not None and answer.method == "fitting":
                names = set(answer.get())
                return {name: prompt for name, prompt in prompts.items() if name in names}
            self._loaded(answer)

    def _plan(self, facts: WorkerInfo) -> list[str]:
        """Sees what is to be trained, and queues it. Returns the names of what stays."""
        there = self._fitting(finished(self.book, self.library, self.config.kind))
        self.record, pending = self._record(facts)
        asked = set(self.only or [entry.name for entry in self.book])
        for number, part in enumerate(self.parts, start=1):
            new = [
                entry
                for entry in part
                if entry.name in pending
                or (entry.name in asked and (entry.name not in there or self._anew))
            ]
            path = self._checkpoint(number)
            if not new:
                path.unlink(missing_ok=True)  # left by a run that was killed as it ended
                continue
            beside = [e for e in part if e.name in there and e not in new]
            company = {entry.name: there[entry.name] for entry in beside}
            self._queue.append(
                GroupTask(
                    number, new, company, beside, self.settings, self.record.memory, self.again
                )
            )
        self.record.pending = [name for task in self._queue for name in task.names]
        if self._queue:
            self.record.save(self.record_path)
        return [name for name in there if name not in self.record.pending]

    def _record(self, facts: WorkerInfo) -> tuple[GroupRecord, set[str]]:
        """The record of the run to go on with, or of a new one; and what it has still to train."""
        now = GroupRecord(
            groups=[[entry.name for entry in part] for part in self.parts],
            only=self.only,
            again=self.again,
            settings=settings_told(self.config),
            threads=self.crew.threads,
            memory=facts.memory,
        )
        then = find_record(self.record_path, now)
        if then is None:
            if self.again:
                self._forget()
            return now, set()
        # What an earlier run with --again has trained already is not trained once more.
        self._anew = False
        return then, set(then.pending)

    # during ------------------------------------------------------------------------------------

    def _deal(self) -> None:
        """Gives a group to every worker that has none and has loaded its model."""
        for worker in range(self.crew.size):
            if self._queue and worker not in self._jobs and worker not in self._loading:
                job = _Job(self._queue.pop(0))
                self._jobs[worker] = job
                self.crew.call(worker, "begin", job.task, self._kept(job.task.number))

    def _heard(self, answer: WorkerReply) -> None:
        """Goes on with what a worker has answered."""
        worker = answer.worker
        if isinstance(answer.value, WorkerLost):
            job = self._jobs.pop(worker, None)
            if job is not None:
                self._queue.insert(0, job.task)
                self._tell("lost", job, answer.value.why)
            self._bury(worker, 0 if job is None else job.task.number, answer.value)
        elif answer.method == "load":
            self._loaded(answer)
        elif isinstance(answer.value, SoftloreError):
            job = self._jobs.pop(worker)
            self.failures.append(answer.value)
            self._tell("failed", job, str(answer.value))
        else:
            self._go_on(worker, self._jobs[worker], answer.method, answer.get())
        self._deal()

    def _go_on(self, worker: int, job: _Job, method: str, value: Any) -> None:
        if method == "finish":
            del self._jobs[worker]
            self._save(job, value)
            return
        job.report = value
        if value.checkpoint is not None:
            write_atomically(self._checkpoint(job.task.number), value.checkpoint)
            self._deaths.pop(job.task.number, None)
            job.kept = time.monotonic()
        self._tell("begun" if method == "begin" else "update", job)
        if value.finished:
            self.crew.call(worker, "finish")
            return
        due = job.kept + self.checkpoint_seconds - time.monotonic()
        keep = due <= SLICE_SECONDS
        self.crew.call(worker, "advance", max(0.0, min(SLICE_SECONDS, due)), keep)

    def _save(self, job: _Job, prompts: list[SoftPrompt]) -> None:
        """Writes a group's prompts; then its checkpoint is no longer needed."""
        self.paths |= {prompt.name: self.library.save(prompt) for prompt in prompts}
        self.made |= {prompt.name: prompt for prompt in prompts}
        done = set(job.task.names)
        self.record.pending = [name for name in self.record.pending if name not in done]
        self.record.save(self.record_path)
        self._checkpoint(job.task.number).unlink(missing_ok=True)
        self._tell("done", job)

    def _bury(self, worker: int, number: int, lost: WorkerLost) -> None:
        """A new worker for one that died; it is given up where that goes on and on."""
        self.lost += 1
        self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._deaths[number] >= DEATHS:
            what = f"group {number}" if number else "a worker that was loading its model"
            raise TrainingError(
                f"{what} has lost its worker {DEATHS} times in a row ({lost.why}); expected one "
                "that lives; see whether its machine has memory enough, take fewer --workers or "
                "a smaller --group-size; progress is kept: the same command goes on from there"
            )
        self.crew.replace(worker)
        self._loading.add(worker)
        self.crew.call(worker, "load")

    # after -------------------------------------------------------------------------------------

    def _keep_all(self) -> None:
        """Asks every worker for a checkpoint, and waits a while for those that are busy."""
        for worker, job in self._jobs.items():
            if job.report is not None:
                self.crew.call(worker, "keep")
        end = time.monotonic() + PATIENCE_SECONDS
        waited = {worker for worker, job in self._jobs.items() if job.report is not None}
        while waited and time.monotonic() < end:
            answer = self.crew.wait(end - time.monotonic())
            if answer is None:
                break
            if answer.method == "keep" or isinstance(answer.value, WorkerLost | Exception):
                waited.discard(answer.worker)
            checkpoint = getattr(answer.value, "checkpoint", None)
            if checkpoint is not None:
                number = self._jobs[answer.worker].task.number
                write_atomically(self._checkpoint(number), checkpoint)

    def _clean_up(self) -> None:
        self._forget()
        self.record_path.unlink(missing_ok=True)

    def _forget(self) -> None:
        """Removes the checkpoints of all groups of the book, of earlier runs too."""
        first = self._checkpoint(1)
        stem = first.name.removesuffix("1.checkpoint")
        for path in first.parent.glob(f"{glob.escape(stem)}[0-9]*.checkpoint"):
            remove_checkpoint(path)

    def _checkpoint(self, number: int) -> Path:
        return checkpoint_path(self.library.folder, group_name(self.book.name, number))

    def _kept(self, number: int) -> bytes | None:
        try:
            return self._checkpoint(number).read_bytes()
        except FileNotFoundError:
            return None

    def _tell(self, event: str, job: _Job, said: str = "") -> None:
        report = job.report or GroupReport(job.task.number, 0, 0.0)
        self.on_news(GroupEvent(event, job.task.names, report, said))


@dataclass
class _Job:
    """A group in a worker's hands."""

    task: GroupTask
    report: GroupReport | None = None
    kept: float = field(default_factory=time.monotonic)
