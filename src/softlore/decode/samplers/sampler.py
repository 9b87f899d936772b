"""The draw: logits through all steps, then a seeded choice, for a row or for many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softlore.decode.samplers.steps import Step, build_steps
from softlore.model import LanguageModel
from softlore.settings import SamplingParams


class Sampler:
    """Chooses a token a row, for one run of writing.

    What it has chosen itself is the new text, which some samplers look at alone, and Mirostat
    learns as it goes: so take another for another text. Rows are told apart by their place.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        seed: int | None = None,
        model: LanguageModel | None = None,
        before: Sequence[Step] = (),
    ) -> None:
        """A seed makes all draws repeatable; samplers that know strings need the model.

        `before`: steps that stand before those of the sampling.

        Raises:
            ConfigError: strings without a model, or ids that it does not have.
        """
        self._sampling = sampling
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._steps = [*before, *build_steps(sampling, model, self._generator)]
        self._remembers = any(step.reads == "written" for step in self._steps)
        self._written = torch.zeros(0, 0, dtype=torch.long)  # [B, tokens chosen so far]
        self._texts: list[_GrowingIds] = []

    def __call__(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids `[B]` from logits `[B, vocab]`; `texts` are the ids that stand so far."""
        self._begin(logits)
        scores = logits
        for step in self._steps:
            scores = self._through(step, scores, texts)
        token = _drawn(scores, None if self._sampling.greedy else self._numbers(len(scores)))
        self._remember(token)
        return token

    def _begin(self, logits: Tensor) -> None:
        if len(logits) != len(self._texts):
            self._written = torch.zeros(len(logits), 0, dtype=torch.long, device=logits.device)
            self._texts = [_GrowingIds() for _ in logits]

    def _numbers(self, rows: int) -> Tensor:
        """What decides the draw: a number from 0 to 1 a row, `[B, 1]`."""
        return torch.rand(rows, 1, dtype=torch.float64, generator=self._generator)

    def _remember(self, token: Tensor) -> None:
        if self._remembers:
            self._written = torch.cat([self._written, token[:, None]], dim=1)

    def _through(self, step: Step, scores: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        if step.reads == "written":
            return step.processor(self._written, scores)
        if step.reads == "nothing":
            return step.processor(self._written[:, :0], scores)
        rows = [  # they differ in length, so each is handed over by itself
            step.processor(known.ids(text, scores.device), row[None])
            for known, text, row in zip(self._texts, texts, scores, strict=True)
        ]
        return torch.cat(rows) if len(rows) > 1 else rows[0]


def sample_each(
    choosers: Sequence[Sampler], logits: Tensor, texts: Sequence[Sequence[int]]
) -> Tensor:
    """Token ids `[B]` from logits `[B, vocab]`, each row chosen by its own chooser.

    They are what the choosers would give one by one. Rows with the same sampling go through its
    steps together, but for what looks at their texts or draws on the way.
    """
    groups: dict[tuple[SamplingParams, int], list[int]] = {}
    for row, chooser in enumerate(choosers):
        groups.setdefault((chooser._sampling, len(chooser._steps)), []).append(row)
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    for rows in groups.values():
        mine = [choosers[row] for row in rows]
        tokens[rows] = _chosen_alike(mine, logits[rows], [texts[row] for row in rows])
    return tokens


def _chosen_alike(
    choosers: Sequence[Sampler], logits: Tensor, texts: Sequence[Sequence[int]]
) -> Tensor:
    """`choose_each` for choosers with the same sampling."""
    first, scores = choosers[0], logits
    for chooser, row in zip(choosers, logits.split(1), strict=True):
        chooser._begin(row)
    for place, step in enumerate(first._steps):
        if step.alike:
            scores = first._through(step, scores, texts)
            continue
        each = zip(choosers, scores.split(1), texts, strict=True)
        scores = torch.cat(
            [one._through(one._steps[place], row, [text]) for one, row, text in each]
        )
    numbers = None
    if not first._sampling.greedy:
        numbers = torch.cat([chooser._numbers(1) for chooser in choosers])
    tokens = _drawn(scores, numbers)
    for chooser, token in zip(choosers, tokens.split(1), strict=True):
        chooser._remember(token)
    return tokens


def _drawn(scores: Tensor, numbers: Tensor | None) -> Tensor:
    """A token a row, `[B]`, from scores `[B, vocab]` by one number each; None takes the likeliest.

    torch.multinomial draws a number for every token of the vocabulary, which takes longer than all
    samplers together.
    """
    if numbers is None:
        return scores.argmax(dim=-1)
    sums = scores.softmax(dim=-1).cpu().double().cumsum(dim=-1)
    # The first token whose sum is above the number: never one of probability 0.
    found = torch.searchsorted(sums, numbers * sums[:, -1:], right=True)[:, 0]
    found = found.clamp_max(scores.shape[1] - 1)  # a product that was rounded up
    return found.to(scores.device)


class _GrowingIds:
    """A text's ids as a tensor to which new ones are added, as making it anew takes longer."""

    def __init__(self) -> None:
        self._known: list[int] = []
        self._room = torch.empty(1, 0, dtype=torch.long)

    def ids(self, text: Sequence[int], device: torch.device) -> Tensor:
        """The ids `[1, T]`; another text than before, or one that was changed, is read anew."""
        known = len(self._known)
        if list(text[:known]) != self._known:
            known = 0
        new = list(text[known:])
        if len(text) > self._room.shape[1] or self._room.device != device:
            room = torch.empty(1, 2 * len(text), dtype=torch.long, device=device)
            room[:, :known] = self._room[:, :known]
            self._room = room
        if new:
            self._room[0, known : len(text)] = torch.tensor(new, device=device)
        self._known[known:] = new
        return self._room[:, : len(text)]
