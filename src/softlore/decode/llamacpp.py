"""The runner of models in GGUF files: llama.cpp runs the lanes of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from softlore.context import Tree
from softlore.decode.memory import CacheKey, CacheUsage, cache_keys, common_length, same_prefixes
from softlore.decode.model_runner import CacheMemory, ModelRunner, RunningSequence
from softlore.errors import BusyError, ConfigError, ContextOverflowError
from softlore.model.gguf import CacheTypes, GGUFModel, LlamaCppContext
from softlore.model.gguf.runner import PADDED, STEP, Tokens

MEGABYTE = 2**20


class LlamaCppModelRunner(ModelRunner):
    """Runs lanes with llama.cpp, each in a sequence of its own.

    What a text has read stays in its sequence when it ends, until another text needs the place; one
    that begins like it goes on from there.

    Args:
        lanes: texts at once, at most; fewer where `most_mb` has no room for them.
        cache: what keys and values are held as.
        most_mb: memory for keys and values, taken at once; one text has room in any case.
    """

    model: GGUFModel

    def __init__(
        self,
        model: GGUFModel,
        lanes: int = 8,
        cache: CacheTypes | None = None,
        most_mb: float = 2048,
    ) -> None:
        self.model = model
        self._cache = cache = cache or CacheTypes()
        # Prefixes side by side take a cell each, and share positions.
        cells = -(-((model.context_length or 0) + PADDED) // PADDED) * PADDED
        each = model.layers * model.kv_heads * model.head_dim
        self._cell_bytes = each * cache.bytes
        room = int(most_mb * MEGABYTE // (cells * self._cell_bytes))
        self.lanes = max(1, min(lanes, room))
        self._runner = LlamaCppContext(model, self.lanes, cells, cache)
        self._seats = [_SequenceSlot() for _ in range(self.lanes)]
        self._clock = 0

    def check(self, trees: Sequence[Tree]) -> None:
        super().check(trees)
        if len(trees) > self.lanes:
            raise ConfigError(
                f"a text under {len(trees)} codes takes as many sequences, and llama.cpp has room "
                f"for {self.lanes}; expected fewer codes, or more room; raise --slots or --cache-mb"
            )
        for tree in trees:
            cells = tree.length + sum(int(prefix.shape[3]) for prefix in tree.prefixes)
            if cells >= self._runner.cells:
                raise ContextOverflowError(
                    f"{cells} tokens, prefixes counted, do not fit the {self._runner.cells} cells "
                    "of a text; expected fewer; shorten the text, or use fewer soft prompts"
                )

    def begin(self, tree: Tree) -> RunningSequence:
        slots = cache_keys(tree)
        number, known = self._nearest(tree, slots)
        seat = self._seats[number]
        why = "" if known else "nothing like it was read before"
        if seat.prefixes is not None and same_prefixes(tree.prefixes, seat.prefixes):
            self._runner.forget(number, tree.start + known)
        else:
            seat.prefixes = None
            self._runner.put(number, tree.prefixes)
            seat.prefixes = list(tree.prefixes)
        lane = LlamaCppSequence(
            self._runner, number, tree, CacheUsage(known, len(slots) - known, why), slots
        )
        seat.lane, seat.slots = lane, slots[:known]
        return lane

    def step(self, lanes: Sequence[RunningSequence], ids: Sequence[int]) -> Tensor:
        runs = []
        for lane, i in zip(lanes, ids, strict=True):
            assert isinstance(lane, LlamaCppSequence)
            runs.append(Tokens(lane.number, lane.tree.start + len(lane.slots), [i], last=True))
        logits = self._runner.decode(runs)
        for lane, i in zip(lanes, ids, strict=True):
            lane.slots.append(i)
        return logits

    def leave(self, lane: RunningSequence) -> None:
        assert isinstance(lane, LlamaCppSequence)
        seat = self._seats[lane.number]
        if seat.lane is lane:
            self._clock += 1
            read = lane.slots if lane.logits is not None else lane.slots[: lane.read]
            seat.lane, seat.slots, seat.used = None, read, self._clock

    def memory_usage(self) -> CacheMemory:
        busy = sum(len(seat.lane.slots) for seat in self._seats if seat.lane is not None)
        kept = sum(len(seat.slots) for seat in self._seats if seat.lane is None)
        size = self._cell_bytes
        return CacheMemory(busy, int(busy * size), kept, int(kept * size))

    def clear(self) -> None:
        for number in range(self.lanes):
            self._runner.forget(number)
        self._seats = [_SequenceSlot() for _ in range(self.lanes)]

    def close(self) -> None:
        """Gives the memory back."""
        self._runner.close()

    def _nearest(self, tree: Tree, slots: list[CacheKey]) -> tuple[int, int]:
        """The free sequence that holds most of a context's beginning, and how much.

        Raises:
            BusyError: there is none free.
        """
        free = [number for number, seat in enumerate(self._seats) if seat.lane is None]
        if not free:
            raise BusyError(
                f"all {self.lanes} sequences are written; expected a free one; ask again later"
            )

        def known(number: int) -> int:
            seat = self._seats[number]
            if seat.prefixes is None or not same_prefixes(tree.prefixes, seat.prefixes):
                return 0
            return min(common_length(slots, seat.slots), len(slots) - 1)

        best = max(free, key=lambda number: (known(number), -self._seats[number].used))
        return best, known(best)


class _SequenceSlot:
    """A sequence of llama.cpp: who uses it, and what it holds."""

    def __init__(self) -> None:
        self.lane: LlamaCppSequence | None = None
        self.prefixes: list[Tensor] | None = None
        self.slots: list[CacheKey] = []
        self.used = 0


class LlamaCppSequence(RunningSequence):
    """A sequence that llama.cpp runs."""

    def __init__(
        self,
        runner: LlamaCppContext,
        number: int,
        tree: Tree,
        reading: CacheUsage,
        slots: list[CacheKey],
    ) -> None:
        super().__init__(tree, reading, slots)
        self.number = number
        self.read = reading.reused
        self._runner = runner

    def read_on(self, most: int) -> int:
        part = self.tree.part(self.read, self.read + min(most, STEP))
        at, end = part.start, part.start + part.length
        done = self.read + part.length == len(self.slots)
        for node in part.nodes:  # ids and rows, each by themselves
            last = done and at + len(node) == end
            content = node.content if isinstance(node.content, Tensor) else list(node.content)
            found = self._runner.decode([Tokens(self.number, at, content, last)])
            at += len(node)
            if last:
                self.logits = found
        self.read += part.length
        return part.length
