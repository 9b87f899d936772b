"""Training jobs on the disk, so that they can be resumed after the server restarts.

Each has a folder: `training.json` (what is trained, and the curves when it was paused),
`book.json` (the lorebook as it was at the start), `company/` (the finished prompts in
its company) and the trainer's `checkpoint`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from softlore.disk import storage_error, write_atomically
from softlore.errors import SoftloreError, StorageError
from softlore.lore import Lorebook
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.serve.studio.training_job import Curve, TrainingJob

_ID = re.compile(r"[0-9a-f]{8,64}")
_JOB, _BOOK, _COMPANY, _CHECKPOINT = "training.json", "book.json", "company", "checkpoint"
_log = logging.getLogger(__name__)


class TrainingFiles:
    """The folders of the jobs that have not finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> list[TrainingJob]:
        """The jobs of an earlier process, all of them paused. Damaged ones are skipped."""
        try:
            folders = [path for path in self.folder.iterdir() if _ID.fullmatch(path.name)]
        except OSError:
            return []
        jobs = []
        for folder in folders:
            try:
                jobs.append(_load(folder))
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                _log.warning("cannot read the training in %s (%s)", folder, type(error).__name__)
        return jobs

    def job(self, number: str) -> TrainingJob:
        """A job as it was saved last. Raises StorageError if its files are gone or damaged."""
        try:
            return _load(self.folder / number)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StorageError(
                f"the training {number} can't be read from {str(self.folder)!r} "
                f"({type(error).__name__}); expected its files; stop it and start another"
            ) from error

    def create(self, job: TrainingJob, book: Lorebook, company: Iterable[SoftPrompt]) -> None:
        """Saves what a job starts from. Raises StorageError, and leaves nothing behind then."""
        folder = self.folder / job.id
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise storage_error("make the folder", folder, error) from error
        try:
            book.save(folder / _BOOK)
            library = PromptLibrary(folder / _COMPANY)
            for prompt in company:
                library.save(prompt)
            self.save(job)
        except SoftloreError:
            self.remove(job)
            raise

    def save(self, job: TrainingJob) -> None:
        """Saves a job's progress and curves. Raises StorageError."""
        data = job.to_dict(curves=True) | {"created": job.created}
        content = json.dumps(data, ensure_ascii=False).encode()
        write_atomically(self.folder / job.id / _JOB, content)

    def remove(self, job: TrainingJob) -> None:
        """Removes a job's folder, as far as the disk allows."""
        shutil.rmtree(self.folder / job.id, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: there are other jobs
            self.folder.rmdir()

    def book(self, job: TrainingJob) -> Lorebook:
        """The lorebook as it was at the start. Raises StorageError if it was removed."""
        path = self.folder / job.id / _BOOK
        if not path.is_file():
            raise StorageError(
                f"the training {job.id} is no longer in {str(self.folder)!r}; expected its files; "
                "stop this one and start another"
            )
        return Lorebook.load(path)

    def company(self, job: TrainingJob) -> dict[str, SoftPrompt]:
        """The finished prompts in its company at the start."""
        return dict(PromptLibrary(self.folder / job.id / _COMPANY))

    def checkpoint(self, job: TrainingJob) -> Path:
        return self.folder / job.id / _CHECKPOINT


def _load(folder: Path) -> TrainingJob:
    data: dict[str, Any] = json.loads((folder / _JOB).read_bytes())
    entries, settings = data["entries"], data["settings"]
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in entries):
        raise ValueError("not a job's settings and entries")
    return TrainingJob(
        id=folder.name,
        created=float(data["created"]),
        book=str(data["book"]),
        entries=list(entries),
        settings=settings,
        minutes=None if (minutes := data.get("minutes")) is None else float(minutes),
        state="paused",
        step=int(data["step"]),
        done=float(data["done"]),
        seconds=float(data["seconds"]),
        curves={name: Curve.from_dict(curve) for name, curve in data["curves"].items()},
    )
