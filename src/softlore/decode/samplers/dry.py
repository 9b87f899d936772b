"""DRY: a penalty on tokens that continue a repetition, which grows with its length."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor
from transformers import LogitsProcessor

MAX_LENGTH = 50  # tokens of a repetition that are counted, as in text-generation-webui
MAX_PENALTY = 1e30  # a penalty beyond it would be infinite in float32


class DRYLogitsProcessor(LogitsProcessor):
    """Don't Repeat Yourself (p-e-w, text-generation-webui, pull request 5677).

    Where the text ends with n tokens that it already contains, followed there by token i,

        x_i − multiplier · base^(n − allowed length),   for n ≥ allowed length and the longest n

    A repetition ends at a breaker, and a token after one has no penalty.
    """

    def __init__(
        self,
        multiplier: float,
        base: float = 1.75,
        allowed_length: int = 2,
        breakers: Collection[int] = (),
        last: int = 0,
    ) -> None:
        """`breakers`: ids. `last`: how many ids at the end are searched; 0: all."""
        self.multiplier = multiplier
        self.base = base
        self.allowed_length = allowed_length
        self.breakers = frozenset(breakers)
        self.last = last

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` less the penalties for `input_ids` `[B, T]`."""
        scores = scores.clone()
        for row, ids in enumerate(input_ids[:, -self.last :].tolist()):
            for token, length in self._repeated(ids).items():
                if length >= self.allowed_length:
                    over = float(length - self.allowed_length)
                    scores[row, token] -= min(self.multiplier * self.base**over, MAX_PENALTY)
        return scores

    def _repeated(self, ids: Sequence[int]) -> dict[int, int]:
        """Tokens that would continue a repetition, and its length so far."""
        if not ids or ids[-1] in self.breakers:
            return {}
        newest = ids[-1]
        longest: dict[int, int] = {}
        for at in [i for i, token in enumerate(ids[:-1]) if token == newest]:
            after = ids[at + 1]
            if after not in self.breakers:
                longest[after] = max(longest.get(after, 0), self._length(ids, at))
        return longest

    def _length(self, ids: Sequence[int], at: int) -> int:
        """How many tokens up to `at` are the same as those at the end of the text."""
        length = 1
        while length < min(MAX_LENGTH, at + 1):
            token = ids[at - length]
            if token != ids[-1 - length] or token in self.breakers:
                break
            length += 1
        return length
