"""Passages that a teacher writes for distillation and guard: a few first, more as updates go on.

A passage is written by the model after a text (the *source*: an entry's lore, or nothing for
unrelated passages) and carries the hidden states of the model that has read that text, which a
prompt is trained to reproduce. Writing is the slow part of a training's preparation, so a source
has only what the first updates draw when training starts, and new passages follow as they are
used up, twice as many each time, since many are written at once in hardly more time than a few:

    update           0 ········ 16 ········ 32 ·············· 64 ·············· 128 ··········
    passages   [held out][ first ][   new   ][       new       ][       new       ] ···

All sources write side by side in one batch, in which the text of each is read once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from softlore.context import Branch, Tree
from softlore.decode import WeightedTrees, sample_openings
from softlore.measure.score import hidden_states_after
from softlore.model import FrozenModel
from softlore.model.memory import free_memory
from softlore.settings import TrainingConfig
from softlore.tune.lengths import passage_length
from softlore.tune.topics import Topic, length_of

FIRST = 4  # updates that the first passages suffice for, each passage used once
FIRST_INTERVAL, LONGEST_INTERVAL = 16, 64  # updates between two times of writing
RENEWED = 0.25  # new passages for each one that an update draws, until the limit
MEMORY_SHARE = 0.1  # of the memory that is free, for keys and values while writing
MAX_ROWS = 256  # passages written side by side; more is not faster

OnPhase = Callable[[str, float], None]  # what is done, and the share that is


def writing_rounds(updates: int) -> int:
    """How often passages have been written in so many updates, the first ones not counted.

    That is after 16, 32, 64, 128, 192, ... updates.
    """
    if updates < LONGEST_INTERVAL:
        return (updates // FIRST_INTERVAL).bit_length()
    return writing_rounds(LONGEST_INTERVAL - 1) + updates // LONGEST_INTERVAL


def is_writing_due(updates: int, end: int) -> bool:
    """Whether passages are written after that many updates; `end`: the last one.

    Not where hardly any updates would use them.
    """
    used = end - updates >= min(updates, LONGEST_INTERVAL) / 2
    return used and writing_rounds(updates) > writing_rounds(updates - 1)


@dataclass(frozen=True)
class Passage:
    """Token ids, and the teacher's hidden states `[len - start, hidden]` from `start` on.

    `lore`: token ids of the text that it is about; none where the teacher has read something else.
    """

    ids: list[int]
    start: int
    target: Tensor
    lore: Sequence[int] = ()

    def branch(self, parent: int) -> Branch:
        """Every row from `start` on is compared with the teacher's."""
        return Branch(self.ids, parent, self.start)


@dataclass
class PassageSource:
    """What passages are written about, and those written so far.

    Attributes:
        name: decides the draws, with the seed and each passage's number.
        topics: in turn; one, or the chunks of a long text.
        length: tokens of a passage; fewer where the model ends its text.
        limit: most passages to train on.
        drawn: passages that an update draws.
        start: the first token of a passage that is compared.
        n_held_out: passages that are measured on, and not trained on: the first ones.
        has_teacher: whether hidden states are computed; filler needs none.
        given: passages that exist already, taken in place of written ones.
        first: how many are written before the first update; None: as many as `FIRST` updates draw.
        follows: of a passage only what follows its opener is compared, in place of `start`.
        ids: all passages so far.
        batches: how many were added each time, which decides the rounding of hidden states.
        passages, held_out: those to train on and to measure on, with hidden states.
    """

    name: str
    topics: Sequence[Topic]
    length: int
    limit: int
    drawn: int
    start: int = 0
    n_held_out: int = 0
    has_teacher: bool = True
    given: Sequence[list[int]] | None = None
    first: int | None = None
    follows: bool = False
    ids: list[list[int]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    held_out: list[Passage] = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Positions that the longest of the teacher's contexts takes."""
        return max(length_of(topic.before) for topic in self.topics)

    def wanted(self, updates: int) -> int:
        """How many passages there are to be once that many updates have been made."""
        # As many updates follow until the next time as were made, or the longest interval.
        until = updates + min(updates, LONGEST_INTERVAL)
        new = int(until * self.drawn * RENEWED)
        first = FIRST * self.drawn if self.first is None else max(self.first, FIRST * self.drawn)
        number = self.n_held_out + min(self.limit, first + new)
        return number if self.given is None else min(number, len(self.given))

    def topic(self, number: int) -> Topic:
        """What the passage of a number is about."""
        return self.topics[number % len(self.topics)]

    def opener(self, number: int) -> str:
        """First words of the passage of a number."""
        openers = self.topic(number).openers
        return openers[number // len(self.topics) % len(openers)]

    def by_topic(self) -> list[tuple[Topic, list[list[int]]]]:
        """Each topic that has passages to train on, with their token ids."""
        numbers = range(self.n_held_out, len(self.ids))
        written = [
            (topic, [self.ids[n] for n in numbers if self.topic(n) is topic])
            for topic in self.topics
        ]
        return [(topic, ids) for topic, ids in written if ids]

    def add(self, model: FrozenModel, new: Sequence[list[int]]) -> None:
        """Appends passages, with the teacher's hidden states."""
        held_out, first = max(0, self.n_held_out - len(self.ids)), len(self.ids)
        self.ids.extend(new)
        self.batches.append(len(new))
        if self.has_teacher:
            passages: dict[int, Passage] = {}
            for k in range(min(len(self.topics), len(new))):
                places, topic = range(k, len(new), len(self.topics)), self.topic(first + k)
                starts = [self._start(model, first + i) for i in places]
                taught = run_teacher(model, topic.before, [new[i] for i in places], starts)
                passages |= zip(places, (replace(p, lore=topic.lore) for p in taught), strict=True)
            ordered = [passages[i] for i in range(len(new))]
            self.held_out.extend(ordered[:held_out])
            self.passages.extend(ordered[held_out:])

    def _start(self, model: FrozenModel, number: int) -> int:
        """The first token of a passage that is compared."""
        return len(model.encode(self.opener(number))) - 1 if self.follows else self.start

    def state(self) -> dict[str, Tensor]:
        """The passages' ids one after another, and their lengths, for a checkpoint."""
        flat = [token for ids in self.ids for token in ids]
        lengths = [len(ids) for ids in self.ids]
        return {"ids": torch.tensor(flat, dtype=torch.int32), "lengths": torch.tensor(lengths)}

    def restore(
        self, model: FrozenModel, state: Mapping[str, Tensor], batches: Sequence[int]
    ) -> None:
        """Adds the passages of `state`, in batches as before: the rounding depends on them."""
        split = state["ids"].split(state["lengths"].tolist())
        ids = [part.tolist() for part in split]
        for size in batches:
            start = len(self.ids)
            self.add(model, ids[start : start + size])


def write_passages(
    model: FrozenModel,
    config: TrainingConfig,
    sources: Sequence[tuple[PassageSource, int]],
    on_phase: OnPhase = lambda name, done: None,
) -> None:
    """Writes passages, side by side, until each source has as many as are wanted.

    Args:
        sources: each with the number that it is to have.
        on_phase: see `WorldInfoTrainer`.
    """
    # Those about one text one after another: they are written together, and read it once.
    missing = [
        (source, sorted(range(len(source.ids), wanted), key=lambda n: n % len(source.topics)))
        for source, wanted in sources
        if len(source.ids) < wanted
    ]
    jobs = [
        (source, number)
        for source, numbers in missing
        if source.given is None
        for number in numbers
    ]
    written = iter(
        sample_openings(
            model,
            [(source.topic(number).before, source.opener(number)) for source, number in jobs],
            [source.length for source, _ in jobs],
            [_seed(config, source, number) for source, number in jobs],
            rows_at_once(model, config, [source for source, _ in jobs]),
            partial(on_phase, "writing passages"),
        )
    )
    for place, (source, numbers) in enumerate(missing):
        on_phase("reading passages", place / len(missing))
        by_number = source.given or dict(zip(numbers, written, strict=False))
        source.add(model, [by_number[number] for number in sorted(numbers)])


def _seed(config: TrainingConfig, source: PassageSource, number: int) -> int:
    return random.Random(f"{config.seed}/{source.name}/{number}").getrandbits(63)


def rows_at_once(
    model: FrozenModel, config: TrainingConfig, sources: Sequence[PassageSource]
) -> int:
    """How many passages are written side by side: as many as the memory has room for.

    The limit is a power of 2, so that memory that varies a little does not change the rounding.
    """
    longest = max((source.longest for source in sources), default=0)
    tokens = longest + passage_length(model, config)
    size = model.layers * 2 * model.kv_heads * model.head_dim * tokens * model.dtype.itemsize
    rows = int(MEMORY_SHARE * free_memory(model.device) // size)
    return max(1, min(MAX_ROWS, 1 << max(0, rows.bit_length() - 1)))


def run_teacher(
    model: FrozenModel,
    before: Tree | WeightedTrees,
    passages: Sequence[list[int]],
    start: int | Sequence[int] = 0,
) -> list[Passage]:
    """Passages with the hidden states of a model that has read `before`; see `Passage`."""
    states = hidden_states_after(model, before, passages, start)
    return [
        Passage(list(ids), len(ids) - len(rows), rows)
        for ids, rows in zip(passages, states, strict=True)
    ]
