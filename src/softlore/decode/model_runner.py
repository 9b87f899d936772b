"""Model runners: run the sequences of a batch, here with transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from softlore.context import Node, Tree, splice
from softlore.context.splice import check_length, stack_past
from softlore.decode.output import Token, tokens_with_logprobs
from softlore.decode.prefix_cache import (
    CachedSequence,
    CacheUsage,
    PrefixCache,
    TextKeys,
)
from softlore.errors import ContextError
from softlore.model import FrozenModel, KVCache, KVSlots, LanguageModel

PREFILL_TOKENS = 512  # of contexts that are run in a step at most, so that others are not held up
ALL_READ = "log-probabilities of all of the context are requested"
LOGIT_ROWS = 64  # tokens of a context whose logits are computed at once
FREE_PADDING = 64  # tokens of padding in a prefill that cost less than a forward of its own


@dataclass(frozen=True)
class CacheMemory:
    """Memory of keys and values: of running sequences, and of those cached for later ones."""

    tokens: int = 0
    bytes: int = 0
    cached_tokens: int = 0
    cached_bytes: int = 0


class RunningSequence:
    """One sequence of a batch: its context is run in parts (prefill), then a token at a time.

    Attributes:
        tree: its context, of one branch.
        cache_usage: how much of the context was cached, and how much has to be run.
        keys: identifies each key of the text, computed or not.
        n_read: tokens of the context that are run, or were cached.
        logits: `[vocab]` after the context's last token; None until that is run.
        prompt: the tokens that are run, where log-probabilities are requested.

    Args:
        prompt_logprobs: how many of the likeliest ids to report with each token of the context;
            None: no log-probabilities.
    """

    def __init__(
        self, tree: Tree, cache_usage: CacheUsage, prompt_logprobs: int | None = None
    ) -> None:
        self.tree = tree
        self.cache_usage = cache_usage
        self.prompt: list[Token] = []
        self.prompt_logprobs = prompt_logprobs
        self.keys = TextKeys(tree)
        self.n_context = len(self.keys)
        self.n_read = cache_usage.reused
        self.logits: Tensor | None = None

    @property
    def unread(self) -> int:
        """Tokens of the context that must still be run."""
        return self.n_context - self.n_read

    @property
    def position(self) -> int:
        """The position of the next token."""
        return self.tree.start + len(self.keys)

    def advance(self, n_rows: int, logits: Callable[[list[int]], Tensor]) -> None:
        """Counts the next rows of the context as run; reports the tokens that they predict.

        `logits` gives those of rows among them, `[rows, vocab]`. Soft rows are not reported.
        """
        start, self.n_read = self.n_read, self.n_read + n_rows
        if self.prompt_logprobs is None:
            return
        if start == 0 and isinstance(first := self.keys.tokens[0], int):
            self.prompt.append(Token("", first))
        following = enumerate(self.keys.tokens[start + 1 : self.n_read + 1])
        targets = [(row, key) for row, key in following if isinstance(key, int)]
        for at in range(0, len(targets), LOGIT_ROWS):
            rows, ids = zip(*targets[at : at + LOGIT_ROWS], strict=True)
            self.prompt += tokens_with_logprobs(logits([*rows]), ids, self.prompt_logprobs)


class ModelRunner(ABC):
    """Runs sequences side by side, and caches what it ran of those that have ended.

    Attributes:
        model: its tokenizer, sizes and prompts.
    """

    model: LanguageModel

    def check(self, trees: Sequence[Tree]) -> None:
        """Refuses a group of contexts that can never be run.

        Raises:
            ContextOverflowError: one is too long. ContextError: one holds an id that the model does
                not have, or rows of another shape. ConfigError: there are too many.
        """
        for content in (node.content for tree in trees for node in tree.nodes):
            _check_content(self.model, content)
        check_length(self.model, max(tree.start + tree.length for tree in trees))

    @abstractmethod
    def start(self, tree: Tree, prompt_logprobs: int | None = None) -> RunningSequence:
        """A new sequence for a context that `check` has accepted.

        With `prompt_logprobs` all of the context is run, nothing reused (see `RunningSequence`).
        """

    @abstractmethod
    def prefill(self, sequences: Sequence[RunningSequence], max_tokens: int) -> None:
        """Runs up to `max_tokens` of contexts, the first sequence's first; sets `logits`."""

    @abstractmethod
    def step(self, sequences: Sequence[RunningSequence], ids: Sequence[int]) -> Tensor:
        """Runs one token more in sequences with `logits`: their next logits `[sequences, vocab]`.

        Other running sequences stay as they are.
        """

    @abstractmethod
    def remove(self, sequence: RunningSequence, cache: bool = True) -> None:
        """Ends a sequence, at any point, once. `cache`: later sequences may reuse what it ran."""

    @abstractmethod
    def memory_usage(self) -> CacheMemory:
        """What its keys and values take now."""

    @abstractmethod
    def clear(self) -> None:
        """Drops all sequences and caches, whose state is unknown after an error."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Frees its memory; it cannot be used after that."""

    def preload(self, tree: Tree) -> None:
        """Runs and caches a context that several sequences are going to begin with."""
        sequence = self.start(tree)
        while sequence.logits is None:
            self.prefill([sequence], PREFILL_TOKENS)
        self.remove(sequence)


class TorchModelRunner(ModelRunner):
    """Runs sequences with transformers, each in a row of `KVSlots`.

    Contexts that are alike in length are run in one forward, padded; from its first step on a
    sequence has a row of its own:

        start ──▶ prefill: past `[1, P]` grows ──▶ first step: moved to a row ──▶ step, step, …

    Args:
        prefix_cache: keys and values of sequences that have ended; None caches nothing.
    """

    model: FrozenModel

    def __init__(self, model: FrozenModel, prefix_cache: PrefixCache | None = None) -> None:
        self.model = model
        self.prefix_cache = prefix_cache
        self._slots = KVSlots()
        self._by_row: list[TorchSequence] = []

    def start(self, tree: Tree, prompt_logprobs: int | None = None) -> TorchSequence:
        if prompt_logprobs is not None:
            return TorchSequence(tree, CacheUsage(0, tree.length, ALL_READ), None, prompt_logprobs)
        if self.prefix_cache is None:
            return TorchSequence(tree, CacheUsage(0, tree.length, "nothing is cached"))
        past, usage = self.prefix_cache.find(tree)
        return TorchSequence(tree, usage, past)

    @torch.no_grad()
    def prefill(self, sequences: Sequence[RunningSequence], max_tokens: int) -> None:
        waiting = deque(s for s in sequences if isinstance(s, TorchSequence) and s.unread)
        while waiting and max_tokens > 0:
            batch = _take_alike(waiting, max_tokens)
            length = min(max_tokens, max(sequence.unread for sequence in batch))
            self._prefill(batch, length)
            max_tokens -= length * len(batch)

    def _prefill(self, batch: Sequence[TorchSequence], length: int) -> None:
        """Runs the next `length` tokens of contexts in one forward."""
        parts = [s.tree.part(s.n_read, s.n_read + length, read=s.past) for s in batch]
        spliced = splice(self.model, parts)
        hidden, keys_values = spliced.run(self.model, keep=True)
        after = spliced.after(keys_values or [])
        for row, (sequence, part) in enumerate(zip(batch, parts, strict=True)):
            sequence.past = after.row(row).compact()
            sequence.advance(part.n_rows, partial(_logits_at, self.model, hidden[row]))
        done = [row for row, sequence in enumerate(batch) if not sequence.unread]
        if done:
            last = hidden[done, [parts[row].n_rows - 1 for row in done]]
            for row, logits in zip(done, self.model.logits(last), strict=True):
                batch[row].logits = logits

    def step(self, sequences: Sequence[RunningSequence], ids: Sequence[int]) -> Tensor:
        rows = self._rows(sequences)
        by_row: list[int | None] = [None] * len(self._slots)
        for row, i in zip(rows, ids, strict=True):
            by_row[row] = i
        hidden = self._slots.forward(self.model, by_row)
        for sequence, i in zip(sequences, ids, strict=True):
            sequence.keys.tokens.append(i)
        return self.model.logits(hidden if rows == list(range(len(hidden))) else hidden[rows])

    def remove(self, sequence: RunningSequence, cache: bool = True) -> None:
        assert isinstance(sequence, TorchSequence)
        try:
            if cache and self.prefix_cache is not None:
                self._cache(self.prefix_cache, sequence)
        finally:
            row, sequence.row, sequence.past = sequence.row, None, None
            if row is not None:
                moved = self._by_row.pop(self._slots.remove(row))
                if moved is not sequence:
                    self._by_row[row], moved.row = moved, row

    def _cache(self, cache: PrefixCache, sequence: TorchSequence) -> None:
        """Copies the keys and values of a sequence to the cache."""
        if sequence.row is not None:
            past = self._slots.read(sequence.row, sequence.n_prefix)
            cache.insert(CachedSequence(sequence.keys, past))
        elif sequence.past is not None:
            keys = sequence.keys.cut(sequence.n_read)
            cache.insert(CachedSequence(keys, sequence.past.compact()))

    def memory_usage(self) -> CacheMemory:
        cache = self.prefix_cache
        return CacheMemory(
            sum(self._slots.lengths),
            self._slots.bytes,
            cache.tokens if cache else 0,
            cache.bytes if cache else 0,
        )

    def clear(self) -> None:
        self._slots, self._by_row = KVSlots(), []
        if self.prefix_cache is not None:
            self.prefix_cache.clear()

    def _rows(self, sequences: Sequence[RunningSequence]) -> list[int]:
        """The rows of sequences; those that have none yet are moved to new ones."""
        known = [s for s in sequences if isinstance(s, TorchSequence)]
        new = [s for s in known if s.past is not None]
        if new:
            pasts = [stack_past(self.model, [s.as_read()])[0] for s in new]
            kept = [past for past in pasts if past is not None]
            steering = [s.tree.steering for s in new]
            rows = self._slots.insert(kept, [s.position for s in new], steering)
            for row, sequence in zip(rows, new, strict=True):
                sequence.row, sequence.past = row, None
                self._by_row.append(sequence)
        return [s.row for s in known if s.row is not None]


class TorchSequence(RunningSequence):
    """A sequence that transformers runs.

    Attributes:
        past: keys and values of its text that were run or cached, until the sequence has a row.
        row: where they are from then on, after those of the prefixes that new tokens see.
    """

    def __init__(
        self,
        tree: Tree,
        cache_usage: CacheUsage,
        past: KVCache | None = None,
        prompt_logprobs: int | None = None,
    ) -> None:
        super().__init__(tree, cache_usage, prompt_logprobs)
        self.past = past
        self.row: int | None = None

    @property
    def n_prefix(self) -> int:
        """Keys of prefixes in its row."""
        return sum(int(prefix.shape[3]) for prefix in self.tree.prefixes_of(self.tree.nodes[-1]))

    def as_read(self) -> Tree:
        """Its context, all of it read, as new tokens see it."""
        assert self.past is not None
        read = Node(self.past, sees=self.tree.nodes[-1].sees)
        return replace(self.tree, nodes=[read], at=self.tree.start)


def _check_content(model: LanguageModel, content: Sequence[int] | Tensor | KVCache) -> None:
    """Refuses ids that a model does not have, and rows that are none of its embeddings."""
    if isinstance(content, KVCache):
        return
    if isinstance(content, Tensor):
        if content.dim() != 2 or content.shape[1] != model.width or not content.is_floating_point():
            raise ContextError(
                f"the context holds a tensor of {content.dtype} and shape {tuple(content.shape)}; "
                f"expected embedding rows [n, {model.width}] of floating-point numbers; give a "
                "soft prompt of this model"
            )
    elif len(content) and not 0 <= min(content) <= max(content) < model.vocab_size:
        wrong = next(i for i in content if not 0 <= i < model.vocab_size)
        raise ContextError(
            f"the context holds the id {wrong}, which {model.name!r} does not have; expected ids "
            f"from 0 to {model.vocab_size - 1}; leave it out"
        )


def _logits_at(model: FrozenModel, hidden: Tensor, rows: list[int]) -> Tensor:
    return model.logits(hidden[rows])


def _take_alike(waiting: deque[TorchSequence], max_tokens: int) -> list[TorchSequence]:
    """Takes the first sequences that can be prefilled together without much padding."""
    batch = [waiting.popleft()]
    longest = unread = batch[0].unread
    while waiting:
        new = waiting[0]
        longest, unread = max(longest, new.unread), unread + new.unread
        padded = longest * (len(batch) + 1)
        alike = (new.past is None) == (batch[0].past is None)
        if not alike or padded > max_tokens or padded - unread > max(FREE_PADDING, unread):
            break
        batch.append(waiting.popleft())
    return batch
