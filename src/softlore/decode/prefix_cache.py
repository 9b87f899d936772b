"""Keys and values of sequences that have ended, reused by new ones that begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softlore.context import Tree
from softlore.model import KVCache

# Identifies one key of a cache: a token id, or soft rows and the index of one.
CacheKey = int | tuple[Tensor, int]


@dataclass(frozen=True)
class CacheUsage:
    """How much of a context was cached, and how much was prefilled.

    Attributes:
        reused: tokens whose keys and values were cached.
        read: tokens that were prefilled.
        why: why nothing was reused; empty where something was.
    """

    reused: int
    read: int
    why: str = ""


@dataclass(frozen=True, eq=False)
class CachedSequence:
    """Keys and values of prefixes and of the text after them.

    Attributes:
        keys: identifies the text's keys, see `cache_keys`; may be fewer than `past` holds.
        prefixes: the prefixes before the text.
        past: one row without padding, prefixes first.
    """

    keys: list[CacheKey]
    prefixes: list[Tensor]
    past: KVCache

    def begins(self, other: CachedSequence) -> bool:
        """Whether `other` begins with all of this one."""
        if not same_prefixes(self.prefixes, other.prefixes):
            return False
        return common_length(self.keys, other.keys) == len(self.keys)


class PrefixCache:
    """Sequences of one model that were used last, as vLLM's automatic prefix caching holds them.

    Prefixes are seen by every token, so a sequence is only of use to those with the same ones.

    Args:
        max_bytes: of all keys and values; None: no limit.
        max_sequences: None: no limit.
    """

    def __init__(self, max_bytes: int | None = None, max_sequences: int | None = None) -> None:
        self.max_bytes = max_bytes
        self.max_sequences = max_sequences
        self._sequences: list[CachedSequence] = []  # the one used last is last

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def bytes(self) -> int:
        return sum(sequence.past.bytes for sequence in self._sequences)

    @property
    def tokens(self) -> int:
        return sum(len(sequence.past) for sequence in self._sequences)

    def find(self, tree: Tree) -> tuple[KVCache | None, CacheUsage]:
        """The longest cached beginning of a context, without the context's last token.

        That one must be run in any case, as the next token's logits come from it.
        """
        keys = cache_keys(tree)
        alike = [s for s in self._sequences if same_prefixes(tree.prefixes, s.prefixes)]
        reused, best = 0, None
        for sequence in alike:
            length = min(common_length(keys, sequence.keys), len(keys) - 1)
            if length > reused:
                reused, best = length, sequence
        if best is None:
            return None, CacheUsage(0, len(keys), self._why_none(bool(alike)))
        self._sequences = [*(s for s in self._sequences if s is not best), best]
        prefix_tokens = sum(int(prefix.shape[3]) for prefix in tree.prefixes)
        return best.past.cut(prefix_tokens + reused), CacheUsage(reused, len(keys) - reused)

    def insert(self, new: CachedSequence) -> None:
        """Adds a sequence in place of those that it begins with; the longest unused are dropped."""
        too_large = self.max_bytes is not None and new.past.bytes > self.max_bytes
        if too_large or any(new.begins(sequence) for sequence in self._sequences):
            return
        self._sequences = [s for s in self._sequences if not s.begins(new)]
        self._sequences.append(new)
        while self._is_over():
            self._sequences.pop(0)

    def clear(self) -> None:
        self._sequences.clear()

    def _is_over(self) -> bool:
        many = self.max_sequences is not None and len(self) > self.max_sequences
        return many or (self.max_bytes is not None and self.bytes > self.max_bytes)

    def _why_none(self, same_prefixes: bool) -> str:
        if not self._sequences:
            return "nothing was read before"
        if not same_prefixes:
            return "other soft prompts stand before the text"
        return "its beginning has changed"


def cache_keys(tree: Tree) -> list[CacheKey]:
    """Identifies each key of a tree of one branch, those of prefixes not included."""
    keys: list[CacheKey] = []
    for node in tree.nodes:
        content = node.content
        if isinstance(content, Tensor):
            keys += [(content, row) for row in range(len(content))]
        else:
            keys += content
    return keys


def common_length(a: Sequence[CacheKey], b: Sequence[CacheKey]) -> int:
    """How many keys at the beginning are the same."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if isinstance(x, int) or isinstance(y, int):
            if x is not y and x != y:
                return i
        elif x[1] != y[1] or not _equal(x[0], y[0]):
            return i
    return min(len(a), len(b))


def same_prefixes(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two lists hold the same prefixes, in any order, as their order has no effect."""
    unmatched = list(b)
    for tensor in a:
        match = next((i for i, other in enumerate(unmatched) if _equal(tensor, other)), None)
        if match is None:
            return False
        unmatched.pop(match)
    return not unmatched


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))
