"""Trains a book in groups: hands them to workers, saves their progress, replaces lost workers."""

from __future__ import annotations

import contextlib
import glob
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softlore.disk import write_atomically
from softlore.errors import SoftloreError, TrainingError
from softlore.lore import Lorebook
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.settings import TrainingConfig
from softlore.tune.checkpoint import exclusive_run, remove_checkpoint, signature_settings
from softlore.tune.groups import (
    GroupRecord,
    GroupTask,
    find_record,
    group_name,
    record_path,
    split_book,
)
from softlore.tune.lorebook_training import check_names, checkpoint_path, finished_prompts
from softlore.tune.worker_pool import GroupReport, WorkerInfo, WorkerLost, WorkerPool, WorkerReply

SLICE_SECONDS = 1.0  # training in one call of a worker
MAX_DEATHS = 3  # worker deaths on one group without a checkpoint between them, before it fails
STOP_SECONDS = 30.0  # to wait for checkpoints of busy workers after Ctrl-C


@dataclass(frozen=True)
class GroupEvent:
    """A change in a group's training.

    Attributes:
        event: "begun", "update", "done", "lost" (its worker has died) or "failed".
        names: of the group's entries.
        reason: why a group was lost or has failed.
    """

    event: str
    names: list[str]
    report: GroupReport
    reason: str = ""


@dataclass(frozen=True)
class GroupRunResult:
    """The result of a run over groups.

    Attributes:
        trained: prompts that this run trained, in the book's order.
        retained: names of entries whose prompts existed.
        paths: files of the trained prompts.
        lost: number of workers that died.
    """

    trained: list[SoftPrompt]
    retained: list[str]
    paths: list[Path] = field(default_factory=list)
    lost: int = 0


@dataclass
class _Job:
    """A group that a worker is training."""

    task: GroupTask
    report: GroupReport | None = None
    saved: float = field(default_factory=time.monotonic)


class GroupRun:
    """Trains a book in groups with a pool of workers.

    Args:
        pool: the workers; see `softlore.tune.worker_pool`.
        library: the folder for prompts, and for checkpoints meanwhile.
        group_size: entries a group.
        include: names of entries to train; all when empty.
        overwrite: also train entries whose prompt exists, and ignore another run's checkpoints.
        checkpoint_seconds: of training that the death of a worker may cost.
        on_event: called with each change of a group.
        settings: fields of `TrainingConfig`; they override the book's own `training`.

    Raises:
        ConfigError, LoreError: settings or lore that can't be trained.
    """

    def __init__(
        self,
        pool: WorkerPool,
        book: Lorebook,
        library: PromptLibrary,
        *,
        group_size: int,
        include: Sequence[str] = (),
        overwrite: bool = False,
        checkpoint_seconds: float = 10.0,
        on_event: Callable[[GroupEvent], None] | None = None,
        **settings: Any,
    ) -> None:
        book = book.resolved()
        check_names(book, include)
        self.pool, self.book, self.library = pool, book, library
        self.parts = split_book(book, group_size)
        self.include, self.overwrite = list(include), overwrite
        self.checkpoint_seconds = checkpoint_seconds
        self.on_event = on_event or (lambda event: None)
        self.settings = {**book.training, **settings}
        self.config = TrainingConfig.of(self.settings)
        self.record_path = record_path(library.folder, book.name)
        self.trained: dict[str, SoftPrompt] = {}
        self.paths: dict[str, Path] = {}
        self.failures: list[SoftloreError] = []
        self.lost = 0
        self._queue: list[GroupTask] = []
        self._jobs: dict[int, _Job] = {}
        self._loading: set[int] = set()
        self._deaths: dict[int, int] = {}

    def run(self) -> GroupRunResult:
        """Trains all groups, resuming an earlier run that was stopped.

        Raises:
            DivergedError and others: the first that a group failed with; the other groups were
                trained nevertheless.
            TrainingError: one group's workers died repeatedly.
            KeyboardInterrupt: after saving checkpoints of all workers.
        """
        with exclusive_run(self.record_path):
            info = self._load_models()
            retained = self._plan(info)
            try:
                self._assign()
                while self._jobs or self._queue:
                    if reply := self.pool.wait():
                        self._handle(reply)
            except KeyboardInterrupt:
                self._save_all()
                raise
            if self.failures:
                raise self.failures[0]
            self._remove_checkpoints()
            self.record_path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.record_path.parent.rmdir()  # fails if something else is in it
        order = [entry.name for entry in self.book if entry.name in self.trained]
        paths = [self.paths[name] for name in order]
        return GroupRunResult([self.trained[name] for name in order], retained, paths, self.lost)

    # before ------------------------------------------------------------------------------------

    def _load_models(self) -> WorkerInfo:
        """Loads the models; returns the info of the first worker that is ready."""
        for worker in range(self.pool.size):
            self.pool.call(worker, "load")
            self._loading.add(worker)
        while True:
            info = self._loaded(self.pool.wait())
            if info is not None:
                return info

    def _loaded(self, reply: WorkerReply | None) -> WorkerInfo | None:
        """The info of a worker that has loaded its model; None for any other reply."""
        if reply is None or reply.method != "load":
            return None
        if isinstance(reply.value, WorkerLost):
            self._replace(reply.worker, 0, reply.value)
            return None
        self._loading.discard(reply.worker)
        info: WorkerInfo = reply.get()
        return info

    def _prompts_for_model(self, prompts: dict[str, SoftPrompt]) -> dict[str, SoftPrompt]:
        """The prompts that were made for the model, according to a worker."""
        if not prompts:
            return {}
        worker = next(w for w in range(self.pool.size) if w not in self._loading)
        self.pool.call(worker, "prompts_for_model", prompts)
        while True:
            reply = self.pool.wait()
            if reply is not None and reply.method == "prompts_for_model":
                names = set(reply.get())
                return {name: prompt for name, prompt in prompts.items() if name in names}
            self._loaded(reply)

    def _plan(self, info: WorkerInfo) -> list[str]:
        """Queues the groups that have something to train. Returns the names of retained prompts."""
        finished = finished_prompts(self.book, self.library, self.config.kind)
        present = self._prompts_for_model(finished)
        self.record, resumed = self._find_record(info)
        pending = set(self.record.pending)
        # An earlier run with overwrite=True has trained all but its pending entries already.
        retrain = self.overwrite and not resumed
        asked = set(self.include or [entry.name for entry in self.book])
        for number, part in enumerate(self.parts, start=1):
            new = [
                entry
                for entry in part
                if entry.name in pending
                or (entry.name in asked and (retrain or entry.name not in present))
            ]
            if not new:
                # Left by a run that was killed as it ended.
                self._checkpoint(number).unlink(missing_ok=True)
                continue
            beside = [e for e in part if e.name in present and e not in new]
            company = {entry.name: present[entry.name] for entry in beside}
            memory = self.record.memory
            self._queue.append(
                GroupTask(number, new, company, beside, self.settings, memory, self.overwrite)
            )
        self.record.pending = [name for task in self._queue for name in task.names]
        if self._queue:
            self.record.save(self.record_path)
        return [name for name in present if name not in self.record.pending]

    def _find_record(self, info: WorkerInfo) -> tuple[GroupRecord, bool]:
        """The record of the run to resume, or of a new one; and whether it is resumed."""
        now = GroupRecord(
            groups=[[entry.name for entry in part] for part in self.parts],
            include=self.include,
            overwrite=self.overwrite,
            settings=signature_settings(self.config),
            threads=self.pool.threads,
            memory=info.memory,
        )
        then = find_record(self.record_path, now)
        if then is None and self.overwrite:
            self._remove_checkpoints()
        return then or now, then is not None

    # during ------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Gives a group to every worker that is free and has loaded its model."""
        for worker in range(self.pool.size):
            if self._queue and worker not in self._jobs and worker not in self._loading:
                job = self._jobs[worker] = _Job(self._queue.pop(0))
                checkpoint = self._read_checkpoint(job.task.number)
                self.pool.call(worker, "begin", job.task, checkpoint)

    def _handle(self, reply: WorkerReply) -> None:
        worker = reply.worker
        if isinstance(reply.value, WorkerLost):
            job = self._jobs.pop(worker, None)
            if job is not None:
                self._queue.insert(0, job.task)
                self._notify("lost", job, reply.value.why)
            self._replace(worker, 0 if job is None else job.task.number, reply.value)
        elif reply.method == "load":
            self._loaded(reply)
        elif isinstance(reply.value, SoftloreError):
            job = self._jobs.pop(worker)
            self.failures.append(reply.value)
            self._notify("failed", job, str(reply.value))
        elif reply.method == "finish":
            self._save_prompts(self._jobs.pop(worker), reply.get())
        else:
            self._continue(worker, self._jobs[worker], reply.method, reply.get())
        self._assign()

    def _continue(self, worker: int, job: _Job, method: str, report: GroupReport) -> None:
        """Saves a worker's checkpoint, if it sent one, and makes the next call."""
        job.report = report
        if report.checkpoint is not None:
            write_atomically(self._checkpoint(job.task.number), report.checkpoint)
            self._deaths.pop(job.task.number, None)
            job.saved = time.monotonic()
        self._notify("begun" if method == "begin" else "update", job)
        if report.finished:
            self.pool.call(worker, "finish")
            return
        due = job.saved + self.checkpoint_seconds - time.monotonic()
        seconds = max(0.0, min(SLICE_SECONDS, due))
        self.pool.call(worker, "advance", seconds, due <= SLICE_SECONDS)

    def _save_prompts(self, job: _Job, prompts: list[SoftPrompt]) -> None:
        """Writes a group's prompts, then removes its checkpoint."""
        self.paths |= {prompt.name: self.library.save(prompt) for prompt in prompts}
        self.trained |= {prompt.name: prompt for prompt in prompts}
        done = set(job.task.names)
        self.record.pending = [name for name in self.record.pending if name not in done]
        self.record.save(self.record_path)
        self._checkpoint(job.task.number).unlink(missing_ok=True)
        self._notify("done", job)

    def _replace(self, worker: int, number: int, lost: WorkerLost) -> None:
        """Replaces a worker that died; `number`: of its group, 0 if it had none."""
        self.lost += 1
        self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._deaths[number] >= MAX_DEATHS:
            what = f"group {number}" if number else "a worker that was loading its model"
            raise TrainingError(
                f"{what} has lost its worker {MAX_DEATHS} times in a row ({lost.why}); expected "
                "it to keep running; give its machine more memory, or use fewer --workers or "
                "a smaller --group-size; progress is saved: the same command continues from there"
            )
        self.pool.replace(worker)
        self._loading.add(worker)
        self.pool.call(worker, "load")

    def _save_all(self) -> None:
        """Saves checkpoints of all workers, waiting a while for those that are busy."""
        waiting = {worker for worker, job in self._jobs.items() if job.report is not None}
        for worker in waiting:
            self.pool.call(worker, "report", True)
        end = time.monotonic() + STOP_SECONDS
        while waiting and time.monotonic() < end:
            reply = self.pool.wait(end - time.monotonic())
            if reply is None:
                break
            if reply.method == "report" or isinstance(reply.value, WorkerLost | Exception):
                waiting.discard(reply.worker)
            checkpoint = getattr(reply.value, "checkpoint", None)
            if checkpoint is not None:
                number = self._jobs[reply.worker].task.number
                write_atomically(self._checkpoint(number), checkpoint)

    # checkpoints -------------------------------------------------------------------------------

    def _remove_checkpoints(self) -> None:
        """Removes the checkpoints of all groups of the book, those of earlier runs too."""
        first = self._checkpoint(1)
        stem = first.name.removesuffix("1.checkpoint")
        for path in first.parent.glob(f"{glob.escape(stem)}[0-9]*.checkpoint"):
            remove_checkpoint(path)

    def _checkpoint(self, number: int) -> Path:
        return checkpoint_path(self.library.folder, group_name(self.book.name, number))

    def _read_checkpoint(self, number: int) -> bytes | None:
        try:
            return self._checkpoint(number).read_bytes()
        except FileNotFoundError:
            return None

    def _notify(self, event: str, job: _Job, reason: str = "") -> None:
        report = job.report or GroupReport(job.task.number, 0, 0.0)
        self.on_event(GroupEvent(event, job.task.names, report, reason))
