"""Sampler: logits through all steps, then a seeded draw, for one row or many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from softlore.decode.samplers.steps import Step, build_steps
from softlore.model import LanguageModel
from softlore.settings import SamplingParams


class Sampler:
    """Samples the tokens of one text, or of several side by side, distinguished by row.

    It has state: the ids it sampled, which are all that some steps read, and Mirostat's. Use a new
    one for each text.

    Args:
        params: what the steps are made from.
        seed: makes all draws repeatable.
        model: whose tokens they are; steps that look for strings need it.
        before: steps that come before those of `params`.
        advance: called with each id that is sampled.

    Raises:
        ConfigError: strings without a model, or ids that it does not have.
    """

    def __init__(
        self,
        params: SamplingParams,
        seed: int | None = None,
        model: LanguageModel | None = None,
        before: Sequence[Step] = (),
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self.params = params
        self._advance = advance
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._steps = [*before, *build_steps(params, model, self._generator)]
        self._remembers = any(step.reads == "written" for step in self._steps)
        self._sampled = torch.zeros(0, 0, dtype=torch.long)  # [B, tokens sampled so far]
        self._texts: list[_GrowingIds] = []

    def __call__(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids `[B]` from logits `[B, vocab]`; `texts` are the ids of each text so far."""
        self._open_rows(logits)
        scores = logits
        for step in self._steps:
            scores = self._apply(step, scores, texts)
        token = _draw(scores, None if self.params.greedy else self._numbers(len(scores)))
        self._remember(token)
        return token

    def _open_rows(self, logits: Tensor) -> None:
        if len(logits) != len(self._texts):
            self._sampled = torch.zeros(len(logits), 0, dtype=torch.long, device=logits.device)
            self._texts = [_GrowingIds() for _ in logits]

    def _numbers(self, rows: int) -> Tensor:
        """A number from 0 to 1 a row, which decides its draw: `[B, 1]`."""
        return torch.rand(rows, 1, dtype=torch.float64, generator=self._generator)

    def _remember(self, token: Tensor) -> None:
        if self._advance is not None:
            for i in token.tolist():
                self._advance(i)
        if self._remembers:
            self._sampled = torch.cat([self._sampled, token[:, None]], dim=1)

    def _apply(self, step: Step, scores: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        if step.reads == "written":
            return step.processor(self._sampled, scores)
        if step.reads == "nothing":
            return step.processor(self._sampled[:, :0], scores)
        rows = [  # texts differ in length, so each is handed over by itself
            step.processor(known.ids(text, scores.device), row[None])
            for known, text, row in zip(self._texts, texts, scores, strict=True)
        ]
        return torch.cat(rows) if len(rows) > 1 else rows[0]


def sample_each(
    samplers: Sequence[Sampler], logits: Tensor, texts: Sequence[Sequence[int]]
) -> list[int | Exception]:
    """A token id for each row of logits `[B, vocab]`, by its own sampler, or what that raised.

    They are what the samplers would give one by one. Rows with the same parameters go through
    their steps together, except for steps that look at a row's text or draw.
    """
    groups = _group_alike(samplers)
    if len(groups) == 1:
        return _sample_alike(samplers, logits, texts)
    sampled: dict[int, int | Exception] = {}
    for rows in groups:
        parts = [samplers[row] for row in rows], logits[rows], [texts[row] for row in rows]
        sampled.update(zip(rows, _sample_alike(*parts), strict=True))
    return [sampled[row] for row in range(len(samplers))]


def _group_alike(samplers: Sequence[Sampler]) -> list[list[int]]:
    """Rows whose samplers have the same parameters and so many steps."""
    by_object: dict[tuple[int, int], list[int]] = {}  # many rows share one object of parameters
    for row, sampler in enumerate(samplers):
        by_object.setdefault((id(sampler.params), len(sampler._steps)), []).append(row)
    groups: dict[tuple[SamplingParams, int], list[int]] = {}
    for (_, n_steps), rows in by_object.items():
        groups.setdefault((samplers[rows[0]].params, n_steps), []).extend(rows)
    return [sorted(rows) for rows in groups.values()]


def _sample_alike(
    samplers: Sequence[Sampler], logits: Tensor, texts: Sequence[Sequence[int]]
) -> list[int | Exception]:
    """`sample_each` for samplers with the same parameters."""
    first, scores = samplers[0], logits
    failed: dict[int, Exception] = {}
    try:
        for sampler, row in zip(samplers, logits.split(1), strict=True):
            sampler._open_rows(row)
        for index, step in enumerate(first._steps):
            if step.alike:
                scores = first._apply(step, scores, texts)
            else:
                scores = _apply_each(index, samplers, scores, texts, failed)
        numbers = None
        if not first.params.greedy:
            numbers = torch.cat([sampler._numbers(1) for sampler in samplers])
        tokens = _draw(scores, numbers)
        for sampler, token in zip(samplers, tokens.split(1), strict=True):
            sampler._remember(token)
    except Exception as error:  # noqa: BLE001 - of a step that all of these rows have
        return [error] * len(samplers)
    return [failed.get(row, token) for row, token in enumerate(tokens.tolist())]


def _apply_each(
    index: int,
    samplers: Sequence[Sampler],
    scores: Tensor,
    texts: Sequence[Sequence[int]],
    failed: dict[int, Exception],
) -> Tensor:
    """Scores `[B, vocab]` after each sampler's step; exceptions are put into `failed` by row."""
    after = scores.clone()
    for row, (sampler, text) in enumerate(zip(samplers, texts, strict=True)):
        if row not in failed:
            try:
                after[row] = sampler._apply(sampler._steps[index], scores[row : row + 1], [text])[0]
            except Exception as error:  # noqa: BLE001 - of one text, which must end no other
                failed[row] = error
    return after


def _draw(scores: Tensor, numbers: Tensor | None) -> Tensor:
    """Token ids `[B]` from scores `[B, vocab]` by a number each; None takes the likeliest.

    torch.multinomial draws a number for every token of the vocabulary, which takes longer than all
    steps together.
    """
    if numbers is None:
        return scores.argmax(dim=-1)
    sums = scores.softmax(dim=-1).cpu().double().cumsum(dim=-1)
    # The first token whose sum is above the number: never one of probability 0.
    tokens = torch.searchsorted(sums, numbers * sums[:, -1:], right=True)[:, 0]
    tokens = tokens.clamp_max(scores.shape[1] - 1)  # a product that was rounded up
    return tokens.to(scores.device)


class _GrowingIds:
    """A text's ids as a tensor that grows in place, as copying it takes longer."""

    def __init__(self) -> None:
        self._known: list[int] = []
        self._room = torch.empty(1, 0, dtype=torch.long)

    def ids(self, text: Sequence[int], device: torch.device) -> Tensor:
        """The ids `[1, T]`; all are copied if they do not go on from those of the last call."""
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
