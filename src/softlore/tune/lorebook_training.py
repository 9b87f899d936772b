"""Trains the new and changed entries of a lorebook into a folder of prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlore.errors import LoreError, PromptError
from softlore.lore import Entry, Lorebook
from softlore.measure.gain import METRIC, measure_gain
from softlore.model import FrozenModel
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.settings import TrainingConfig
from softlore.tune.checkpoint import Checkpointing, load_checkpoint, remove_checkpoint
from softlore.tune.execution import Execution
from softlore.tune.finished_prompt import entry_hash
from softlore.tune.trainer import PromptSet, WorldInfoTrainer
from softlore.tune.training_data import Company

FEW_UPDATES = 12  # of an entry; with fewer it hardly ever knows its calls


@dataclass(frozen=True)
class BookPlan:
    """Which entries of a lorebook are to be trained, and which finished prompts are retained.

    `trainer` is None if there is nothing to train.
    """

    new: list[Entry]
    retained: dict[str, SoftPrompt]
    trainer: WorldInfoTrainer[PromptSet] | None


def plan_book(
    model: FrozenModel,
    book: Lorebook,
    library: PromptLibrary,
    *,
    include: Sequence[str] = (),
    overwrite: bool = False,
    checkpoint_seconds: float = 10.0,
    execution: Execution | None = None,
    **settings: Any,
) -> BookPlan:
    """Finds what a folder already holds, and makes a trainer for the rest.

    An entry's prompt is retained if it is finished, of the same lore, model and kind, and not in
    the checkpoint of a run that has not ended. Retained prompts are
    the company of the new ones in training, and are not changed.

    Args:
        include: names of the entries to train; all when empty.
        overwrite: also train entries (of `include`, if given) whose prompt exists, and ignore a
            checkpoint of another run.
        settings: fields of `TrainingConfig`; they override the book's own `training`.

    Raises:
        ConfigError, LoreError: settings or lore that can't be trained.
    """
    book = book.resolved()
    check_names(book, include)
    settings = {**book.training, **settings}
    kind = TrainingConfig.of(settings).kind
    checkpoint = checkpoint_path(library.folder, book.name)
    unfinished = set() if overwrite else _entries_in(checkpoint)
    retrain = set(include or [entry.name for entry in book]) if overwrite else set()
    retained = {
        name: prompt
        for name, prompt in prompts_for_model(model, finished_prompts(book, library, kind)).items()
        if name not in unfinished | retrain
    }
    new = [e for e in book if e.name not in retained and (not include or e.name in include)]
    if not new:
        return BookPlan([], retained, None)
    trainer = WorldInfoTrainer(
        model,
        entries=new,
        company=Company(retained, [entry for entry in book if entry.name in retained]),
        checkpointing=Checkpointing(checkpoint, checkpoint_seconds, overwrite),
        execution=execution,
        **settings,
    )
    return BookPlan(new, retained, trainer)


def check_names(book: Lorebook, include: Sequence[str]) -> None:
    """Raises LoreError for a book without entries, or a name that is not in it."""
    if not book.entries:
        raise LoreError(f"lorebook {book.name!r} has no entries; expected at least one; add one")
    for name in include:
        book[name]


def save_prompts(
    library: PromptLibrary,
    prompts: Sequence[SoftPrompt],
    trainer: WorldInfoTrainer[Any],
    on_progress: Callable[[float], None] | None = None,
) -> list[Path]:
    """Writes prompts to their folder, each with its gain, and removes the checkpoint.

    `on_progress`: called with the share that is measured, 0 to 1.
    """
    paths = [library.save(prompt) for prompt in with_gain(trainer, prompts, on_progress)]
    if trainer.checkpointing.file is not None:
        remove_checkpoint(trainer.checkpointing.file)
    return paths


def with_gain(
    trainer: WorldInfoTrainer[Any],
    prompts: Sequence[SoftPrompt],
    on_progress: Callable[[float], None] | None = None,
) -> list[SoftPrompt]:
    """The prompts with their measured gain and that of the entry's text in their metrics.

    Those for which a time budget leaves no time stay as they are: stories measure them when they
    need it.
    """
    entries = {entry.name: entry for entry in trainer.entries}
    execution, measured = trainer.execution, []
    for number, prompt in enumerate(prompts, start=1):
        if execution.seconds_left(len(prompts)) > 0:
            gain = measure_gain(trainer.model, entries[prompt.name], prompt)
            prompt = prompt.replace(metrics=prompt.metrics | {METRIC: gain.to_dict()})
        measured.append(prompt)
        if on_progress is not None:
            on_progress(number / len(prompts))
    return measured


def ended_by_time(prompts: Sequence[SoftPrompt]) -> list[SoftPrompt]:
    """The prompts that a time budget ended."""
    return [prompt for prompt in prompts if prompt.training.get("stopped") == "time_budget"]


def too_few_updates(prompts: Sequence[SoftPrompt]) -> int | None:
    """How many updates of an entry a time budget had room for, if too few; else None."""
    steps = min((int(p.training["steps"]) for p in ended_by_time(prompts)), default=FEW_UPDATES)
    return steps if steps < FEW_UPDATES else None


def checkpoint_path(folder: Path, book: str) -> Path:
    """Where the progress of a book's training is saved."""
    return folder / ".training" / (re.sub(r"[^\w.-]+", "-", book).strip("-.") + ".checkpoint")


def _entries_in(checkpoint: Path) -> set[str]:
    """Entries of a run that has not ended: all of them continue, even if some were saved."""
    if not checkpoint.exists():
        return set()
    return set(load_checkpoint(checkpoint)[1]["signature"]["entries"])


def finished_prompts(book: Lorebook, library: PromptLibrary, kind: str) -> PromptSet:
    """Prompts whose training ended and whose entry has not changed since, of whatever model."""
    finished = {}
    for entry in book.resolved():
        try:
            prompt = library[entry.name]
        except (KeyError, PromptError):
            continue
        ended = prompt.training.get("stopped") is not None
        if ended and prompt.kind == kind and prompt.data_hash == entry_hash(entry):
            finished[entry.name] = prompt
    return finished


def prompts_for_model(model: FrozenModel, prompts: Mapping[str, SoftPrompt]) -> PromptSet:
    """The prompts that were made for a model."""
    fitting = {}
    for name, prompt in prompts.items():
        try:
            model.check_prompt(prompt)
        except PromptError:
            continue
        fitting[name] = prompt
    return fitting
