"""Measures of generated text: copying, perplexity and repetition."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from softlore.measure.score import token_losses, trunk
from softlore.model import FrozenModel

Ids = Sequence[int]
GRAM = 4  # tokens in the same order that count as copied


@dataclass(frozen=True)
class Copy:
    """How much several outputs repeat their sources.

    Attributes:
        run: tokens of the longest run that an output has in common with a source.
        share: share of the outputs' runs of `GRAM` tokens that occur in a source; None where no
            output is that long.
    """

    run: int
    share: float | None


def copied(outputs: Sequence[Ids], sources: Sequence[Ids], gram: int = GRAM) -> Copy:
    """Measures how much outputs (token ids) repeat of sources (token ids, tokenized alike)."""
    known = set(_all_runs(sources, gram))
    runs = list(_all_runs(outputs, gram))
    share = sum(run in known for run in runs) / len(runs) if runs else None
    return Copy(longest_run(outputs, sources), share)


def longest_run(outputs: Sequence[Ids], sources: Sequence[Ids]) -> int:
    """Tokens of the longest run that occurs both in an output and in a source."""
    length = 0
    while not set(_all_runs(outputs, length + 1)).isdisjoint(_all_runs(sources, length + 1)):
        length += 1
    return length


def _all_runs(texts: Iterable[Ids], length: int) -> Iterable[tuple[int, ...]]:
    """Every run of `length` tokens within a text."""
    for text in texts:
        for start in range(len(text) - length + 1):
            yield tuple(text[start : start + length])


def perplexity(model: FrozenModel, stories: Sequence[tuple[Ids, Ids]]) -> float | None:
    """Perplexity under the bare model of the second of each pair (opening, written), in token ids.

    None where nothing was written.
    """
    pairs = [(opening, written) for opening, written in stories if opening and written]
    if not pairs:
        return None
    losses = torch.cat(token_losses(model, trunk(model, ""), pairs))
    return math.exp(float(losses.mean()))


def distinct(texts: Sequence[Ids], length: int = 2) -> float | None:
    """distinct-n (Li et al. 2016): share of distinct runs of `length` tokens, averaged over texts.

    1 for texts that never repeat themselves; None where no text is that long.
    """
    runs = [list(_all_runs([text], length)) for text in texts]
    shares = [len(set(of_text)) / len(of_text) for of_text in runs if of_text]
    return sum(shares) / len(shares) if shares else None
