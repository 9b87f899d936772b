"""The queue of training jobs: one runs at a time, the others wait or are paused."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException

from softlore.errors import ConfigError, SoftloreError, StorageError
from softlore.lore import Lorebook
from softlore.model import LanguageModel, require_frozen_model
from softlore.prompts import PromptLibrary
from softlore.serve.studio.training_files import TrainingFiles
from softlore.serve.studio.training_job import Request, TrainingJob
from softlore.serve.studio.training_run import run_job
from softlore.tune.lorebook_training import plan_book

FOLDER = ".trainings"  # in the library's folder
MAX_FINISHED = 50  # finished jobs that are listed
PATIENCE = 5.0  # seconds that a call waits for the state it asked for
CLOSE_SECONDS = 30.0  # for the last update when the server stops
PREPARING = "the model reads the lore and writes passages about it to learn from"
_log = logging.getLogger(__name__)


class TrainingQueue:
    """The training jobs of one server. Its methods may be called from several threads.

    Args:
        run: runs a job; see `run_job` and `TrainingProcess`.
    """

    def __init__(
        self, model: LanguageModel, library: PromptLibrary, run: Callable[..., None] = run_job
    ) -> None:
        self.model, self.library, self._run = model, library, run
        self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._files = TrainingFiles(library.folder / FOLDER)
        self._jobs = {job.id: job for job in self._files.load()}
        for job in self._jobs.values():
            job.changed = self._changed

    def all(self) -> list[TrainingJob]:
        """All jobs, the newest first."""
        with self._changed:
            return sorted(self._jobs.values(), key=lambda job: (job.created, job.id), reverse=True)

    def get(self, id: str) -> TrainingJob:
        """Raises HTTPException 404 if there is no such job."""
        with self._changed:
            if id not in self._jobs:
                raise HTTPException(
                    404, f"there is no training {id!r:.80}; expected one of GET /trainings"
                )
            return self._jobs[id]

    def start(
        self,
        book: Lorebook,
        entries: list[str],
        overwrite: bool,
        settings: Mapping[str, Any],
        minutes: float | None = None,
    ) -> TrainingJob:
        """Adds a job to the queue.

        Args:
            entries: names; all entries of the book if empty.
            overwrite: whether to train entries that have been trained already.
            settings: fields of `TrainingConfig`.
            minutes: that it may take; None for no limit.

        Raises:
            InputError: it cannot be trained with these settings.
            StorageError: the job could not be saved.
            HTTPException: 409 if one of the entries is in training already.
        """
        self._check_not_in_training(book.name, entries or [entry.name for entry in book])
        plan = plan_book(
            require_frozen_model(self.model, "training"),
            book,
            self.library,
            include=entries,
            overwrite=overwrite,
            **settings,
        )
        if plan.trainer is None:
            raise ConfigError(
                "all of these entries are trained already; expected one that is not; change an "
                "entry, or set `overwrite` to train it again"
            )
        names = [entry.name for entry in plan.new]
        job = TrainingJob.new(book.name, names, dict(settings), minutes, self._changed)
        self._files.create(job, book, plan.retained.values())
        try:
            self._add(job)
        except HTTPException:
            self._files.remove(job)
            raise
        return job

    def pause(self, id: str) -> TrainingJob:
        """Pauses a job; resumed later, it gives the same bits as without the pause."""
        job = self.get(id)
        with self._changed:
            if job.ending:
                raise _conflict(job, "paused")
            if job.state == "waiting":
                job.become("paused")
            elif job.state in ("preparing", "running"):
                self._request(job, "pause")
                self._changed.wait_for(lambda: job.state == "paused", PATIENCE)
            elif job.state != "paused":
                raise _conflict(job, "paused")
        return job

    def resume(self, id: str) -> TrainingJob:
        """Puts a paused job at the end of the queue, or withdraws a request to pause."""
        job = self.get(id)
        with self._changed:
            if job.state == "paused":
                self._enqueue(job)
            elif job.finished:
                raise _conflict(job, "resumed")
            elif job.request == "pause":
                job.request = ""
                job.message = PREPARING if job.state == "preparing" else ""
        return job

    def stop(self, id: str, save: bool = False) -> TrainingJob:
        """Ends a job. Saves the prompts that have finished training, with `save` all of them."""
        job = self.get(id)
        with self._changed:
            if job.state == "paused" and save:
                self._enqueue(job)
            if job.state in ("waiting", "paused") and not save:
                job.become("stopped")
            elif not job.finished:
                self._request(job, "finish" if save else "stop")
                self._changed.wait_for(lambda: job.finished, PATIENCE)
        if job.state == "stopped":
            self._files.remove(job)
        return job

    async def close(self) -> None:
        """Pauses the running job, which can be resumed when the server starts again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        await asyncio.to_thread(self._wait_for_last_update)

    # internals ---------------------------------------------------------------------------------

    def _add(self, job: TrainingJob) -> None:
        """Raises 503 while the server closes, and 409 if an entry was added meanwhile."""
        with self._changed:
            if self._closing:
                raise HTTPException(503, "the server is closing; try again later")
            self._check_not_in_training(job.book, job.entries)
            self._jobs[job.id] = job
            finished = sorted((job for job in self._jobs.values() if job.finished), key=_age)
            for old in finished[: max(0, len(finished) - MAX_FINISHED)]:
                del self._jobs[old.id]
            self._wake()

    def _check_not_in_training(self, book: str, names: list[str]) -> None:
        for job in self.all():
            both = [name for name in names if name in job.entries]
            if job.book == book and both and not job.finished and job.request != "stop":
                raise HTTPException(
                    409,
                    f"entry {both[0]!r} is in a training that is {job.state}; expected one "
                    "training of an entry at a time; resume or stop that one",
                )

    def _request(self, job: TrainingJob, request: Request) -> None:
        job.request = request
        if job.state == "preparing":
            job.message = "it stops as soon as the model has read the lore"

    def _enqueue(self, job: TrainingJob) -> None:
        job.become("waiting")
        job.queued = time.time()
        self._wake()

    def _wait_for_last_update(self) -> None:
        """Waits until the current update is saved. A job that is being prepared starts over."""
        with self._changed:
            running = [job for job in self._jobs.values() if job.state == "running"]
            self._changed.wait_for(
                lambda: all(job.state != "running" for job in running), CLOSE_SECONDS
            )

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="training", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    # in the training thread --------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._run(job, self._files, self.model, self.library, lambda: self._closing)
            except StorageError as error:  # can be resumed once there is space again
                job.become("paused", str(error))
            except SoftloreError as error:
                job.become("failed", str(error))
            except Exception as error:  # noqa: BLE001 - the next job runs all the same
                _log.error("a training failed", exc_info=error)
                job.become("failed", "unexpected error; see the server's log")
            if job.finished:
                self._files.remove(job)

    def _next(self) -> TrainingJob | None:
        """Waits for a job and returns the one queued first; None when the server closes."""
        with self._changed:
            while not self._closing:
                waiting = [job for job in self._jobs.values() if job.state == "waiting"]
                if waiting:
                    job = min(waiting, key=lambda job: job.queued)
                    job.become("preparing", PREPARING)
                    return job
                self._changed.wait()
        return None


def _age(job: TrainingJob) -> float:
    return job.created


def _conflict(job: TrainingJob, action: str) -> HTTPException:
    state = "being stopped" if job.ending else job.state
    return HTTPException(
        409, f"the training is {state}; expected one that can be {action}; start another"
    )
