"""Trainings: one at a time in a thread of its own; others wait, or are paused, also on the disk."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException

from softlore.errors import ConfigError, SoftloreError, StorageError
from softlore.lore import Entry, Lorebook
from softlore.measure.gain import gain_blocks
from softlore.measure.score import fits, recall
from softlore.model import LanguageModel, require_frozen_model
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.serve.studio.headers import share
from softlore.serve.studio.training_files import TrainingFiles
from softlore.serve.studio.training_state import OVER, Training
from softlore.tune import TrainablePrompt, TrainingProgress, WorldInfoTrainer
from softlore.tune.book import plan_book, save_prompts

FOLDER = ".trainings"  # in the library's
MOST_OVER = 50  # that have ended and are still told of
MEASURED = 10  # how often recall is measured on the way
PATIENCE = 5.0  # seconds that an answer waits for what was asked to be so
PREPARING = "the model reads the lore, and writes about it to learn from that"
LAST = 30.0  # seconds for the last update when the server stops
_log = logging.getLogger(__name__)


class Trainings:
    """The trainings of one server; used by several threads.

    Attributes:
        closing: whether the server stops.
    """

    def __init__(self, model: LanguageModel, library: PromptLibrary) -> None:
        self.model, self.library = model, library
        self.closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._files = TrainingFiles(library.folder / FOLDER)
        self._all = {one.id: one for one in self._files.found()}
        for one in self._all.values():
            one.changed = self._changed

    def all(self) -> list[Training]:
        """The newest first."""
        with self._changed:
            return sorted(self._all.values(), key=lambda one: (one.created, one.id), reverse=True)

    def get(self, id: str) -> Training:
        """Raises 404 for one that is not there."""
        with self._changed:
            if id not in self._all:
                raise HTTPException(
                    404, f"there is no training {id!r:.80}; expected one of GET /trainings; look"
                )
            return self._all[id]

    def start(
        self, book: Lorebook, only: list[str], again: bool, settings: Mapping[str, Any]
    ) -> Training:
        """Puts a training in the queue.

        Raises:
            InputError: it cannot be trained so. StorageError. 409: an entry is in training already.
        """
        self._refuse_twice(book.name, only or [entry.name for entry in book])
        plan = plan_book(
            require_frozen_model(self.model, "training"),
            book,
            self.library,
            only=only,
            again=again,
            **settings,
        )
        if plan.trainer is None:
            raise ConfigError(
                "all of that is trained already; expected something new; change an entry, or say "
                "that it is to be trained again"
            )
        names = [entry.name for entry in plan.new]
        training = Training.new(book.name, names, dict(settings), self._changed)
        self._files.begin(training, book, plan.kept.values())
        try:
            self._add(training)
        except HTTPException:
            self._files.remove(training)
            raise
        return training

    def pause(self, id: str) -> Training:
        """Stops a training so that it can go on later, as if it had not stopped."""
        training = self.get(id)
        with self._changed:
            if training.wanted in ("stop", "keep"):
                raise _not_so(training, "paused")
            if training.state == "waiting":
                training.become("paused")
            elif training.state in ("preparing", "running"):
                self._want(training, "pause")
                self._changed.wait_for(lambda: training.state == "paused", PATIENCE)
            elif training.state != "paused":
                raise _not_so(training, "paused")
        return training

    def resume(self, id: str) -> Training:
        """Lets a paused training go on, when those before it are done."""
        training = self.get(id)
        with self._changed:
            if training.state == "paused":
                training.become("waiting")
                training.queued = time.time()
                self._wake()
            elif training.state in OVER:
                raise _not_so(training, "resumed")
            elif training.wanted == "pause":
                training.wanted = ""
                training.message = PREPARING if training.state == "preparing" else ""
        return training

    def stop(self, id: str, keep: bool = False) -> Training:
        """Ends a training. Entries that had come to their end are kept; with `keep`, all are."""
        training = self.get(id)
        with self._changed:
            if training.state == "paused" and keep:
                training.become("waiting")
                training.queued = time.time()
                self._wake()
            if training.state in ("waiting", "paused") and not keep:
                training.become("stopped")
            elif training.state not in OVER:
                self._want(training, "keep" if keep else "stop")
                self._changed.wait_for(lambda: training.state in OVER, PATIENCE)
        if training.state == "stopped":
            self._files.remove(training)
        return training

    async def close(self) -> None:
        """Pauses what runs; it is there to be resumed when the server starts again."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()
        await asyncio.to_thread(self._until_still)

    # inside ------------------------------------------------------------------------------------

    def _add(self, training: Training) -> None:
        """Raises 503 when the server stops, and 409 where another came first meanwhile."""
        with self._changed:
            if self.closing:
                raise HTTPException(503, "the server is closing; ask again later")
            self._refuse_twice(training.book, training.entries)
            self._all[training.id] = training
            self._forget_some()
            self._wake()

    def _refuse_twice(self, book: str, names: list[str]) -> None:
        for one in self.all():
            both = [name for name in names if name in one.entries]
            over = one.state in OVER or one.wanted == "stop"
            if one.book == book and both and not over:
                raise HTTPException(
                    409,
                    f"entry {both[0]!r} is in training already, which is {one.state}; expected it "
                    "to be trained once at a time; resume or stop that training",
                )

    def _want(self, training: Training, what: str) -> None:
        training.wanted = what
        if training.state == "preparing":
            training.message = "it halts as soon as the model has read the lore"

    def _until_still(self) -> None:
        """Until the update that is being made is kept. What is being prepared is begun anew."""
        with self._changed:
            running = [one for one in self._all.values() if one.state == "running"]
            self._changed.wait_for(lambda: all(one.state != "running" for one in running), LAST)

    def _forget_some(self) -> None:
        over = [one for one in self._all.values() if one.state in OVER]
        for one in sorted(over, key=lambda one: one.created)[: max(0, len(over) - MOST_OVER)]:
            del self._all[one.id]

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="training", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    # in the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        while (training := self._next()) is not None:
            try:
                self._train(training)
            except StorageError as error:  # once there is room again, it goes on
                training.become("paused", str(error))
            except SoftloreError as error:
                training.become("failed", str(error))
            except Exception as error:  # noqa: BLE001 - the others must go on
                _log.error("a training failed", exc_info=error)
                training.become("failed", "something went wrong; the server's log says more")
            if training.state in OVER:
                self._files.remove(training)

    def _next(self) -> Training | None:
        """The one that has waited longest, once there is one; None when the server stops."""
        with self._changed:
            while not self.closing:
                waiting = [one for one in self._all.values() if one.state == "waiting"]
                if waiting:
                    training = min(waiting, key=lambda one: one.queued)
                    training.become("preparing", PREPARING)
                    return training
                self._changed.wait()
        return None

    def _train(self, training: Training) -> None:
        trainer = self._trainer(training)
        trainer.prepare()
        if not self._ends(training):
            training.become("running")
            watch = _Watch(training, trainer)
            trainer.on_step = lambda progress: watch(progress) or self._ends(training)
            trainer.train()
        if not trainer.unfinished() and training.wanted != "stop":
            save_prompts(self.library, list(trainer.prompts().values()), trainer)
            training.become("done")
        elif training.wanted in ("stop", "keep"):
            whole = training.wanted == "keep"
            trainables = trainer.trainables.items()
            learned = [n for n, one in trainables if one.stopped or (whole and one.steps)]
            made = trainer.prompts()
            save_prompts(self.library, [made[name] for name in learned], trainer)
            kept = f"kept: {', '.join(learned)}" if learned else "nothing was kept"
            training.become("stopped", kept)
        else:
            self._files.note(training)
            training.become("paused")

    def _ends(self, training: Training) -> bool:
        """Whether it is to come to a halt: paused, stopped, or with the server."""
        return bool(training.wanted) or self.closing

    def _trainer(self, training: Training) -> WorldInfoTrainer:
        """The same trainer as when it began: of the lore and the company as they were then."""
        book, company = self._files.lore(training), self._files.company(training)
        return WorldInfoTrainer(
            require_frozen_model(self.model, "training"),
            entries=[book[name] for name in training.entries],
            company=company,
            company_entries=[entry for entry in book if entry.name in company],
            checkpoint=self._files.checkpoint(training),
            **{**book.training, **training.settings},
        )


class _Watch:
    """Called after each update: puts points on the curves, with recall now and then."""

    def __init__(self, training: Training, trainer: WorldInfoTrainer) -> None:
        self._training, self._trainer = training, trainer
        self._entries = {entry.name: entry for entry in trainer.entries}
        self._fingerprint = trainer.model.fingerprint(trainer.config.kind)
        self._since = time.monotonic()

    def __call__(self, progress: TrainingProgress) -> bool:
        points = {}
        for name, trainable in progress.trainables.items():
            if trainable.steps > self._training.last(name):
                points[name] = self._point(self._entries[name], trainable)
        now = time.monotonic()
        self._training.went(progress.step, progress.done, now - self._since, points)
        self._since = now
        return False

    def _point(self, entry: Entry, trainable: TrainablePrompt) -> dict[str, float | int | None]:
        history = trainable.history
        told = history.response or history.distil
        point: dict[str, float | int | None] = {
            "step": trainable.steps,
            "loss": told[-1] if told else None,
            "drift": history.guard[-1] if history.guard else None,
        }
        often = max(1, trainable.config.max_steps // MEASURED)
        if trainable.steps == 1 or trainable.steps % often == 0 or trainable.stopped:
            point["recall"] = self._recall(entry, trainable)
        return point

    def _recall(self, entry: Entry, trainable: TrainablePrompt) -> float | None:
        """How well the entry's own calls are answered now, from 0 to 1."""
        model, blocks = self._trainer.model, gain_blocks(entry)
        prompt = SoftPrompt(
            name=entry.name,
            kind=trainable.config.kind,
            tensor=trainable.value(),
            fingerprint=self._fingerprint,
        )
        if not blocks or not fits(model, prompt, blocks):
            return None
        return share(recall(model, prompt, blocks))


def _not_so(training: Training, what: str) -> HTTPException:
    state = "being stopped" if training.wanted in ("stop", "keep") else training.state
    return HTTPException(
        409, f"the training is {state}; expected one that can be {what}; begin another"
    )
