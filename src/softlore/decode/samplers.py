"""From logits to the next token: transformers' processors in one order, then a seeded draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from softlore.errors import ConfigError

COLDEST = 1e-4  # below this temperature logits would overflow, and the draw is sure anyway


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 (or near it) is greedy; 1 the model's own probabilities.
        top_k: keep this many likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability.
        min_p: drop tokens below this share of the likeliest one's probability.
        repetition_penalty: above 1 makes tokens that already stand in the text less likely.
        penalized: CTRL's own penalty, θ: above 1 divides the logits of such tokens (its authors'
            choice is 1.2, and near-greedy).
        banned: ids that are never written.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    penalized: float = 1.0
    banned: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_k", 0, 10**9),
            ("top_p", 1e-9, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 1e-3, 100.0),
            ("penalized", 1e-3, 100.0),
        ):
            value = getattr(self, name)
            kinds = int if name == "top_k" else int | float
            if not isinstance(value, kinds) or not low <= value <= high:
                whole = "a whole number from " if name == "top_k" else ""
                raise ConfigError(
                    f"{name} is {value!r}; expected {whole}{low} to {high}; choose another"
                )

    @property
    def penal(self) -> bool:
        """Whether what stands in the text matters."""
        return self.repetition_penalty != 1.0 or self.penalized != 1.0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, always."""
        return self.temperature < COLDEST

    def processors(self) -> LogitsProcessorList:
        """What the logits go through before the draw, in order."""
        steps = LogitsProcessorList()
        if self.banned:
            steps.append(BannedLogitsProcessor(self.banned))
        if self.penalized != 1.0:
            steps.append(PenalizedLogitsProcessor(self.penalized))
        if self.repetition_penalty != 1.0:
            steps.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.greedy:
            return steps
        if self.temperature != 1.0:
            steps.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            steps.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            steps.append(TopPLogitsWarper(self.top_p))
        if self.min_p > 0:
            steps.append(MinPLogitsWarper(self.min_p))
        return steps


class PenalizedLogitsProcessor(LogitsProcessor):
    """CTRL's penalized sampling (Keskar et al. 2019, section 4.1).

    p_i ∝ exp(x_i / (T · I(i ∈ g))), I = θ for tokens in the text g and 1 for others: every seen
    logit is divided by θ. transformers' RepetitionPenaltyLogitsProcessor multiplies the negative
    ones instead, so that they too lose; here a seen token whose logit is below 0 gains.
    """

    def __init__(self, theta: float) -> None:
        self.theta = theta

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` with those of `input_ids` `[B, T]` divided, each once."""
        return scores.scatter(1, input_ids, scores.gather(1, input_ids) / self.theta)


class BannedLogitsProcessor(LogitsProcessor):
    """Never writes some ids.

    transformers' SuppressTokensLogitsProcessor does the same by comparing every id of the
    vocabulary with every banned one at each step: most of the time of a step, with CTRL's.
    """

    def __init__(self, banned: Sequence[int]) -> None:
        self.banned = torch.tensor(sorted(set(banned)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` with the banned ones at −∞."""
        return scores.index_fill(1, self.banned.to(scores.device), -torch.inf)


class Chooser:
    """Chooses a token a row; `generator` makes the draws repeatable."""

    def __init__(self, sampling: Sampling, seed: int | None = None) -> None:
        self._greedy = sampling.greedy
        self._penal = sampling.penal
        self._processors = sampling.processors()
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def __call__(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids `[B]` from logits `[B, vocab]`; `texts` are the ids that stand so far."""
        if self._penal:  # rows differ in length, so each is handed over by itself
            rows = [
                self._processors(torch.tensor([list(text)]).long().to(row.device), row[None])
                for text, row in zip(texts, logits, strict=True)
            ]
            logits = torch.cat(rows)
        else:
            logits = self._processors(torch.zeros(len(logits), 0, dtype=torch.long), logits)
        if self._greedy:
            return logits.argmax(dim=-1)
        chances = logits.softmax(dim=-1).cpu()
        return torch.multinomial(chances, 1, generator=self._generator)[:, 0].to(logits.device)
