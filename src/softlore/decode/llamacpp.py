"""The model runner of GGUF files: llama.cpp runs the sequences of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from softlore.context import Tree
from softlore.decode.model_runner import (
    ALL_READ,
    LOGIT_ROWS,
    CacheMemory,
    ModelRunner,
    RunningSequence,
)
from softlore.decode.prefix_cache import CacheUsage, TextKeys, same_prefixes
from softlore.errors import (
    BusyError,
    ConfigError,
    ContextOverflowError,
)
from softlore.model import KVCache
from softlore.model.gguf import CacheTypes, GGUFModel, LlamaCppContext
from softlore.model.gguf.runner import PADDED, STEP, Tokens

MEGABYTE = 2**20


class LlamaCppModelRunner(ModelRunner):
    """Runs each sequence in one of llama.cpp's own ("seq_id").

    Keys and values stay there when the sequence ends, until another one needs the place; a new one
    that begins alike reuses them. Those of the text are as they were when they were run; the
    prefixes beside them are those that the next token sees, and are swapped where that changes.

    Args:
        n_sequences: at once, at most; fewer where `max_mb` has no room for them.
        cache_types: of keys and values.
        max_mb: memory for keys and values, allocated at once; one sequence always has room.
    """

    model: GGUFModel

    def __init__(
        self,
        model: GGUFModel,
        n_sequences: int = 8,
        cache_types: CacheTypes | None = None,
        max_mb: float = 2048,
    ) -> None:
        self.model = model
        cache_types = cache_types or CacheTypes()
        # Prefixes side by side share positions, but take a cell each.
        cells = -(-((model.context_length or 0) + PADDED) // PADDED) * PADDED
        self._cell_bytes = model.layers * model.kv_heads * model.head_dim * cache_types.bytes
        room = int(max_mb * MEGABYTE // (cells * self._cell_bytes))
        self.n_sequences = max(1, min(n_sequences, room))
        self._context = LlamaCppContext(model, self.n_sequences, cells, cache_types)
        self._slots = [_SequenceSlot() for _ in range(self.n_sequences)]
        self._clock = 0

    def check(self, trees: Sequence[Tree]) -> None:
        super().check(trees)
        if len(trees) > self.n_sequences:
            raise ConfigError(
                f"a text with {len(trees)} conditionings takes as many sequences, and llama.cpp "
                f"has room for {self.n_sequences}; expected fewer of them, or more room; raise "
                "--slots or --cache-mb"
            )
        for tree in trees:
            cells = tree.length + _most_prefix_tokens(tree)
            if cells >= self._context.cells:
                raise ContextOverflowError(
                    f"{cells} tokens, prefixes counted, do not fit the {self._context.cells} cells "
                    "of a sequence; expected fewer; shorten the text, or use fewer soft prompts"
                )

    def start(self, tree: Tree, prompt_logprobs: int | None = None) -> RunningSequence:
        number, reused = self._nearest(TextKeys(tree))
        reused = reused if prompt_logprobs is None else 0
        slot = self._slots[number]
        if reused:
            self._context.forget(number, tree.start + reused)
        else:
            self._context.forget(number)
            slot.prefixes = []
        why = "" if reused else "no cached text begins like it"
        usage = CacheUsage(
            reused, tree.length - reused, why if prompt_logprobs is None else ALL_READ
        )
        sequence = LlamaCppSequence(tree, usage, number, prompt_logprobs)
        slot.sequence, slot.keys = sequence, sequence.keys.cut(reused)
        return sequence

    def prefill(self, sequences: Sequence[RunningSequence], max_tokens: int) -> None:
        for sequence in sequences:
            step = STEP if sequence.prompt_logprobs is None else LOGIT_ROWS
            while sequence.unread and max_tokens > 0:
                max_tokens -= self._prefill(sequence, min(max_tokens, step))

    def _prefill(self, sequence: RunningSequence, max_tokens: int) -> int:
        """Runs a part of a context; returns how many tokens."""
        assert isinstance(sequence, LlamaCppSequence)
        first = not sequence.n_read and bool(sequence.tree.prefixes_of(sequence.tree.nodes[0]))
        alone = first and self._context.window > 0  # see `_show`
        part = sequence.tree.part(sequence.n_read, sequence.n_read + (1 if alone else max_tokens))
        at, end = part.start, part.start + part.length
        ends, each = part.length == sequence.unread, sequence.prompt_logprobs is not None
        for node in part.nodes:  # a call takes ids or rows, not both
            self._show(sequence, part.prefixes_of(node))
            last = ends and at + len(node) == end
            assert not isinstance(node.content, KVCache)
            content = node.content if isinstance(node.content, Tensor) else list(node.content)
            n_logits = len(node) if each else int(last)
            run = Tokens(sequence.number, at, content, n_logits, sequence.tree.steering)
            logits = self._context.decode([run])
            at += len(node)
            sequence.advance(len(node), logits.__getitem__)
            if last:
                sequence.logits = logits[-1]
        if alone:
            self._slots[sequence.number].prefixes = None
        return part.length

    def _show(self, sequence: LlamaCppSequence, prefixes: list[Tensor]) -> None:
        """Makes the next tokens of a sequence see these prefixes, and no others.

        Before the first token, the last cell of a prefix may be at another position (see
        `LlamaCppContext.put`). In sliding layers this matters later, so it is put back.
        """
        slot = self._slots[sequence.number]
        if slot.prefixes is None or not same_prefixes(slot.prefixes, prefixes):
            slot.prefixes = None  # should it fail
            self._context.put(sequence.number, prefixes, sequence.tree.start)
            slot.prefixes = prefixes

    def step(self, sequences: Sequence[RunningSequence], ids: Sequence[int]) -> Tensor:
        runs = []
        for sequence, i in zip(sequences, ids, strict=True):
            assert isinstance(sequence, LlamaCppSequence)
            self._show(sequence, sequence.tree.prefixes_of(sequence.tree.nodes[-1]))
            steering = sequence.tree.steering
            runs.append(Tokens(sequence.number, sequence.position, [i], 1, steering))
        logits = self._context.decode(runs)
        for sequence, i in zip(sequences, ids, strict=True):
            sequence.keys.tokens.append(i)
        return logits

    def remove(self, sequence: RunningSequence, cache: bool = True) -> None:
        assert isinstance(sequence, LlamaCppSequence)
        slot = self._slots[sequence.number]
        if slot.sequence is not sequence:
            return
        self._clock += 1
        n_run = sequence.n_read + len(sequence.keys) - sequence.n_context
        slot.sequence, slot.keys, slot.used = None, sequence.keys.cut(n_run), self._clock
        if not cache:
            slot.keys = None

    def memory_usage(self) -> CacheMemory:
        running = sum(len(slot.sequence.keys) for slot in self._slots if slot.sequence is not None)
        cached = sum(len(slot.keys or ()) for slot in self._slots if slot.sequence is None)
        size = self._cell_bytes
        return CacheMemory(running, int(running * size), cached, int(cached * size))

    def clear(self) -> None:
        for number in range(self.n_sequences):
            self._context.forget(number)
        self._slots = [_SequenceSlot() for _ in range(self.n_sequences)]

    def close(self) -> None:
        self._context.close()

    def _nearest(self, keys: TextKeys) -> tuple[int, int]:
        """The free slot that holds most of a context's beginning, and how much that is.

        Raises:
            BusyError: none is free.
        """
        free = [number for number, slot in enumerate(self._slots) if slot.sequence is None]
        if not free:
            raise BusyError(
                f"all {self.n_sequences} sequences are in use; expected a free one; try again later"
            )

        def reused(number: int) -> int:
            cached = self._slots[number].keys
            return 0 if cached is None else min(keys.common(cached), len(keys) - 1)

        best = max(free, key=lambda number: (reused(number), -self._slots[number].used))
        return best, reused(best)


class LlamaCppSequence(RunningSequence):
    """A sequence that llama.cpp runs, by its number there."""

    def __init__(
        self, tree: Tree, cache_usage: CacheUsage, number: int, prompt_logprobs: int | None = None
    ) -> None:
        super().__init__(tree, cache_usage, prompt_logprobs)
        self.number = number


def _most_prefix_tokens(tree: Tree) -> int:
    """The most tokens of prefixes that are seen at once."""
    seen = (tree.prefixes_of(node) for node in tree.nodes)
    return max(sum(int(prefix.shape[3]) for prefix in prefixes) for prefixes in seen)


class _SequenceSlot:
    """One of llama.cpp's sequences: who uses it, what it holds, and when it was used last.

    Attributes:
        prefixes: those that its next token sees; None: others must be put there first.
        keys: of its text.
    """

    def __init__(self) -> None:
        self.sequence: LlamaCppSequence | None = None
        self.prefixes: list[Tensor] | None = []
        self.keys: TextKeys | None = None
        self.used = 0
