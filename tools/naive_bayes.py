"""Naive Bayes over words: which of several kinds of text a text is of."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping

WORD = re.compile(r"[a-z]+")


class NaiveBayes:
    """Multinomial naive Bayes over words, add-one smoothed.

    Args:
        texts: of each kind.
    """

    def __init__(self, texts: Mapping[str, str]):
        self.counts = {
            kind: collections.Counter(WORD.findall(text.lower())) for kind, text in texts.items()
        }
        self.words = set().union(*self.counts.values())
        self.sums = {kind: count.total() for kind, count in self.counts.items()}

    def name(self, text: str) -> str:
        """The kind that makes a text's words the likeliest."""
        words = [word for word in WORD.findall(text.lower()) if word in self.words]

        def score(kind: str) -> float:
            counts, total = self.counts[kind], self.sums[kind] + len(self.words)
            return sum(math.log((counts[word] + 1) / total) for word in words)

        return max(self.counts, key=score)
