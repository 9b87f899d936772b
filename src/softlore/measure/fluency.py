"""Fluency: whether the model itself takes a text for good text, and whether it repeats itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from softlore.measure.score import token_losses, trunk
from softlore.model import FrozenModel

Ids = Sequence[int]


def perplexity(model: FrozenModel, stories: Sequence[tuple[Ids, Ids]]) -> float | None:
    """Perplexity of what was written, in pairs (opening, written), under the bare model.

    None where nothing was written.
    """
    pairs = [(opening, written) for opening, written in stories if opening and written]
    if not pairs:
        return None
    losses = torch.cat(token_losses(model, trunk(model, ""), pairs))
    return math.exp(float(losses.mean()))


def distinct(texts: Sequence[Ids], length: int = 2) -> float | None:
    """Share of runs of `length` tokens that are different ones, each text by itself, on average.

    1 never repeats itself. None where no text is that long.
    """
    shares = []
    for text in texts:
        runs = [tuple(text[i : i + length]) for i in range(len(text) - length + 1)]
        if runs:
            shares.append(len(set(runs)) / len(runs))
    return sum(shares) / len(shares) if shares else None
