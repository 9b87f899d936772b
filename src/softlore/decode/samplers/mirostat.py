"""Mirostat: keeps the mean surprise of the text near a target."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import LogitsProcessor

FITTED = 100  # ratios of neighbours to which version 1 fits its exponent


class MirostatLogitsProcessor(LogitsProcessor):
    """Mirostat 1 and 2 (Basu et al. 2021, algorithms 1 and 2).

    μ starts at 2τ. Version 2 drops tokens whose surprise, −log₂ p, exceeds μ; version 1 fits
    Zipf's exponent s to the likeliest tokens and keeps 1 + (ε·2^μ / (1 − N^−ε))^(1/s) of them,
    ε = s − 1 and N the size of the vocabulary. After a token of surprise S is sampled,
    μ ← μ − η·(S − τ). S is taken from the probabilities before the cut, as in the authors'
    program; llama.cpp and koboldcpp take it after.

    The sampled token is the last of `input_ids` at the next call; each row has its own μ.
    """

    def __init__(self, version: int, tau: float, eta: float) -> None:
        self.version = version
        self.tau = tau
        self.eta = eta
        self.mu = torch.empty(0)
        self._surprise: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]`, with tokens of too high surprise at −∞."""
        self._update(input_ids, scores)
        surprise = scores.log_softmax(dim=-1) / -math.log(2)  # [B, vocab]
        self._surprise = surprise
        most = self.mu[:, None] if self.version == 2 else self._least_likely(surprise)
        drop = surprise > most
        drop = drop.scatter(1, surprise.argmin(dim=-1, keepdim=True), False)
        return scores.masked_fill(drop, -torch.inf)

    def _least_likely(self, surprise: Tensor) -> Tensor:
        """Version 1: the surprise `[B, 1]` of the last token that each row keeps."""
        size = surprise.shape[1]
        first = surprise.topk(min(FITTED + 1, size), largest=False).values.cpu()
        counts = [
            min(_count_retained(row, size, mu), size)
            for row, mu in zip(first, self.mu, strict=True)
        ]
        ordered = surprise.topk(max(counts), largest=False).values
        return ordered.gather(1, torch.tensor(counts, device=surprise.device)[:, None] - 1)

    def _update(self, input_ids: Tensor, scores: Tensor) -> None:
        """Updates μ by the tokens sampled since the last call, or initializes it."""
        last = self._surprise
        if last is None or len(last) != len(scores) or not input_ids.shape[1]:
            self.mu = torch.full((len(scores),), 2 * self.tau, device=scores.device)
            return
        seen = last.gather(1, input_ids[:, -1:])[:, 0]
        error = torch.where(seen.isfinite(), seen - self.tau, 0)  # a ban may have been lifted
        self.mu = self.mu - self.eta * error


def _count_retained(first: Tensor, size: int, mu: float | Tensor) -> int:
    """How many of `size` tokens version 1 keeps, by the surprises of the first, least first."""
    falls = first.double().diff() * math.log(2)  # ln(p_i / p_i+1)
    steps = (torch.arange(len(falls)).double() + 1).reciprocal().log1p()  # ln((i + 2) / (i + 1))
    finite = falls.isfinite()
    if not finite.any():
        return 1
    falls, steps = falls[finite], steps[finite]
    s = max(float((steps * falls).sum() / (steps**2).sum()), 1e-3)
    epsilon = s - 1 if abs(s - 1) > 1e-6 else 1e-6
    # ε / (1 − N^−ε) is positive whatever ε's sign.
    logarithm = math.log(epsilon / -math.expm1(-epsilon * math.log(size)))
    exponent = (logarithm + float(mu) * math.log(2)) / s
    return 1 + (round(math.exp(exponent)) if exponent < math.log(size) else size)
