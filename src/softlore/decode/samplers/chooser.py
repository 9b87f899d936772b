"""The draw: logits through all steps, then a seeded choice, for a row or for many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softlore.decode.loop import Choose
from softlore.decode.samplers.settings import Sampling
from softlore.decode.samplers.steps import Step
from softlore.model import FrozenModel


class Chooser:
    """Chooses a token a row, for one run of writing.

    What it has chosen itself is the new text, which some samplers look at alone, and Mirostat
    learns as it goes: so take another for another text. Rows are told apart by their place.
    """

    def __init__(
        self,
        sampling: Sampling,
        seed: int | None = None,
        model: FrozenModel | None = None,
        before: Sequence[Step] = (),
    ) -> None:
        """A seed makes all draws repeatable; samplers that know strings need the model.

        `before`: steps that stand before those of the sampling.

        Raises:
            ConfigError: strings without a model, or ids that it does not have.
        """
        self._greedy = sampling.greedy
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._steps = [*before, *sampling.steps(model, self._generator)]
        self._remembers = any(step.reads == "written" for step in self._steps)
        self._written = torch.zeros(0, 0, dtype=torch.long)  # [B, tokens chosen so far]
        self._texts: list[_Growing] = []

    def __call__(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids `[B]` from logits `[B, vocab]`; `texts` are the ids that stand so far."""
        if len(logits) != len(self._texts):
            self._written = torch.zeros(len(logits), 0, dtype=torch.long, device=logits.device)
            self._texts = [_Growing() for _ in logits]
        scores = logits
        for step in self._steps:
            scores = self._through(step, scores, texts)
        if self._greedy:
            token = scores.argmax(dim=-1)
        else:
            token = self._drawn(scores.softmax(dim=-1).cpu()).to(logits.device)
        if self._remembers:
            self._written = torch.cat([self._written, token[:, None]], dim=1)
        return token

    def _drawn(self, chances: Tensor) -> Tensor:
        """A token a row, `[B]`, drawn from `[B, vocab]` by one number each.

        torch.multinomial draws a number for every token of the vocabulary, which takes longer than
        all samplers together.
        """
        sums = chances.double().cumsum(dim=-1)
        drawn = torch.rand(len(chances), 1, dtype=torch.float64, generator=self._generator)
        # The first token whose sum is above what was drawn: never one of probability 0.
        found = torch.searchsorted(sums, drawn * sums[:, -1:], right=True)[:, 0]
        return found.clamp_max(chances.shape[1] - 1)  # a product that was rounded up

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


class RowChoosers:
    """A chooser a row: each row is chosen as its own chooser would choose it alone."""

    def __init__(self, choosers: Sequence[Choose]) -> None:
        self.choosers = list(choosers)

    def __call__(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids `[B]` from logits `[B, vocab]`; `texts` are the ids that stand so far."""
        rows = zip(self.choosers, logits.split(1), texts, strict=True)
        return torch.cat([choose(row, [text]) for choose, row, text in rows])


class _Growing:
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
