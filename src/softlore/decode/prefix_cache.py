"""Keys and values of sequences that have ended, reused by new ones that begin alike."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from torch import Tensor

from softlore.context import Tree
from softlore.context.tree import CacheKey, common_length, same_tensor
from softlore.model import KVCache
from softlore.model.steering import same_steering


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


class TextKeys:
    """Identifies the keys of a text: its tokens, and what each of them has seen.

    Keys and values of a token are the same in two texts that begin alike at the same position, see
    the same prefixes and are steered by the same control vectors. A prefix that is seen late leaves
    the text before it as it was.

    Attributes:
        tokens: a token id, or soft rows and the index of one, for each key.
        start: the first one's position.
        seen: the text in runs that see the same prefixes: where each ends, and these prefixes.
            The last one has no end.
        steering: the control vectors that all tokens are read with, or None.
    """

    def __init__(self, tree: Tree) -> None:
        self.tokens: list[CacheKey] = []
        self.start = tree.start
        self.steering = tree.steering
        self.seen: list[tuple[int, list[Tensor]]] = []
        for node in tree.nodes:
            content = node.content
            if isinstance(content, Tensor):
                self.tokens += [(content, row) for row in range(len(content))]
            elif not isinstance(content, KVCache):
                self.tokens += content
            self._extend(tree.prefixes_of(node))

    def _extend(self, prefixes: list[Tensor]) -> None:
        if self.seen and same_prefixes(self.seen[-1][1], prefixes):
            self.seen.pop()
        self.seen.append((len(self.tokens), prefixes))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def settled(self) -> int:
        """Tokens before the first prefix that is seen late; all, if there is none."""
        return min(self.seen[0][0], len(self)) if len(self.seen) > 1 else len(self)

    def cut(self, length: int) -> TextKeys:
        """The first `length` keys."""
        part = copy(self)
        part.tokens = self.tokens[:length]
        return part

    def common(self, other: TextKeys) -> int:
        """How many keys at the beginning are the same."""
        if self.start != other.start or not self.steered_alike(other):
            return 0
        return min(common_length(self.tokens, other.tokens), _common_sight(self.seen, other.seen))

    def begin_alike(self, other: TextKeys) -> bool:
        """Whether the first tokens, whatever they are, have the same place and see the same."""
        alike = self.start == other.start and self.steered_alike(other)
        return alike and _common_sight(self.seen, other.seen) > 0

    def steered_alike(self, other: TextKeys) -> bool:
        """Whether both are read with the same control vectors, or none."""
        return same_steering(self.steering, other.steering)


def _common_sight(a: list[tuple[int, list[Tensor]]], b: list[tuple[int, list[Tensor]]]) -> int:
    """The number of tokens up to which two texts have seen the same prefixes.

    Their last runs go on: new tokens see what the last one saw.
    """
    at = 0
    i = j = 0
    while same_prefixes(a[i][1], b[j][1]):
        ends = [run[k][0] if k + 1 < len(run) else sys.maxsize for run, k in ((a, i), (b, j))]
        at = min(ends)
        if at == sys.maxsize:
            break
        i, j = i + (ends[0] == at), j + (ends[1] == at)
    return at


@dataclass(frozen=True, eq=False)
class CachedSequence:
    """Keys and values of a text, without prefixes: those are held once, by their prompts.

    Attributes:
        keys: identifies them; may be fewer than `past` holds.
        past: one row without padding.
    """

    keys: TextKeys
    past: KVCache

    def begins(self, other: CachedSequence) -> bool:
        """Whether `other` begins with all of this one."""
        return self.keys.common(other.keys) >= len(self.keys)

    def is_replaced_by(self, other: CachedSequence) -> bool:
        """Whether `other` begins with all of this one that is of use to a next turn.

        Of a story that is the text before a late prefix, which stands before the newest text: what
        was read behind it is read once more in the next turn, without it.
        """
        settled = self.keys.settled
        if len(self.keys) - settled > settled:
            settled = len(self.keys)
        return self.keys.common(other.keys) >= settled


class PrefixCache:
    """Sequences of one model that were used last, as vLLM's automatic prefix caching holds them.

    A sequence serves all others that begin with the same text and have seen the same prefixes so
    far. Text before a prefix that is seen late serves whatever comes after it.

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
        keys = TextKeys(tree)
        reused, best = 0, None
        for sequence in self._sequences:
            length = min(keys.common(sequence.keys), len(keys) - 1)
            if length > reused:
                reused, best = length, sequence
        if best is None:
            return None, CacheUsage(0, len(keys), self._why_none(keys))
        self._sequences = [*(s for s in self._sequences if s is not best), best]
        return best.past.cut(reused), CacheUsage(reused, len(keys) - reused)

    def insert(self, new: CachedSequence) -> None:
        """Adds a sequence in place of those that it replaces; the longest unused are dropped."""
        too_large = self.max_bytes is not None and new.past.bytes > self.max_bytes
        if too_large or any(new.begins(sequence) for sequence in self._sequences):
            return
        self._sequences = [s for s in self._sequences if not s.is_replaced_by(new)]
        self._sequences.append(new)
        while self._is_over():
            self._sequences.pop(0)

    def clear(self) -> None:
        self._sequences.clear()

    def _is_over(self) -> bool:
        many = self.max_sequences is not None and len(self) > self.max_sequences
        return many or (self.max_bytes is not None and self.bytes > self.max_bytes)

    def _why_none(self, keys: TextKeys) -> str:
        if not self._sequences:
            return "nothing was read before"
        if not any(keys.steered_alike(sequence.keys) for sequence in self._sequences):
            return "it was not read with these control vectors"
        if not any(keys.begin_alike(sequence.keys) for sequence in self._sequences):
            return "other soft prompts stand before the text"
        return "its beginning has changed"


def same_prefixes(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two lists hold the same prefixes, in any order, as their order has no effect."""
    unmatched = list(b)
    for tensor in a:
        match = next((i for i, other in enumerate(unmatched) if same_tensor(tensor, other)), None)
        if match is None:
            return False
        unmatched.pop(match)
    return not unmatched
