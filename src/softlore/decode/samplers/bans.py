"""Bans: ids, and strings in any case and across tokens, that are never generated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from softlore.model.vocabulary import Vocabulary


class BannedLogitsProcessor(LogitsProcessor):
    """Excludes some ids.

    transformers' SuppressTokensLogitsProcessor does the same by comparing every id of the
    vocabulary with every banned one at each step: most of the time of a step, with CTRL's.
    """

    def __init__(self, banned: Sequence[int]) -> None:
        self.banned = torch.tensor(sorted(set(banned)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` with the banned ones at −∞."""
        return scores.index_fill(1, self.banned.to(scores.device), -torch.inf)


class BannedStringsLogitsProcessor(LogitsProcessor):
    """Excludes strings: a token that would complete one is banned at that step.

    Such a token contains a whole string, or begins with the rest of one that the text has begun.
    That is exact, so that nothing is generated and taken back, as in koboldcpp; but
    the model cannot plan for it, so that a word may end in the middle. `input_ids` must be the new
    text alone.
    """

    def __init__(self, strings: Sequence[str], vocabulary: Vocabulary) -> None:
        self._strings = sorted({string.casefold() for string in strings})
        self._longest = max(map(len, self._strings), default=0)
        self._vocabulary = vocabulary
        containing = {i for string in self._strings for i in vocabulary.containing(string)}
        self._always = torch.tensor(sorted(containing), dtype=torch.long)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` with the tokens at −∞ that would complete a string."""
        scores = scores.index_fill(1, self._always.to(scores.device), -torch.inf)
        for row, ids in enumerate(input_ids.tolist()):
            banned = self._completing(*self._vocabulary.text(ids, self._longest))
            if banned:
                scores[row, banned] = -torch.inf
        return scores

    def _completing(self, text: str, partial: bytes) -> list[int]:
        """Ids that complete a string after a text and the first bytes of a character."""
        rests = {s[n:] for s in self._strings for n in range(1, len(s)) if text.endswith(s[:n])}
        ids = {i for rest in rests for i in self._vocabulary.starting_with(rest)}
        if partial:
            ids.difference_update(self._vocabulary.parts)
            completions = self._vocabulary.completions(partial)
            ids.update(i for i, ending in completions if self._completes(text, ending))
        return sorted(ids)

    def _completes(self, text: str, ending: str) -> bool:
        """Whether a string ends within what comes next."""
        after = text + ending
        return any(after.find(s, max(0, len(text) - len(s) + 1)) >= 0 for s in self._strings)


class SparingLogitsProcessor(LogitsProcessor):
    """Wraps a processor so that it has no effect in rows where it would leave no token."""

    def __init__(self, processor: LogitsProcessor) -> None:
        self.processor = processor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` after the other processor, or as they were."""
        after: Tensor = self.processor(input_ids, scores)
        none = after.amax(dim=-1, keepdim=True).isneginf()
        return torch.where(none, scores, after) if none.any() else after
