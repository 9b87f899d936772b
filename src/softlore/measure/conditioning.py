"""Measures what a conditioning does: recall, drift and cost for an entry; fidelity."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from softlore.context.compose import ContextLike
from softlore.decode import WeightedTrees, sample_passages
from softlore.decode.conditioning import Conditioning, weighted, with_bare_model
from softlore.lore import Block, Entry
from softlore.lore.study import OPENERS
from softlore.measure import score
from softlore.measure.losses import fidelity, mean_kl, share_of_effect
from softlore.measure.material import (
    FIDELITY,
    HELD_OUT,
    Material,
    lore_passages,
    passage_tokens,
)
from softlore.measure.results import Measures
from softlore.model import FrozenModel
from softlore.prompts import Context


class ConditioningEvaluator:
    """Measures conditionings on the same material.

    The bare model's hidden states on it, and the drift of each set of prompts, are computed once.
    """

    def __init__(self, model: FrozenModel, material: Material, distances: Sequence[int]) -> None:
        self.model = model
        self.material = material
        self.distances = distances
        self._bare = score.comparable_hidden_states(model, "", material.unrelated)
        self._drifts: dict[tuple[object, ...], float | None] = {(): 0.0}

    def measure(self, entries: Sequence[Entry], conditioning: ContextLike) -> list[Measures | None]:
        """Measures all but fidelity and stories, of each entry; None where it does not fit."""
        model = self.model
        if not score.fits_after(model, conditioning, passage_tokens(model)):
            return [None] * len(entries)
        cases: list[tuple[Sequence[Block], int]] = []
        for entry in entries:
            cases += [(entry.blocks, distance) for distance in self.distances]
            cases.append((entry.held_out, 0))
        losses = iter(score.recall_at(model, conditioning, cases, self.material.fillers))
        tokens = Context(conditioning).token_count(model).total
        drift = self._drift(conditioning)
        return [
            Measures(
                tokens=tokens,
                recall={distance: next(losses) for distance in self.distances},
                held_out=next(losses),
                drift=drift,
            )
            for _ in entries
        ]

    def _drift(self, conditioning: ContextLike) -> float | None:
        # Entries of one company share it. Prompts of one name may differ, so the key has the uuid.
        context = Context(conditioning)
        key = (
            *(p if isinstance(p, str) else f"{p.uuid}/{p.kind}" for p in context),
            *context.vectors,
        )
        if key not in self._drifts:
            unrelated = self.material.unrelated
            rows = score.comparable_hidden_states(self.model, conditioning, unrelated)
            self._drifts[key] = mean_kl(self.model, self._bare, rows)
        return self._drifts[key]


class FidelityEvaluator:
    """Measures the fidelity of conditionings to an entry's text, on the same passages.

    The model's hidden states on these after the text, and after nothing, are computed once.

    Args:
        text: the entry's text as a hard prompt; empty if it has none.
        passages: that the model sampled after the text; none where it does not fit the context.
    """

    def __init__(self, model: FrozenModel, text: str, passages: Sequence[Sequence[int]]) -> None:
        self.model = model
        self._passages = passages
        if passages:
            self._known = {before: self._hidden_states(before) for before in (text, "")}
            self._text = self._known[text]
            self._effect = mean_kl(model, self._text, self._known[""])

    def measure(self, conditioning: ContextLike) -> float | None:
        """Share of the text's effect that a conditioning has.

        None if the conditioning or the text does not fit, or the text has no effect.
        """
        model = self.model
        if not self._passages or not score.fits_after(model, conditioning, passage_tokens(model)):
            return None
        rows = self._known.get(conditioning) if isinstance(conditioning, str) else None
        rows = rows or self._hidden_states(conditioning)
        value = share_of_effect(mean_kl(model, self._text, rows), self._effect)
        return value if math.isfinite(value) else None

    def _hidden_states(self, conditioning: ContextLike) -> list[Tensor]:
        return score.comparable_hidden_states(self.model, conditioning, self._passages)


def fidelity_evaluators(
    model: FrozenModel, texts: Sequence[tuple[Entry, str]], seed: int, passages: int = FIDELITY
) -> dict[str, FidelityEvaluator]:
    """A `FidelityEvaluator` of each entry and its text, by the entry's name.

    The passages of all, so many for each, are written in one batch.
    """
    written = lore_passages(model, texts, seed, passages)
    return {
        entry.name: FidelityEvaluator(model, text, of_entry)
        for (entry, text), of_entry in zip(texts, written, strict=True)
    }


def conditioning_trees(model: FrozenModel, conditioning: Conditioning) -> WeightedTrees:
    """The trees before a text under one or several conditionings, with weights that sum to 1."""
    return [
        (score.trunk(model, before), weight)
        for before, weight in with_bare_model(weighted(conditioning))
    ]


def conditioning_fidelity(
    model: FrozenModel, conditioning: Conditioning, soft: ContextLike, seed: int = 0
) -> float:
    """Fidelity of a soft prompt to the conditioning, or mixture, that it was distilled from.

    Measured on passages that the model samples under the conditioning with draws of its own.
    """
    trees = conditioning_trees(model, conditioning)
    count, length = 2 * FIDELITY, passage_tokens(model)
    sampled = sample_passages(model, trees, OPENERS, count, length, HELD_OUT + seed)
    passages = [ids for ids in sampled if len(ids) > 1]
    teacher = score.hidden_states_after(model, trees, passages, score.first_comparable(model))
    bare, student = (score.comparable_hidden_states(model, c, passages) for c in ("", soft))
    return fidelity(model, teacher, bare, student)
