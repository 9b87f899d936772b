"""Readers: what runs the sequences of a batch, by transformers or by another program.

A sequence is read a part at a time, so that others are not kept waiting, and then a token at a
time together with all that are written. What was read of one that has ended is kept, for others
that begin like it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softlore.context import Tree, splice
from softlore.context.splice import check_length
from softlore.decode.memory import CacheKey, CacheUsage, cache_keys
from softlore.decode.prefix_cache import CachedSequence, PrefixCache
from softlore.model import FrozenModel, KVCache, KVSlots, LanguageModel


@dataclass(frozen=True)
class CacheMemory:
    """Keys and values that a runner holds: of what is written, and of what has ended."""

    tokens: int = 0
    bytes: int = 0
    cached_tokens: int = 0
    cached_bytes: int = 0


class RunningSequence(ABC):
    """One sequence of a batch: first read, then stepped.

    Attributes:
        tree: its context, of one branch.
        reading: how much of that was known, and how much has to be read.
        slots: what its keys and values are of.
        logits: `[1, vocab]` after the context's last token; None until that is read.
    """

    def __init__(self, tree: Tree, reading: CacheUsage, slots: list[CacheKey]) -> None:
        self.tree = tree
        self.cache_usage = reading
        self.slots = slots
        self.logits: Tensor | None = None

    @abstractmethod
    def read_on(self, most: int) -> int:
        """Reads so many tokens of the context at most; returns how many."""


class ModelRunner(ABC):
    """Holds the lanes of a batch and runs them.

    Attributes:
        model: whose words and sizes count.
    """

    model: LanguageModel

    def check(self, trees: Sequence[Tree]) -> None:
        """Refuses a text, whose rows these are, that can never be read.

        Raises:
            ContextOverflowError: one that is too long. ConfigError: too many.
        """
        check_length(self.model, max(tree.start + tree.length for tree in trees))

    @abstractmethod
    def begin(self, tree: Tree) -> RunningSequence:
        """A lane for a context that `check` has let pass."""

    @abstractmethod
    def step(self, lanes: Sequence[RunningSequence], ids: Sequence[int]) -> Tensor:
        """Reads a token more in every lane that was read whole: logits `[lanes, vocab]`."""

    @abstractmethod
    def leave(self, lane: RunningSequence) -> None:
        """Lets a lane go, at whatever point, once; what was read may be kept."""

    @abstractmethod
    def memory_usage(self) -> CacheMemory:
        """What it holds now."""

    @abstractmethod
    def clear(self) -> None:
        """Lets all lanes go, and whatever was kept: after an error nothing is sure."""

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Gives back what it holds for good; it is not used any more."""


class TorchModelRunner(ModelRunner):
    """Runs the lanes with transformers: rows of keys and values, side by side.

    Args:
        kept: what was read of texts that have ended, for those that begin like them.
    """

    model: FrozenModel

    def __init__(self, model: FrozenModel, kept: PrefixCache | None = None) -> None:
        self.model = model
        self.kept = kept
        self._slots = KVSlots()
        self._lanes: list[TorchSequence] = []  # those that are written, by their rows in the slots

    def begin(self, tree: Tree) -> RunningSequence:
        past, reading = None, CacheUsage(0, tree.length, "nothing was read before")
        if self.kept is not None:
            past, reading = self.kept.nearest(tree)
        return TorchSequence(self, tree, reading, past)

    def step(self, lanes: Sequence[RunningSequence], ids: Sequence[int]) -> Tensor:
        rows = [self._placed(lane) for lane in lanes]
        in_order = [0] * len(rows)
        for row, i in zip(rows, ids, strict=True):
            in_order[row] = i
        hidden = self._slots.run(self.model, in_order)
        for lane, i in zip(lanes, ids, strict=True):
            lane.slots.append(i)
        return self.model.logits(hidden[rows])

    def leave(self, lane: RunningSequence) -> None:
        assert isinstance(lane, TorchSequence)
        if lane.past is not None:  # it was never stepped
            if lane.logits is not None:
                self._keep(lane, lane.past)
            return
        if lane.row is None:
            return
        if self.kept is not None:
            self._keep(lane, self._slots.past(lane.row))
        free = self._slots.drop(lane.row)
        moved = self._lanes.pop(free)
        if moved is not lane:
            self._lanes[lane.row], moved.row = moved, lane.row
        lane.row = None

    def memory_usage(self) -> CacheMemory:
        kept = self.kept
        return CacheMemory(
            sum(self._slots.lengths),
            self._slots.bytes,
            kept.tokens if kept else 0,
            kept.bytes if kept else 0,
        )

    def clear(self) -> None:
        self._slots, self._lanes = KVSlots(), []
        if self.kept is not None:
            self.kept.clear()

    def _placed(self, lane: RunningSequence) -> int:
        """Its row, where what was read is moved to: all that stands there is stepped."""
        assert isinstance(lane, TorchSequence)
        if lane.row is None:
            assert lane.past is not None
            lane.row = self._slots.put(lane.past, lane.tree.start + lane.tree.length)
            lane.past = None
            self._lanes.append(lane)
        return lane.row

    def _keep(self, lane: RunningSequence, past: KVCache) -> None:
        if self.kept is not None:
            self.kept.keep(CachedSequence(lane.slots, lane.tree.prefixes, past))


class TorchSequence(RunningSequence):
    """A sequence that transformers runs."""

    def __init__(
        self, runner: TorchModelRunner, tree: Tree, reading: CacheUsage, past: KVCache | None
    ) -> None:
        super().__init__(tree, reading, cache_keys(tree))
        self._model = runner.model
        self.past = past  # what was read, until it is stepped
        self.row: int | None = None  # where it is from then on
        self._read = reading.reused

    @torch.no_grad()
    def read_on(self, most: int) -> int:
        model = self._model
        part = self.tree.part(self._read, self._read + most)
        count = part.length
        spliced = splice(model, [part], self.past)
        hidden, keys_values = model.hidden(
            spliced.embeds, spliced.positions, spliced.visible, spliced.past, keep=True
        )
        self.past = spliced.after(keys_values or [])
        self._read += count
        if self._read == len(self.slots):
            self.logits = model.logits(hidden[0, count - 1 : count])
        return count
