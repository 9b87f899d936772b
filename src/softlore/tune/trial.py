"""A trial of a sweep: a book trained with some settings, and what comes of it in two figures."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from softlore.lore import Entry, Lorebook
from softlore.measure import evaluate, recall
from softlore.measure.gain import gain_blocks
from softlore.measure.results import Measures
from softlore.measure.score import fits
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt
from softlore.tune.trainer import WorldInfoTrainer


@dataclass(frozen=True)
class Scores:
    """What some settings came to, as a mean over the entries.

    Attributes:
        recall: NLL of held-out calls' responses, nats a token, alone and in company; of the
            entry's own calls, or its text's sentences, where it has none.
        drift: KL to the bare model on unrelated text, nats a token, alone and in company.
        seconds: how long training took.
    """

    recall: float
    drift: float
    seconds: float

    def score(self, drift_weight: float) -> float:
        """What a sweep makes small: recall plus so many times drift."""
        return self.recall + drift_weight * self.drift


def try_settings(
    model: FrozenModel,
    book: Lorebook,
    settings: Mapping[str, Any],
    distances: Sequence[int],
    seed: int,
) -> dict[str, float]:
    """Trains a book with some settings, in memory, and returns the fields of `Scores`."""
    start = time.monotonic()
    trainer = WorldInfoTrainer(model, entries=book.entries, **settings)
    prompts: dict[str, SoftPrompt] = trainer.train()
    seconds = time.monotonic() - start
    found = evaluate(model, book, prompts, seed=seed, stories=0, distances=distances)
    recalls: list[float | None] = []
    drifts: list[float | None] = []
    for result in found.entries:
        alone, company = result.conditionings.get("soft"), result.conditionings.get("company")
        drifts += [one.drift for one in (alone, company) if one is not None]
        asked = [_recall(one) for one in (alone, company) if one is not None]
        if asked.count(None) == len(asked):
            asked = [_recall_of_text(model, book[result.name], prompts[result.name])]
        recalls += asked
    return asdict(Scores(_mean(recalls), _mean(drifts), seconds))


def _recall(measured: Measures) -> float | None:
    """Of held-out calls; of the entry's own, over all distances, where there are none."""
    at = [value for value in measured.recall.values() if value is not None]
    return measured.held_out if measured.held_out is not None else sum(at) / len(at) if at else None


def _recall_of_text(model: FrozenModel, entry: Entry, prompt: SoftPrompt) -> float | None:
    """Of the sentences of an entry that has a text only."""
    blocks = gain_blocks(entry)
    return recall(model, prompt, blocks) if blocks and fits(model, prompt, blocks) else None


def _mean(values: Sequence[float | None]) -> float:
    """Of those that are there; not a number where there is none, so that the trial has failed."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else math.nan
