"""The running batch: sequences join and leave between steps, each with its own settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softlore.context import Tree
from softlore.decode.conditioning import (
    Window,
    first_windows,
    mix_logits,
    slide,
    weighted,
    with_bare_model,
)
from softlore.decode.model_runner import PREFILL_TOKENS, CacheMemory, ModelRunner, RunningSequence
from softlore.decode.output import OutputStream, Token, token_with_logprobs
from softlore.decode.prefix_cache import CacheUsage
from softlore.decode.request import GenerationRequest, make_sampler, stop_strings
from softlore.decode.samplers import Sampler, sample_each


class SequenceGroup:
    """One text of a batch: a sequence, or one under each of several conditionings.

    The sequences of a group get the same new tokens, sampled from the mixture of their logits.
    `len(group)` is their number.

    Attributes:
        output: the text so far: its ids, and why it ended.
        cache_usage: how much of its context was cached; None until it is started.
        sampler: what its tokens are sampled with.
        sequences: those that run; empty before they are started.
        ids: of the context's text and of the new tokens. Soft rows have none.
        logprobs: how many of the likeliest tokens to report; None: no log-probabilities.

    Args:
        windows: what each sequence reads first.
        weights: of the sequences' log-probabilities.
        slides: whether full windows slide, or end the text.
        cache: whether later sequences may reuse what these have read.
    """

    def __init__(
        self,
        runner: ModelRunner,
        windows: Sequence[Window],
        weights: Sequence[float],
        sampler: Sampler,
        output: OutputStream,
        logprobs: int | None = None,
        slides: bool = False,
        cache: bool = True,
    ) -> None:
        runner.check([window.tree for window in windows])
        self.windows = list(windows)
        self.weights = tuple(weights)
        self.sampler = sampler
        self.output = output
        self.cache_usage: CacheUsage | None = None
        self.sequences: list[RunningSequence] = []
        self.cache = cache
        self._model = runner.model
        self.logprobs = logprobs
        self._slides = slides
        self._open_windows()

    @classmethod
    def from_request(cls, runner: ModelRunner, request: GenerationRequest) -> SequenceGroup:
        """The group that generates what is requested.

        Raises:
            ConfigError: a setting out of range.
            ContextError: nothing to go on from, or more than fits.
            PromptMismatchError: a prompt of another model.
        """
        model = runner.model
        stops, conditionings = stop_strings(request), weighted(request.conditioning)
        output = OutputStream(model, stops, request.max_new_tokens)
        sampler = make_sampler(model, request, conditionings)
        conditionings = with_bare_model(conditionings) if conditionings else []
        if conditionings:
            windows = first_windows(
                model, request.context, conditionings, request.check, request.reserved
            )
        else:
            windows = [Window(request.compose(model))]
        weights = [weight for _, weight in conditionings] or [1.0]
        slides = bool(conditionings)
        return cls(runner, windows, weights, sampler, output, request.logprobs, slides)

    @classmethod
    def from_trees(
        cls,
        runner: ModelRunner,
        trees: Sequence[tuple[Tree, float]],
        sampler: Sampler,
        max_new_tokens: int,
    ) -> SequenceGroup:
        """A group that samples ids only, after trees mixed by weights; nothing ends it early."""
        windows, weights = [Window(tree) for tree, _ in trees], [weight for _, weight in trees]
        output = OutputStream(None, (), max_new_tokens)
        return cls(runner, windows, weights, sampler, output, cache=False)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def is_read(self) -> bool:
        """Whether its contexts are prefilled, so that its next token can be sampled."""
        return bool(self.sequences) and all(s.logits is not None for s in self.sequences)

    @property
    def is_full(self) -> bool:
        """Whether a window has reached the end of its room."""
        return self._room == 0

    @property
    def must_slide(self) -> bool:
        return self.is_full and self._slides and not self.output.finish

    def start(self, runner: ModelRunner) -> None:
        """Starts its sequences, once."""
        if not self.sequences:
            self.sequences = [runner.start(window.tree) for window in self.windows]
            self.cache_usage = self.cache_usage or self.sequences[0].cache_usage

    def stop(self, runner: ModelRunner) -> None:
        """Ends its sequences. Does nothing if none run."""
        for sequence in reversed(self.sequences):
            runner.remove(sequence, self.cache)
        self.sequences = []

    def append(self, token: int, logits: Tensor | None) -> Iterator[Token]:
        """Adds a sampled token: its text, and the rest at the end.

        `logits`: `[vocab]`, that it was sampled from, where log-probabilities are requested.
        """
        self.ids.append(token)
        self._new.append(token)
        if self._room is not None:
            self._room -= 1
        if logits is None or self.logprobs is None:
            yield self.output.append(Token("", token))
        else:
            yield self.output.append(token_with_logprobs(logits, token, self.logprobs))
        if self.output.finish or (self.is_full and not self._slides):
            yield from self.output.flush()

    def slide(self) -> None:
        """Continues in the next windows, which must be prefilled."""
        self.windows = slide(self._model, self.windows, self._new)
        self._open_windows()

    def _open_windows(self) -> None:
        tree = self.windows[0].tree
        self.ids = [i for node in tree.nodes for i in node.ids]
        self._new: list[int] = []  # generated in these windows
        limit = self._model.context_length
        end = max(window.end for window in self.windows)
        # Tokens that can be sampled; the last one is never run, so it may stand one past the end.
        self._room = None if limit is None else limit + 1 - end


class RunningBatch:
    """Generates several texts side by side with one model (continuous batching).

    A step generates at most one token in each text, and reads a part of the contexts of texts that
    have joined, so that they do not hold up the others:

        add ──▶ reading ──(context run, first token)──▶ generating ──▶ finished, removed
                   ▲                                        │
                   └──────────(window full: slide)──────────┘

    Every text is what `write` would generate alone with the same seed, up to rounding.

    Attributes:
        runner: what runs the sequences.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._reading: list[SequenceGroup] = []
        self._generating: list[SequenceGroup] = []

    def __len__(self) -> int:
        """How many texts have not finished."""
        return len(self._reading) + len(self._generating)

    def memory_usage(self) -> CacheMemory:
        """Keys and values of the running sequences, and of those cached for later ones."""
        return self.runner.memory_usage()

    def add(self, request: GenerationRequest | SequenceGroup) -> SequenceGroup:
        """Adds a text, which is generated from the next step on.

        Raises:
            ConfigError, ContextError, PromptMismatchError: as `SequenceGroup.from_request`.
        """
        if isinstance(request, GenerationRequest):
            request = SequenceGroup.from_request(self.runner, request)
        self._reading.append(request)
        return request

    def remove(self, group: SequenceGroup) -> None:
        """Removes a text at once. Does nothing if it has finished."""
        for groups in (self._reading, self._generating):
            if group in groups:
                groups.remove(group)
        group.stop(self.runner)

    @torch.no_grad()
    def step(self) -> list[tuple[SequenceGroup, Token]]:
        """Generates a token in every text that is prefilled, and prefills a part of the others.

        Texts whose `output.finish` is set have been removed.
        """
        tokens = []
        if generating := list(self._generating):
            sequences = [sequence for group in generating for sequence in group.sequences]
            last = [group.ids[-1] for group in generating for _ in group.sequences]
            tokens += self._sample(generating, self.runner.step(sequences, last))
        if read := self._prefill():
            logits = [s.logits for group in read for s in group.sequences if s.logits is not None]
            tokens += self._sample(read, torch.stack(logits))
        return tokens

    def _prefill(self) -> list[SequenceGroup]:
        """Runs a part of the contexts, those that joined first at first; returns the completed."""
        started, unread = [], 0
        for group in self._reading:
            group.start(self.runner)
            started.append(group)
            unread += sum(sequence.unread for sequence in group.sequences)
            if unread >= PREFILL_TOKENS:
                break
        if started:
            self.runner.prefill([s for group in started for s in group.sequences], PREFILL_TOKENS)
        done = [group for group in started if group.is_read]
        self._reading = [group for group in self._reading if group not in done]
        self._generating += done
        return done

    def _sample(
        self, groups: Sequence[SequenceGroup], logits: Tensor
    ) -> list[tuple[SequenceGroup, Token]]:
        """Samples a token for each group from their sequences' logits `[sequences, vocab]`."""
        mixed = _mix(groups, logits)
        samplers, ids = [group.sampler for group in groups], [group.ids for group in groups]
        sampled = sample_each(samplers, mixed, ids).tolist()
        tokens = [
            (group, token)
            for row, (group, new) in enumerate(zip(groups, sampled, strict=True))
            for token in group.append(new, mixed[row] if group.logprobs is not None else None)
        ]
        for group in reversed(groups):  # the last rows first: no other row has to move
            if group.output.finish or group.must_slide:
                self.remove(group)
        for group in groups:
            if group.must_slide:
                group.slide()
                self._reading.append(group)
        return tokens


def _mix(groups: Sequence[SequenceGroup], logits: Tensor) -> Tensor:
    """What each group's token is sampled from: `[groups, vocab]` of `[sequences, vocab]`."""
    if len(logits) == len(groups):
        return logits
    weights = groups[0].weights
    if all(group.weights == weights for group in groups):
        each = torch.tensor(weights, device=logits.device)
        return mix_logits(logits.unflatten(0, (-1, len(weights))), each)
    parts = zip(groups, logits.split([len(group) for group in groups]), strict=True)
    return torch.cat([_mix([group], part) for group, part in parts])
