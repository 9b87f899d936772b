"""Runs training jobs in a copy of the server's process, made before the server has threads.

There the updates of a small model are shared by processes, one a core (see `tune.forked`), and
training does not hold up the texts that the server writes meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from softlore.errors import SoftloreError, StorageError, TrainingError
from softlore.model import FrozenModel, LanguageModel
from softlore.prompts import PromptLibrary
from softlore.serve.studio.training_files import TrainingFiles
from softlore.serve.studio.training_job import TrainingJob
from softlore.serve.studio.training_run import run_job
from softlore.tune.forked import Pipe, SupportsClose, pays, start_copy

INTERVAL = 0.05  # seconds after which a request of the studio is passed on
CLOSING = "close"  # the request of a server that stops
ENDED, FAILED, BROKEN = "ended", "failed", "broken"  # messages about a job, beside its methods


class TrainingProcess:
    """The copy, in which one job at a time runs.

    What happens to the job there is sent here as the name and the arguments of a method of
    `TrainingJob`; the studio's requests go the other way.

    Args:
        pid: of the copy.
        pipe: this process's end.
    """

    def __init__(self, pid: int, pipe: Pipe) -> None:
        self.pid, self._pipe = pid, pipe
        self._alive = True

    @classmethod
    def start(
        cls, model: LanguageModel, library: PromptLibrary, inherited: Sequence[SupportsClose] = ()
    ) -> TrainingProcess | None:
        """Makes the copy; None where processes train the model no faster, or can't be made.

        Args:
            inherited: what the copy closes, such as sockets.
        """
        if not (isinstance(model, FrozenModel) and pays(model)):
            return None
        return cls(*start_copy(partial(_run_jobs, model, library.folder), inherited))

    def run(
        self,
        job: TrainingJob,
        files: TrainingFiles,
        model: LanguageModel,
        library: PromptLibrary,
        closing: Callable[[], bool],
    ) -> None:
        """Runs a job as `run_job` does, and in this process once the copy has ended.

        Raises:
            SoftloreError: it cannot be trained.
            StorageError: it can go on later: the disk refuses, or the copy has ended.
        """
        if not self._alive:
            run_job(job, files, model, library, closing)
            return
        sent: str = ""
        self._send(str(files.folder), job.id)
        while True:
            name, *arguments = self._receive()
            if name == ENDED:
                return
            if name:
                _raise_or_apply(job, name, arguments)
            if (request := CLOSING if closing() else job.request) != sent:
                self._send(sent := request)

    def close(self) -> None:
        """Ends the copy, which has no job any more."""
        self._alive = False
        self._pipe.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _send(self, *message: str) -> None:
        with self._lost():
            self._pipe.send_bytes(json.dumps(message).encode())

    def _receive(self) -> list[Any]:
        """The next message; an empty one if there is none for a moment."""
        with self._lost():
            return json.loads(self._pipe.recv_bytes()) if self._pipe.poll(INTERVAL) else [""]

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        """Translates errors of the pipe."""
        try:
            yield
        except (EOFError, OSError) as error:
            self._alive = False
            raise StorageError(
                "the process that trained has ended, mostly for want of memory; expected it to go "
                "on to the end; what it saved last is kept; resume the training"
            ) from error


def _raise_or_apply(job: TrainingJob, name: str, arguments: list[Any]) -> None:
    if name == FAILED:
        kind, message = arguments
        raise (StorageError if kind == StorageError.__name__ else TrainingError)(message)
    if name == BROKEN:
        raise RuntimeError(*arguments)
    getattr(job, name)(*arguments)


# in the copy -----------------------------------------------------------------------------------


class _Messages:
    """The server's end of the copy's pipe."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self.closing = False

    def send(self, name: str, *arguments: Any) -> None:
        self._pipe.send_bytes(json.dumps([name, *arguments]).encode())

    def receive(self) -> list[str]:
        received: list[str] = json.loads(self._pipe.recv_bytes())
        return received

    def interrupted(self, job: TrainingJob) -> bool:
        """Takes the requests that have come; whether the server stops, or has ended."""
        try:
            while self._pipe.poll():
                (request,) = self.receive()
                self.closing = request == CLOSING
                job.request = "" if self.closing else request  # type: ignore[assignment]
        except (EOFError, OSError):
            self.closing = True
        return self.closing


class _ReportedJob(TrainingJob):
    """A job that sends on what happens to it."""

    messages: _Messages

    def become(self, state: Any, message: str = "") -> None:
        super().become(state, message)
        self.messages.send("become", state, message)

    def record(self, *arguments: Any) -> None:
        super().record(*arguments)
        self.messages.send("record", *arguments)


def _run_jobs(model: FrozenModel, folder: Path, pipe: Pipe) -> None:
    """Runs the jobs that the server names, until it ends; `folder`: of its prompts."""
    messages, processes = _Messages(pipe), torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of several threads does not outlive a fork
    with contextlib.suppress(EOFError, OSError):
        while True:
            named = messages.receive()
            if len(named) != 2:  # a request for a job that had ended
                continue
            of_jobs, number = named
            messages.closing = False
            try:
                files = TrainingFiles(Path(of_jobs))
                job = _ReportedJob(**vars(files.job(number)))
                job.state, job.messages = "preparing", messages
                closing = partial(messages.interrupted, job)
                run_job(job, files, model, PromptLibrary(folder), closing, processes)
                messages.send(ENDED)
            except SoftloreError as error:
                messages.send(FAILED, type(error).__name__, str(error))
            except Exception as error:  # noqa: BLE001 - the server logs it; the next job runs
                frames = "".join(traceback.format_tb(error.__traceback__))
                messages.send(BROKEN, f"{type(error).__name__}, from:\n{frames}")
