"""From logits to the next token: transformers' processors in one order, then a seeded draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
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
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_k", 0, 10**9),
            ("top_p", 1e-9, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 1e-3, 100.0),
        ):
            value = getattr(self, name)
            kinds = int if name == "top_k" else int | float
            if not isinstance(value, kinds) or not low <= value <= high:
                whole = "a whole number from " if name == "top_k" else ""
                raise ConfigError(
                    f"{name} is {value!r}; expected {whole}{low} to {high}; choose another"
                )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, always."""
        return self.temperature < COLDEST

    def processors(self) -> LogitsProcessorList:
        """What the logits go through before the draw, in order."""
        steps = LogitsProcessorList()
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


class Chooser:
    """Chooses a token a row; `generator` makes the draws repeatable."""

    def __init__(self, sampling: Sampling, seed: int | None = None) -> None:
        self._greedy = sampling.greedy
        self._penal = sampling.repetition_penalty != 1.0
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
