"""Dynamic temperature and quadratic smoothing, which transformers lacks."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class DynamicTemperatureLogitsProcessor(LogitsProcessor):
    """Dynamic temperature (kalomaze; koboldcpp's `dynatemp_range` and `dynatemp_exponent`).

    T = low + (high − low) · (H / ln n)^exponent, H being the entropy of the n tokens that are
    left. (koboldcpp looks at the likeliest 3,000 only.)
    """

    def __init__(self, low: float, high: float, exponent: float = 1.0) -> None:
        self.low = low
        self.high = high
        self.exponent = exponent

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` divided by a temperature a row."""
        entropy = torch.special.entr(scores.softmax(dim=-1)).sum(dim=-1, keepdim=True)
        count = (scores > -torch.inf).sum(dim=-1, keepdim=True)
        share = (entropy / count.clamp_min(2).log()).clamp(0, 1)
        return scores / (self.low + (self.high - self.low) * share**self.exponent)


class SmoothingLogitsProcessor(LogitsProcessor):
    """Quadratic smoothing (kalomaze; koboldcpp's `smoothing_factor`), or on a cubic curve.

    With d = x_i − max, x_i becomes max − factor · ((3 − curve) / 2 · d² − (curve − 1) / 2 · d³),
    which is quadratic where the curve is 1: near the likeliest token the others gain, far from it
    they lose (`smoothing_curve` of text-generation-webui).
    """

    def __init__(self, factor: float, curve: float = 1.0) -> None:
        self.square, self.cube = factor * (3 - curve) / 2, factor * (curve - 1) / 2

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` on the curve of each row."""
        best = scores.amax(dim=-1, keepdim=True)
        below = scores - best
        curved = below**2 * (self.cube * below - self.square)
        return best + curved.where(below.isfinite(), below)
