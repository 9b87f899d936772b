"""What is never written: ids, and strings, across tokens and whatever their case."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from softlore.model.vocabulary import Vocabulary


class BannedLogitsProcessor(LogitsProcessor):
    """Never writes some ids.

    transformers' SuppressTokensLogitsProcessor does the same by comparing every id of the
    vocabulary with every banned one at each step: most of the time of a step, with CTRL's.
    """

    def __init__(self, banned: Sequence[int]) -> None:
        self.banned = torch.tensor(sorted(set(banned)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` with the banned ones at −∞."""
        return scores.index_fill(1, self.banned.to(scores.device), -torch.inf)


class BannedStringsLogitsProcessor(LogitsProcessor):
    """Never writes some strings: a token that would complete one is banned at that step.

    Such a token holds a string wholly, or begins with the rest of one that the text ends with the
    beginning of. That is exact, so nothing is ever taken back (as koboldcpp and others do); but
    the model does not see it coming, so a word may be left half written. Only the new text counts:
    hand over that alone.
    """

    def __init__(self, strings: Sequence[str], vocabulary: Vocabulary) -> None:
        self._strings = sorted({one.casefold() for one in strings})
        self._longest = max(map(len, self._strings), default=0)
        self._vocabulary = vocabulary
        holding = {i for one in self._strings for i in vocabulary.containing(one)}
        self._always = torch.tensor(sorted(holding), dtype=torch.long)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` with the tokens at −∞ that would complete a string."""
        scores = scores.index_fill(1, self._always.to(scores.device), -torch.inf)
        for row, ids in enumerate(input_ids.tolist()):
            banned = self._completing(*self._vocabulary.text(ids, self._longest))
            if banned:
                scores[row, banned] = -torch.inf
        return scores

    def _completing(self, text: str, begun: bytes) -> list[int]:
        """Ids that complete a string after a text and the bytes of a character begun."""
        rests = {
            one[n:] for one in self._strings for n in range(1, len(one)) if text.endswith(one[:n])
        }
        found = {i for rest in rests for i in self._vocabulary.starting_with(rest)}
        if begun:
            found.difference_update(self._vocabulary.parts)
            mended = self._vocabulary.completions(begun)
            found.update(i for i, ending in mended if self._completes(text, ending))
        return sorted(found)

    def _completes(self, text: str, ending: str) -> bool:
        """Whether a string ends within what comes next."""
        whole = text + ending
        return any(whole.find(one, max(0, len(text) - len(one) + 1)) >= 0 for one in self._strings)


class SparingLogitsProcessor(LogitsProcessor):
    """Another processor, without effect in a row of which it would leave no token."""

    def __init__(self, processor: LogitsProcessor) -> None:
        self.processor = processor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]` after the other processor, or as they were."""
        after: Tensor = self.processor(input_ids, scores)
        none = after.amax(dim=-1, keepdim=True).isneginf()
        return torch.where(none, scores, after) if none.any() else after
