"""Copy: how much of what is written repeats, word for word, what was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Ids = Sequence[int]
GRAM = 4  # tokens that must stand in the same order to count as copied


@dataclass(frozen=True)
class Copy:
    """How much several outputs repeat their sources.

    Attributes:
        run: tokens of the longest run that an output has in common with a source.
        share: share of the outputs' runs of `GRAM` tokens that stand in a source; None where
            no output is that long.
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
    """Tokens of the longest run that stands in an output and in a source alike."""
    length = 0
    while not set(_all_runs(outputs, length + 1)).isdisjoint(_all_runs(sources, length + 1)):
        length += 1
    return length


def _all_runs(texts: Iterable[Ids], length: int) -> Iterable[tuple[int, ...]]:
    """Every run of `length` tokens; none crosses from a text to the next."""
    for text in texts:
        for start in range(len(text) - length + 1):
            yield tuple(text[start : start + length])
