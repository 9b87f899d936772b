"""Truncation that transformers lacks: tail-free, top-a, top-n-sigma and XTC.

Each leaves at least one token in a row and sets the others to −∞.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class TailFreeLogitsProcessor(LogitsProcessor):
    """Tail-free sampling (Bricken 2019), as in KoboldAI.

    With p sorted from the likeliest on, the shares of |p″| (its second difference) are summed up
    from the start; where the sum exceeds z the tail begins. The place of a second difference is
    that of the middle of its three tokens, so that the first always stays and the last never.
    """

    def __init__(self, z: float) -> None:
        self.z = z

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` without the tail."""
        if scores.shape[1] < 3:
            return scores
        ordered, places = scores.sort(dim=-1, descending=True)
        bends = ordered.softmax(dim=-1).diff().diff().abs()
        total = bends.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(bends.dtype).tiny)
        tail = bends.cumsum(dim=-1) / total > self.z
        first, last = torch.zeros_like(tail[:, :1]), torch.ones_like(tail[:, :1])
        gone = torch.cat([first, tail, last], dim=-1)
        return scores.masked_fill(torch.zeros_like(gone).scatter(1, places, gone), -torch.inf)


class TopALogitsProcessor(LogitsProcessor):
    """Top-a (BlinkDL, RWKV-LM; KoboldAI): drops p_i < a · p_max²."""

    def __init__(self, a: float) -> None:
        self.a = a

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]`, with tokens below the threshold at −∞."""
        p = scores.softmax(dim=-1)
        least = self.a * p.amax(dim=-1, keepdim=True) ** 2
        return scores.masked_fill(p < least, -torch.inf)


class TopNSigmaLogitsProcessor(LogitsProcessor):
    """Top-nσ (Tang et al. 2024): drops x_i < max − n·σ, σ being the standard deviation of logits.

    Of the logits that are not excluded yet; the result is the same at every temperature.
    """

    def __init__(self, n: float) -> None:
        self.n = n

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]`, with tokens far below the greatest at −∞."""
        finite = scores > -torch.inf
        count = finite.sum(dim=-1, keepdim=True).clamp_min(1)
        mean = scores.masked_fill(~finite, 0).sum(dim=-1, keepdim=True) / count
        apart = (scores - mean).masked_fill(~finite, 0)
        sigma = (apart**2).sum(dim=-1, keepdim=True).div(count).sqrt()
        best = scores.amax(dim=-1, keepdim=True)
        return scores.masked_fill(scores < best - self.n * sigma, -torch.inf)


class XTCLogitsProcessor(LogitsProcessor):
    """Exclude Top Choices (p-e-w, text-generation-webui, pull request 6335).

    With some probability, all tokens with p ≥ threshold are dropped but the least likely of them.
    (That program spares a newline and the text's end; koboldcpp does not, nor is it done here.)
    """

    def __init__(
        self, probability: float, threshold: float, generator: torch.Generator | None = None
    ) -> None:
        """`generator` makes the draws, one a row; without it torch's own does."""
        self.probability = probability
        self.threshold = threshold
        self.generator = generator

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]`, in some rows without the top choices."""
        p = scores.softmax(dim=-1)
        top = (p >= self.threshold) & (scores > -torch.inf)
        least = p.masked_fill(~top, torch.inf).argmin(dim=-1, keepdim=True)
        drawn = torch.rand(len(scores), 1, generator=self.generator) < self.probability
        gone = top.scatter(1, least, False) & drawn.to(scores.device)
        return scores.masked_fill(gone, -torch.inf)
