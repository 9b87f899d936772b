"""A lorebook into a folder of prompts: what is new is trained, beside what is already there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlore.errors import LoreError, PromptError
from softlore.lore import Entry, Lorebook
from softlore.measure.gain import METRIC, measure_gain
from softlore.model import FrozenModel
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.settings import TrainingConfig
from softlore.tune.checkpoint import load_checkpoint, remove_checkpoint
from softlore.tune.ranks import Ranks
from softlore.tune.result import entry_hash
from softlore.tune.trainer import WorldInfoTrainer


@dataclass(frozen=True)
class BookPlan:
    """Which entries of a book are to be trained, and which prompts are kept beside them."""

    new: list[Entry]
    kept: dict[str, SoftPrompt]
    trainer: WorldInfoTrainer | None  # None when there is nothing to do


def plan_book(
    model: FrozenModel,
    book: Lorebook,
    library: PromptLibrary,
    *,
    only: Sequence[str] = (),
    again: bool = False,
    time_budget: float | None = None,
    checkpoint_seconds: float = 10.0,
    ranks: Ranks | None = None,
    **settings: Any,
) -> BookPlan:
    """Sees what a folder already holds, and makes a trainer for the rest.

    An entry is kept when its prompt is there, finished, of the same lore, model and kind, and when
    no checkpoint tells of its training. Kept prompts stand beside the new ones in training and are
    not touched.

    Args:
        only: names of entries to train; all when empty.
        again: train even what is there (of `only`, if given), and leave a checkpoint of another
            run aside.
        ranks: the processes that share out each update.
        settings: fields of `TrainingConfig`; they win over the book's own `training`.
    """
    if not book.entries:
        raise LoreError(f"lorebook {book.name!r} has no entries; expected at least one; add one")
    for name in only:
        book[name]  # complains of a name that is not there
    chosen = {**book.training, **settings}
    kind = TrainingConfig.of(chosen).kind  # a stranger's book may name anything
    checkpoint = checkpoint_path(library.folder, book.name)
    begun = _in_training(checkpoint, again)
    kept = {
        name: prompt
        for name, prompt in _kept(model, book, library, kind).items()
        if name not in begun and not (again and (not only or name in only))
    }
    new = [e for e in book if e.name not in kept and (not only or e.name in only)]
    if not new:
        return BookPlan([], kept, None)
    trainer = WorldInfoTrainer(
        model,
        entries=new,
        company=kept,
        company_entries=[entry for entry in book if entry.name in kept],
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        again=again,
        time_budget=time_budget,
        ranks=ranks,
        **chosen,
    )
    return BookPlan(new, kept, trainer)


def save_prompts(
    library: PromptLibrary, prompts: Sequence[SoftPrompt], trainer: WorldInfoTrainer
) -> list[Path]:
    """Writes prompts to their folder, each with what it is worth beside the entry's text.

    Then the checkpoint is no longer needed.
    """
    paths = [library.save(prompt) for prompt in with_gain(trainer, prompts)]
    if trainer.checkpoint is not None:
        remove_checkpoint(trainer.checkpoint)
    return paths


def with_gain(trainer: WorldInfoTrainer, prompts: Sequence[SoftPrompt]) -> list[SoftPrompt]:
    """The prompts, each with what it is worth beside the entry's text."""
    entries = {entry.name: entry for entry in trainer.entries}
    return [
        prompt.replace(
            metrics=prompt.metrics
            | {METRIC: measure_gain(trainer.model, entries[prompt.name], prompt).to_dict()}
        )
        for prompt in prompts
    ]


def checkpoint_path(folder: Path, book: str) -> Path:
    """Where a book's training is kept while it runs."""
    return folder / ".training" / (re.sub(r"[^\w.-]+", "-", book).strip("-.") + ".checkpoint")


def _in_training(checkpoint: Path, again: bool) -> set[str]:
    """Entries of a run that did not come to its end: even if some were already saved, all go on."""
    if again or not checkpoint.exists():
        return set()
    return set(load_checkpoint(checkpoint)[1]["signature"]["entries"])


def _kept(
    model: FrozenModel, book: Lorebook, library: PromptLibrary, kind: str
) -> dict[str, SoftPrompt]:
    return prompts_for_model(model, finished(book, library, kind))


def finished(book: Lorebook, library: PromptLibrary, kind: str) -> dict[str, SoftPrompt]:
    """The prompts that were trained to the end on what a book says now, whatever the model."""
    found = {}
    for entry in book:
        try:
            prompt = library[entry.name]
        except (KeyError, PromptError):
            continue
        ended = prompt.training.get("stopped") is not None
        if ended and prompt.kind == kind and prompt.data_hash == entry_hash(entry):
            found[entry.name] = prompt
    return found


def prompts_for_model(
    model: FrozenModel, prompts: Mapping[str, SoftPrompt]
) -> dict[str, SoftPrompt]:
    """Those of the prompts that were made for a model."""
    found = {}
    for name, prompt in prompts.items():
        try:
            model.check_prompt(prompt)
        except PromptError:
            continue
        found[name] = prompt
    return found
