"""What is kept of a training on the disk, so that it goes on after the server has stopped.

A folder each: `training.json` (what is trained and how, and the curves when it was paused),
`book.json` (the lore as it was at the start), `company/` (the prompts that stand beside), and the
trainer's `checkpoint`.
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
from softlore.serve.studio.curves import Curve
from softlore.serve.studio.training_state import Training

_ID = re.compile(r"[0-9a-f]{8,64}")
_TOLD, _BOOK, _COMPANY, _CHECKPOINT = "training.json", "book.json", "company", "checkpoint"
_log = logging.getLogger(__name__)


class TrainingFiles:
    """The folders of trainings that have not come to an end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def found(self) -> list[Training]:
        """Those that an earlier server left; all of them are paused now."""
        try:
            places = [one for one in self.folder.iterdir() if _ID.fullmatch(one.name)]
        except OSError:
            return []
        found = []
        for place in places:
            try:
                found.append(_read(place))
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                _log.warning("the training in %s cannot be read (%s)", place, type(error).__name__)
        return found

    def begin(self, training: Training, book: Lorebook, company: Iterable[SoftPrompt]) -> None:
        """Keeps what the training begins with. Raises StorageError; nothing is left then."""
        place = self.folder / training.id
        try:
            place.mkdir(parents=True)
        except OSError as error:
            raise storage_error("make the folder", place, error) from error
        try:
            book.save(place / _BOOK)
            beside = PromptLibrary(place / _COMPANY)
            for prompt in company:
                beside.save(prompt)
            self.note(training)
        except SoftloreError:
            self.remove(training)
            raise

    def note(self, training: Training) -> None:
        """Keeps how far it is. Raises StorageError."""
        told = training.told(curves=True) | {"created": training.created}
        content = json.dumps(told, ensure_ascii=False).encode()
        write_atomically(self.folder / training.id / _TOLD, content)

    def remove(self, training: Training) -> None:
        """Nothing is left of it, as far as the disk allows."""
        shutil.rmtree(self.folder / training.id, ignore_errors=True)
        with contextlib.suppress(OSError):  # there are others
            self.folder.rmdir()

    def lore(self, training: Training) -> Lorebook:
        """The lorebook as it was at the start. Raises StorageError where it is gone."""
        place = self.folder / training.id
        if not (place / _BOOK).is_file():
            raise StorageError(
                f"the training {training.id} is no longer in {str(self.folder)!r}; expected its "
                "files; begin another, and stop this one"
            )
        return Lorebook.load(place / _BOOK)

    def company(self, training: Training) -> dict[str, SoftPrompt]:
        """The prompts that stood beside it at the start."""
        return dict(PromptLibrary(self.folder / training.id / _COMPANY))

    def checkpoint(self, training: Training) -> Path:
        return self.folder / training.id / _CHECKPOINT


def _read(place: Path) -> Training:
    data: dict[str, Any] = json.loads((place / _TOLD).read_bytes())
    entries, settings = data["entries"], data["settings"]
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in entries):
        raise ValueError("it is not as it was written")
    return Training(
        id=place.name,
        created=float(data["created"]),
        book=str(data["book"]),
        entries=list(entries),
        settings=settings,
        state="paused",
        step=int(data["step"]),
        done=float(data["done"]),
        seconds=float(data["seconds"]),
        curves={name: Curve.from_told(one) for name, one in data["curves"].items()},
    )
