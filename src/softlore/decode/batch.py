"""A running batch: texts join and leave between steps, each with its own prompts and settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softlore.decode.conditioning import mix_logits, weighted, with_bare_model
from softlore.decode.memory import CacheUsage, cache_keys
from softlore.decode.model_runner import CacheMemory, ModelRunner, RunningSequence
from softlore.decode.output import OutputStream, Token, token_with_logprobs
from softlore.decode.request import GenerationRequest, make_sampler, stop_strings
from softlore.decode.samplers import sample_each
from softlore.decode.sliding import Window, fitting, slide, windows
from softlore.model import LanguageModel

READ = 512  # tokens that are read at most in a step, so that texts that are written go on


class SequenceGroup:
    """A text of a batch.

    Attributes:
        output: what has come of it: text, ids, finish.
        reading: how much of its context was known, and how much was read; None until it is begun.
    """

    def __init__(self, runner: ModelRunner, request: GenerationRequest) -> None:
        model = runner.model
        stops, conditionings = stop_strings(request), weighted(request.conditioning)
        self.output = OutputStream(model, stops, request.max_new_tokens)
        self.cache_usage: CacheUsage | None = None
        self.chooser = make_sampler(model, request, conditionings)
        conditionings = with_bare_model(conditionings) if conditionings else []
        self._weights = [weight for _, weight in conditionings]
        self._logprobs = request.logprobs
        self._slides = bool(conditionings)
        found = windows(model, request.context, conditionings, request.check)
        if self._slides:
            found = fitting(model, found)
        self.sequences = [_GroupRow(self, window) for window in found]
        runner.check([window.tree for window in found])
        self._left = self._room(model)

    def mixed(self, logits: Tensor) -> Tensor:
        """What its next token is chosen from, `[vocab]`, given logits `[rows, vocab]`."""
        if len(self.sequences) == 1:
            return logits[0]
        return mix_logits(logits, torch.tensor(self._weights, device=logits.device))

    def tell(self, logits: Tensor, chosen: int) -> Iterator[Token]:
        """The token that was chosen from logits `[vocab]`, with its text; the rest if it ends."""
        for row in self.sequences:
            row.chosen(chosen)
        if self._left is not None:
            self._left -= 1
        yield self.output.append(token_with_logprobs(logits, chosen, self._logprobs))
        if self.output.finish or (self._full and not self._slides):
            yield from self.output.flush()

    @property
    def turns_over(self) -> bool:
        """Whether its windows are full and must slide."""
        return self._full and self._slides and not self.output.finish

    def slide(self, model: LanguageModel) -> None:
        """Takes the next windows, which must be read."""
        following = slide(
            model, [row.window for row in self.sequences], [r.written for r in self.sequences]
        )
        self.sequences = [_GroupRow(self, window) for window in following]
        self._left = self._room(model)

    @property
    def _full(self) -> bool:
        return self._left == 0

    def _room(self, model: LanguageModel) -> int | None:
        """Tokens that can be chosen in these windows; the last one is never read."""
        if model.context_length is None:
            return None
        return model.context_length + 1 - max(row.end for row in self.sequences)


class RunningBatch:
    """Texts written side by side over one model. A step tells each of them a token at most.

    Every text is what `write` would make of it alone with the same seed, up to rounding. What is
    to be read is read a part at a step, so that the others are not kept waiting.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._written: list[SequenceGroup] = []
        self._reading: list[SequenceGroup] = []

    def __len__(self) -> int:
        """Texts that are read or written."""
        return len(self._reading) + len(self._written)

    def memory_usage(self) -> CacheMemory:
        """Keys and values of the running texts, and of those that have ended and are kept."""
        return self.runner.memory_usage()

    def add(self, request: GenerationRequest | SequenceGroup) -> SequenceGroup:
        """Takes a text in; it is told from the next step on.

        Raises:
            ConfigError, ContextError, PromptMismatchError: as `write` does.
        """
        text = (
            request if isinstance(request, SequenceGroup) else SequenceGroup(self.runner, request)
        )
        self._reading.append(text)
        return text

    def remove(self, text: SequenceGroup) -> None:
        """Lets a text go, at once; harmless if it has gone."""
        self._reading = [one for one in self._reading if one is not text]
        self._drop(text)

    @torch.no_grad()
    def step(self) -> list[tuple[SequenceGroup, Token]]:
        """One token in each text that was read, and a part of what is to be read.

        Texts whose `output.finish` is set have left.
        """
        told = self._write()
        if read := self._read():
            told += self._choose(
                read, torch.cat([row.last() for one in read for row in one.sequences])
            )
        return told

    # inside ------------------------------------------------------------------------------------

    def _write(self) -> list[tuple[SequenceGroup, Token]]:
        rows = [row for text in self._written for row in text.sequences]
        if not rows:
            return []
        logits = self.runner.step([row.running() for row in rows], [row.ids[-1] for row in rows])
        return self._choose(list(self._written), logits)

    def _choose(
        self, texts: Sequence[SequenceGroup], logits: Tensor
    ) -> list[tuple[SequenceGroup, Token]]:
        """Tokens of texts from the logits of their rows, `[rows, vocab]`."""
        told: list[tuple[SequenceGroup, Token]] = []
        by_text = logits.split([len(text.sequences) for text in texts])
        mixed = torch.stack([text.mixed(own) for text, own in zip(texts, by_text, strict=True)])
        ids = [text.sequences[0].ids for text in texts]
        tokens = sample_each([text.chooser for text in texts], mixed, ids).tolist()
        for text, own, token in zip(texts, mixed, tokens, strict=True):
            told += [(text, one) for one in text.tell(own, token)]
            if text.output.finish or text.turns_over:
                self._drop(text)
            if text.turns_over:
                text.slide(self.runner.model)
                self._reading.append(text)
        return told

    def _read(self) -> list[SequenceGroup]:
        """Reads on, the first that joined first; gives those that are done."""
        left, done = READ, []
        for text in list(self._reading):
            for row in text.sequences:
                if not row.is_read and left > 0:
                    left -= row.read_on(self.runner, left)
            if not all(row.is_read for row in text.sequences):
                break
            self._reading.remove(text)
            self._written.append(text)
            done.append(text)
        return done

    def _drop(self, text: SequenceGroup) -> None:
        self._written = [one for one in self._written if one is not text]
        for row in text.sequences:
            row.leave(self.runner)


class _GroupRow:
    """One sequence of a text: its context, or its context under one of several heads."""

    def __init__(self, text: SequenceGroup, window: Window) -> None:
        self.text = text
        self.window = window
        slots = cache_keys(window.tree)
        self.ids = [slot for slot in slots if isinstance(slot, int)]  # soft rows have none
        self.written: list[int] = []
        self.end = window.tree.start + len(slots)  # the position of the first new token
        self._lane: RunningSequence | None = None

    def chosen(self, token: int) -> None:
        self.ids.append(token)
        self.written.append(token)

    @property
    def is_read(self) -> bool:
        return self._lane is not None and self._lane.logits is not None

    def running(self) -> RunningSequence:
        assert self._lane is not None
        return self._lane

    def last(self) -> Tensor:
        """Logits `[1, vocab]` after the context."""
        logits = self.running().logits
        assert logits is not None
        return logits

    def read_on(self, runner: ModelRunner, most: int) -> int:
        """Reads a part of the context; returns how many tokens."""
        if self._lane is None:
            self._lane = runner.begin(self.window.tree)
            self.text.cache_usage = self.text.cache_usage or self._lane.cache_usage
        return self._lane.read_on(most)

    def leave(self, runner: ModelRunner) -> None:
        """Gives its lane back; harmless where it has none."""
        lane, self._lane = self._lane, None
        if lane is not None:
            runner.leave(lane)
