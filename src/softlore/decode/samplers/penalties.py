"""Repetition penalties: CTRL's, over a range with a slope, by presence and by frequency."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class PenalizedLogitsProcessor(LogitsProcessor):
    """CTRL's penalized sampling (Keskar et al. 2019, section 4.1).

    p_i ∝ exp(x_i / (T · I(i ∈ g))), I = θ for tokens in the text g and 1 for others: every seen
    logit is divided by θ. transformers' RepetitionPenaltyLogitsProcessor multiplies the negative
    ones instead, which lowers them too; here a seen token with a negative logit becomes likelier.
    """

    def __init__(self, theta: float) -> None:
        self.theta = theta

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` with those of `input_ids` `[B, T]` divided, each once."""
        return scores.scatter(1, input_ids, scores.gather(1, input_ids) / self.theta)


class RangedRepetitionLogitsProcessor(LogitsProcessor):
    """The repetition penalty over the last tokens only, weaker with distance: KoboldAI's.

    A token whose last occurrence among the newest R is the i-th, from 0, has a penalty of

        1 + (penalty − 1) · (y + 1) / 2,   y = s·x / (1 + |x|·(s − 1)),   x = 2i / (R − 1) − 1

    with the slope s, so that the oldest of a full range has none and the newest all of it. The
    curve is flat in the middle for s < 1 and steep there for s > 1; s = 0 is the full penalty for
    all. Logits above 0 are divided by it, others multiplied, as in transformers, whose penalty this
    is for s = 0 and a range that holds the whole text. (koboldcpp's slope means
    something else: the share of the penalty that the older half of the range gets.)
    """

    def __init__(self, penalty: float, last: int, slope: float = 0.0) -> None:
        self.penalty = penalty
        self.last = last
        self.slope = slope

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` with those of the last of `input_ids` `[B, T]` penalized."""
        ids = input_ids[:, -self.last :]
        if not ids.shape[1]:
            return scores
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        newest = torch.zeros_like(scores, dtype=torch.long).scatter_reduce(1, ids, places, "amax")
        penalties = self._newest(ids.shape[1]).to(scores)[newest.gather(1, ids)]
        seen = scores.gather(1, ids)
        return scores.scatter(1, ids, torch.where(seen < 0, seen * penalties, seen / penalties))

    def _newest(self, count: int) -> Tensor:
        """The penalties of the newest places of the range: `[count]`, however long it is."""
        place = torch.arange(self.last - count, self.last, dtype=torch.float64)
        x = 2 * place / (self.last - 1) - 1 if self.last > 1 else torch.ones_like(place)
        away = x.abs()
        curve = self.slope * x / (1 - away + self.slope * away) if self.slope else 1.0
        return 1 + (self.penalty - 1) * (curve + torch.ones_like(x)) / 2


class CountLogitsProcessor(LogitsProcessor):
    """Presence and frequency penalties, as in OpenAI's API: x_i − α_p · [c_i > 0] − α_f · c_i.

    c_i counts token i in the new text, without the prompt: `input_ids` must be that alone.
    """

    def __init__(self, presence: float, frequency: float) -> None:
        self.presence = presence
        self.frequency = frequency

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` less the penalties for the counts in `input_ids` `[B, T]`."""
        if not input_ids.shape[1]:
            return scores
        ones = torch.ones_like(input_ids, dtype=scores.dtype)
        counts = torch.zeros_like(scores).scatter_add_(1, input_ids, ones)
        return scores - self.frequency * counts - self.presence * (counts > 0)
