"""What was read of several texts, kept within a size, for new ones that begin alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from softlore.context import Tree
from softlore.decode.memory import CacheKey, CacheUsage, cache_keys, common_length, same_prefixes
from softlore.model import KVCache


@dataclass(frozen=True, eq=False)
class CachedSequence:
    """A text that was read: its slots, the prefixes at its head, keys and values of both."""

    slots: list[CacheKey]
    prefixes: list[Tensor]
    past: KVCache

    @property
    def bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self.past.keys_values)

    def begins(self, other: CachedSequence) -> bool:
        """Whether another text begins with all of this one."""
        if not same_prefixes(self.prefixes, other.prefixes):
            return False
        return common_length(self.slots, other.slots) == len(self.slots)


class PrefixCache:
    """The texts that were used last, as many as fit `most` bytes; all of one model.

    `Memory` does this for a single text that is written on turn after turn; here many stories come
    and go, and several may begin alike.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._texts: list[CachedSequence] = []  # the latest last

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def bytes(self) -> int:
        return sum(text.bytes for text in self._texts)

    @property
    def tokens(self) -> int:
        return sum(len(text.past) for text in self._texts)

    def nearest(self, tree: Tree) -> tuple[KVCache | None, CacheUsage]:
        """The longest beginning of a text that is known, less its last token at least.

        The last one must be run in any case: the next one's probabilities come from there.
        """
        slots = cache_keys(tree)
        alike = [text for text in self._texts if same_prefixes(tree.prefixes, text.prefixes)]
        known, best = 0, None
        for text in alike:
            length = min(common_length(slots, text.slots), len(slots) - 1)
            if length > known:
                known, best = length, text
        if best is None:
            return None, CacheUsage(0, len(slots), "nothing like it was read before")
        self._touch(best)
        head = sum(int(prefix.shape[3]) for prefix in tree.prefixes)
        return best.past.cut(head + known), CacheUsage(known, len(slots) - known)

    def keep(self, new: CachedSequence) -> None:
        """Keeps a text, in place of those that it begins with; the longest unused ones go."""
        if new.bytes > self.most or any(new.begins(text) for text in self._texts):
            return
        self._texts = [text for text in self._texts if not text.begins(new)]
        self._texts.append(new)
        while self.bytes > self.most:
            self._texts.pop(0)

    def clear(self) -> None:
        self._texts.clear()

    def _touch(self, used: CachedSequence) -> None:
        self._texts = [*(text for text in self._texts if text is not used), used]
