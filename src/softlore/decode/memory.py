"""What a model has read of a text, kept from one turn to the next: only what changed is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softlore.context import Tree
from softlore.model import KVCache

CacheKey = int | tuple[Tensor, int]  # a token's id, or soft rows and which of them


@dataclass(frozen=True)
class CacheUsage:
    """How much of a context was known, and how much had to be read.

    Attributes:
        reused: tokens whose keys and values were still there.
        read: tokens that were run before the first new one.
        why: what made reading from the start necessary; empty where it was not.
    """

    reused: int
    read: int
    why: str = ""


class TextCache:
    """Keys and values of the last text that was written on, one text at a time.

    Handed to `decode` or `write` turn after turn, it saves reading again what two turns have in
    common: their beginning. Prefixes are seen by every token, so that another set of them makes
    all of it void. It is as long as the context, no more, and belongs to one model.
    """

    def __init__(self) -> None:
        self.cache_usage = CacheUsage(0, 0)
        self.past: KVCache | None = None
        self._slots: list[CacheKey] = []  # what `past` holds, less the prefixes
        self._asked: list[CacheKey] = []  # what is being read
        self._prefixes: list[Tensor] = []

    def recall(self, tree: Tree) -> Tree:
        """The part of a tree that must be read; `past` then holds what comes before it.

        At least one token is: the next one's probabilities come from there.
        """
        slots = cache_keys(tree)
        same = self.past is not None and same_prefixes(tree.prefixes, self._prefixes)
        known = min(common_length(slots, self._slots), len(slots) - 1) if same else 0
        why = self._why(same, known)
        self.cache_usage = CacheUsage(known, len(slots) - known, why)
        self._slots, self._asked = slots[:known], slots[known:]
        self._prefixes = list(tree.prefixes)
        if not known or self.past is None:
            self.past = None
            return tree
        head = sum(int(prefix.shape[3]) for prefix in tree.prefixes)
        self.past = self.past.cut(head + known)
        return tree.part(known)

    def keep(self, past: KVCache, written: list[int]) -> None:
        """Keeps what was run: what was asked for, then ids that were written."""
        self.past = past
        self._slots += [*self._asked, *written]
        self._asked = []

    def _why(self, same: bool, known: int) -> str:
        if self.past is None:
            return "nothing was read before"
        if not same:
            return "other soft prompts stand at its head"
        return "" if known else "its beginning has changed"


def cache_keys(tree: Tree) -> list[CacheKey]:
    """The text of a tree of one branch, a slot a token."""
    slots: list[CacheKey] = []
    for node in tree.nodes:
        content = node.content
        if isinstance(content, Tensor):
            slots += [(content, row) for row in range(len(content))]
        else:
            slots += content
    return slots


def common_length(ours: list[CacheKey], theirs: list[CacheKey]) -> int:
    """How many slots at the beginning are the same."""
    for place, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if isinstance(a, int) or isinstance(b, int):
            if a is not b and a != b:
                return place
        elif a[1] != b[1] or not _same(a[0], b[0]):
            return place
    return min(len(ours), len(theirs))


def same_prefixes(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether two lists hold the same prefixes, in whatever order: they have none."""
    left = list(theirs)
    for tensor in ours:
        found = next((i for i, other in enumerate(left) if _same(tensor, other)), None)
        if found is None:
            return False
        left.pop(found)
    return not left


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))
