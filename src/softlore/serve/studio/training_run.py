"""Runs one training job: makes its trainer, records its curves, saves its soft prompts."""

from __future__ import annotations

import time
from collections.abc import Callable

from softlore.lore import Entry
from softlore.measure.gain import gain_blocks
from softlore.measure.score import fits, recall
from softlore.model import LanguageModel, require_frozen_model
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.serve.studio.training_files import TrainingFiles
from softlore.serve.studio.training_job import TrainingJob
from softlore.tune import (
    Checkpointing,
    Company,
    Execution,
    TrainablePrompt,
    TrainingProgress,
    WorldInfoTrainer,
)
from softlore.tune.lorebook_training import save_prompts, too_few_updates
from softlore.tune.losses import curve_names
from softlore.tune.trainer import PromptSet

ESTIMATED_FROM = 0.05  # share of a phase from which its rest is estimated
CALLS_ALONE = "facts alone; with more minutes the tone of the text, too"
FEW = "the time was too short for most lore; train again with more minutes, or fewer at once"
LEAST = 1.0  # seconds for a job that is resumed when its time is over
RECALL_SAMPLES = 10  # measurements of recall during a training


def run_job(
    job: TrainingJob,
    files: TrainingFiles,
    model: LanguageModel,
    library: PromptLibrary,
    closing: Callable[[], bool],
    processes: int = 1,
) -> None:
    """Trains until the job is done, or is asked to pause or stop, or the server closes.

    Args:
        processes: that share the updates of a small model.

    Raises:
        SoftloreError: it cannot be trained.
    """

    def interrupted() -> bool:
        return closing() or bool(job.request)

    trainer = _make_trainer(job, files, model, processes)
    trainer.on_phase = phase = _Phase(job)
    trainer.prepare()
    if not interrupted():
        hurried = trainer.config.distil_weight < trainer.given.distil_weight
        updating = CALLS_ALONE if hurried else ""
        job.become("running", updating)
        recorder = _Recorder(job, trainer)

        def on_step(progress: TrainingProgress) -> bool:
            recorder.record(progress)
            phase.end(updating)
            return interrupted()

        trainer.on_step = on_step
        trainer.train()
    if not trainer.unfinished() and job.request != "stop":
        prompts = list(trainer.prompts().values())
        save_prompts(library, prompts, trainer)
        job.become("done", FEW if too_few_updates(prompts) is not None else "")
    elif job.ending:
        job.become("stopped", _save_some(job, trainer, library))
    else:
        files.save(job)
        job.become("paused")


def _make_trainer(
    job: TrainingJob, files: TrainingFiles, model: LanguageModel, processes: int
) -> WorldInfoTrainer[PromptSet]:
    """The trainer, with lore and company as they were when the job was created."""
    book, company = files.book(job), files.company(job)
    left = None if job.minutes is None else max(LEAST, 60 * job.minutes - job.seconds)
    return WorldInfoTrainer(
        require_frozen_model(model, "training"),
        entries=[book[name] for name in job.entries],
        company=Company(company, book.entries),
        checkpointing=Checkpointing(files.checkpoint(job)),
        execution=Execution(time_budget=left, processes=processes),
        **{**book.training, **job.settings},
    )


def _save_some(
    job: TrainingJob, trainer: WorldInfoTrainer[PromptSet], library: PromptLibrary
) -> str:
    """Saves the prompts of a job that was stopped; returns a message that names them."""
    names = [
        name
        for name, trainable in trainer.trainables.items()
        if trainable.stopped or (job.request == "finish" and trainable.steps)
    ]
    prompts = trainer.prompts()
    save_prompts(library, [prompts[name] for name in names], trainer)
    return f"saved: {', '.join(names)}" if names else "nothing was saved"


class _Phase:
    """Shows in the job's message what is done besides updates, and how far that is."""

    def __init__(self, job: TrainingJob) -> None:
        self._job, self._name, self._start = job, "", 0.0

    def __call__(self, name: str, done: float) -> None:
        now = time.monotonic()
        if name != self._name:
            self._name, self._start = name, now
        message = f"{name}: {done:.0%}" if 0 < done < 1 else name
        if ESTIMATED_FROM < done < 1:
            left = round((now - self._start) * (1 - done) / done)
            message += f", about {left} s left" if left < 100 else f", about {left // 60} min left"
        job = self._job
        if job.state in ("preparing", "running") and not job.request and job.message != message:
            job.become(job.state, message)

    def end(self, message: str) -> None:
        """Shows the message of a running job again, after a phase."""
        if self._name:
            self._name = ""
            self._job.become("running", message)


class _Recorder:
    """Adds points to a job's curves after each update, with recall at intervals."""

    def __init__(self, job: TrainingJob, trainer: WorldInfoTrainer[PromptSet]) -> None:
        self._job, self._model = job, trainer.model
        self._entries = {entry.name: entry for entry in trainer.entries}
        self._fingerprint = trainer.model.fingerprint(trainer.config.kind)
        self._last = time.monotonic()
        self._next: dict[str, float] = {}  # the share that is done when recall is measured again

    def record(self, progress: TrainingProgress) -> None:
        points = {
            name: self._point(self._entries[name], trainable, progress.done)
            for name, trainable in progress.trainables.items()
            if trainable.steps > self._job.last_step(name)
        }
        now = time.monotonic()
        seconds, left = now - self._last, progress.seconds_left
        self._job.record(progress.step, progress.done, seconds, points, left)
        self._last = now

    def _point(
        self, entry: Entry, trainable: TrainablePrompt, done: float
    ) -> dict[str, float | int | None]:
        history, step = trainable.history, trainable.steps
        point: dict[str, float | int | None] = {"step": step}
        point |= {curve: history.last(curve) for curve in curve_names()}
        if done >= self._next.get(entry.name, 0.0) or trainable.stopped:
            self._next[entry.name] = done + 1 / RECALL_SAMPLES
            point["recall"] = self._recall(entry, trainable)
        return point

    def _recall(self, entry: Entry, trainable: TrainablePrompt) -> float | None:
        """Loss of the entry's responses, nats a token; None if there are none that fit."""
        blocks = gain_blocks(entry)
        prompt = SoftPrompt(
            name=entry.name,
            kind=trainable.config.kind,
            tensor=trainable.value(),
            fingerprint=self._fingerprint,
            training={"placement": trainable.config.placement},
        )
        if not blocks or not fits(self._model, prompt, blocks):
            return None
        return recall(self._model, prompt, blocks)
