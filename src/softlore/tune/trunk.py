"""What an update draws from, and the trunk that its branches hang on while they are drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from softlore.context import Branch
from softlore.settings import TrainingConfig
from softlore.tune.examples import CallResponse, EntryExamples
from softlore.tune.filler import FillerStore
from softlore.tune.passages import Passage, PassageSource

WITHIN_CALL = 0.25  # share of calls within which a late prefix is first seen
Target = list[int] | Tensor


class Example(Protocol):
    """What a branch is made of, such as a `CallResponse` or a `Passage`."""

    @property
    def target(self) -> Target:
        """What the branch's rows are compared with: ids, or hidden states `[n_rows, hidden]`."""
        ...

    def branch(self, parent: int) -> Branch:
        """The branch after a node of the trunk."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """What every update draws from.

    Attributes:
        examples: by entry.
        guard: unrelated passages with the bare model's hidden states.
        filler: token ids of unrelated text.
        unrelated: the source that adds to both.
        filler_store: filler that the bare model has read, for late prefixes.
    """

    examples: Mapping[str, EntryExamples]
    guard: Sequence[Passage]
    filler: Sequence[list[int]]
    unrelated: PassageSource | None = None
    filler_store: FillerStore | None = None

    @property
    def sources(self) -> list[PassageSource]:
        """All sources of passages."""
        of_entries = [source for one in self.examples.values() for source in one.sources]
        return of_entries if self.unrelated is None else [*of_entries, self.unrelated]

    def to_measure(self) -> TrainingData:
        """What prompts are measured on while they are trained."""
        examples = {name: entry.to_measure() for name, entry in self.examples.items()}
        guard = self.unrelated.held_out if self.unrelated else self.guard
        store = self.filler_store and self.filler_store.to_measure()
        return TrainingData(examples, guard, self.filler, filler_store=store)


@dataclass(frozen=True)
class Drawn:
    """An example of a loss, and its branch of the trunk."""

    example: Example
    branch: Branch


@dataclass(frozen=True)
class Trunk:
    """A trunk while its branches are drawn.

    Attributes:
        draw: the update's random numbers.
        group: names of the entries whose prompts are in it.
        learning: names of all entries that are being trained.
        soft: the node before the filler: branches on it see the soft prompts alone.
        end: the last node: branches on it see the filler, too.
        unseen: whether the branches alone see the prompts, and not the trunk.
        continuation: the text that the filler goes on with, and the node of the filler; None
            without filler that was read.
        run_teacher: passages with the hidden states of a model that has read the filler and the
            text of an entry (token ids); None without filler that was read.
    """

    config: TrainingConfig
    data: TrainingData
    draw: random.Random
    group: Sequence[str]
    learning: set[str]
    soft: int
    end: int
    unseen: bool = False
    continuation: tuple[Passage, int] | None = None
    run_teacher: Callable[[Sequence[int], Sequence[Passage]], list[Passage]] | None = None

    @property
    def has_pairs(self) -> bool:
        examples = self.data.examples
        return any(examples[name].pairs for name in self.group if name in examples)

    def sample(self, examples: Sequence[Any], limit: int, parent: int) -> list[Drawn]:
        """At most `limit` of the examples, without repetition, as branches on a node."""
        sampled = self.draw.sample(list(examples), min(limit, len(examples)))
        return [Drawn(example, example.branch(parent)) for example in sampled]

    def sample_passages(
        self, passages: Sequence[Passage], limit: int, share_behind: float
    ) -> list[Drawn]:
        """Passages of a teacher, some of them behind the filler, if there is some.

        Those are about the same chunk of a long text, which the teacher reads behind the filler.

        Args:
            share_behind: of the passages; 0 where the teacher can't read its text there.
        """
        passages = list(passages)
        count = min(limit, len(passages))
        behind: list[Passage] = []
        n_behind = int(share_behind * count)
        if self.run_teacher is not None and n_behind:
            lore = self.draw.choice(passages).lore
            about = [i for i, passage in enumerate(passages) if passage.lore is lore]
            far = set(self.draw.sample(about, min(n_behind, len(about))))
            behind = self.run_teacher(lore, [passages[i] for i in sorted(far)])
            passages = [passage for i, passage in enumerate(passages) if i not in far]
        near = self.draw.sample(passages, count - len(behind))
        return [
            Drawn(passage, passage.branch(parent))
            for drawn, parent in ((near, self.soft), (behind, self.end))
            for passage in drawn
        ]

    def sample_pairs(self, pairs: Sequence[CallResponse], limit: int) -> list[Drawn]:
        """Pairs behind the filler; prompts that it does not see are first seen in some calls."""
        drawn = self.sample(pairs, limit, self.end)
        if not self.unseen:
            return drawn
        return [
            replace(pair, branch=replace(pair.branch, sees_from=self._first_seen(pair.branch)))
            for pair in drawn
        ]

    def _first_seen(self, branch: Branch) -> int:
        """A token of the call, up to its last one, which must see the prefixes: `start`."""
        within = branch.start > 0 and self.draw.random() < WITHIN_CALL
        return self.draw.randint(1, branch.start) if within else 0
