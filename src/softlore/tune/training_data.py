"""Makes the data of a training, and draws updates: groups of prompts, filler and branches."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from softlore.context import ROOT, Branch, Tree, free_places
from softlore.errors import ConfigError, LoreError
from softlore.lore import Entry
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt
from softlore.settings import TrainingConfig
from softlore.tune.examples import EntryExamples, Source
from softlore.tune.filler import FillerStore
from softlore.tune.initial import known_ids
from softlore.tune.lengths import log_uniform, passage_length, spacing
from softlore.tune.losses import GUARDS, LossTerm, draw_terms
from softlore.tune.objective import TrainingBatch
from softlore.tune.optimizer import optimizer_class
from softlore.tune.passage_sources import unrelated_source
from softlore.tune.passages import (
    OnPhase,
    Passage,
    PassageSource,
    run_teacher,
    write_passages,
)
from softlore.tune.topics import bare_tree
from softlore.tune.trunk import TrainingData, Trunk

UNRELATED = 64  # passages for filler and guard, at most
SEEN_SHARE = 0.25  # of trunks with a part of the filler that sees late prefixes
SEEN = 48  # tokens of that part, at most


@dataclass(frozen=True)
class Company:
    """Finished prompts that stand beside those in training and stay as they are.

    Attributes:
        prompts: by name.
        entries: what they were trained on: their pairs are trained on too, with them in the trunk,
            so that new prompts do not impair them.
    """

    prompts: Mapping[str, SoftPrompt] = field(default_factory=dict)
    entries: Sequence[Entry] = ()

    def check(self, model: FrozenModel, kind: str, entries: Sequence[Entry]) -> None:
        """Checks that it can stand beside entries that are trained.

        Raises:
            LoreError: two prompts of one name.
            ConfigError, PromptMismatchError: prompts of another kind or model.
        """
        names = [entry.name for entry in entries]
        repeated = sorted({n for n in names if names.count(n) > 1 or n in self.prompts})
        if repeated:
            raise LoreError(
                f"the name {repeated[0]!r} stands for two prompts; expected each once; "
                "rename one, or leave it out of the company"
            )
        for prompt in self.prompts.values():
            model.check_prompt(prompt)
            if prompt.kind != kind:
                raise ConfigError(
                    f"prompt {prompt.name!r} of the company is of kind {prompt.kind!r}; expected "
                    f"{kind!r}, as those in training; train that kind"
                )


def make_training_data(
    model: FrozenModel,
    config: TrainingConfig,
    source: Source,
    entries: Sequence[Entry],
    company: Mapping[str, SoftPrompt] | None = None,
) -> TrainingData:
    """Makes the examples of entries, and the sources of unrelated text.

    No passage is written yet: see `write_ahead`.

    Args:
        company: finished prompts that stand beside those in training.
    """
    if isinstance(config.optimizer, str):
        optimizer_class(config.optimizer)  # is known, before anything is generated
    examples = {entry.name: source.make_examples(model, entry, config) for entry in entries}
    unrelated = None
    if not config.max_steps:  # nothing is drawn
        return TrainingData(examples, [], [])
    if config.drift_guard > 0 or (spacing(config) > 0 and config.filler == "story"):
        drawn = -(-len(examples) // config.company_size) * GUARDS[config.kind]
        # A long text is made of many passages; half of its length at first.
        first = spacing(config) // (2 * passage_length(model, config)) if config.late else None
        first = first and min(first, UNRELATED // 2)
        unrelated = unrelated_source(model, config, max(UNRELATED, drawn), drawn, first)
    store = None
    if config.late:
        n_tokens = max([config.n_tokens, *map(len, (company or {}).values())])
        at = free_places(n_tokens, model.context_length)
        longest = max(_longest_branch(examples.values(), unrelated), config.n_tokens)
        store = FillerStore.of(model, config, unrelated, at, longest)
    if unrelated is None:
        return TrainingData(examples, [], [], filler_store=store)
    return TrainingData(examples, unrelated.passages, unrelated.ids, unrelated, store)


def _longest_branch(
    examples: Iterable[EntryExamples],
    unrelated: PassageSource | None,
    guard: Sequence[Passage] = (),
) -> int:
    """Tokens of the longest branch, now or later."""
    lengths = [one.longest for one in examples] + [len(passage.ids) for passage in guard]
    return max([*lengths, unrelated.length if unrelated else 0])


def write_ahead(
    model: FrozenModel,
    config: TrainingConfig,
    data: TrainingData,
    updates: Mapping[str, int],
    step: int,
    on_phase: OnPhase = lambda name, done: None,
) -> None:
    """Writes the passages that the next updates draw from; see `PassageSource`.

    Args:
        updates: of each entry in training, how many it has made.
        step: updates made in all.
    """
    sources = [
        (source, source.wanted(updates[name]))
        for name in updates
        for source in data.examples[name].sources
    ]
    if data.unrelated is not None:
        sources.append((data.unrelated, data.unrelated.wanted(step)))
    write_passages(model, config, sources, on_phase)
    if data.filler_store is not None:
        on_phase("reading story text", 0.0)
        data.filler_store.write(model, step)


def draw_batch(
    model: FrozenModel,
    config: TrainingConfig,
    data: TrainingData,
    prompts: Mapping[str, Tensor],
    learning: Sequence[str],
    step: int,
) -> TrainingBatch:
    """The tree batch of one update: a function of the seed and `step` alone.

    Args:
        prompts: the tensors of all prompts that may be in a trunk, trained or not.
        learning: names of those that are being trained.
    """
    draw = random.Random(f"{config.seed}/{step}")
    resting = [name for name in prompts if name not in learning]
    drawing = _Drawing(model, config, data, prompts, set(learning), draw)
    batch = TrainingBatch()
    for group in draw_groups(draw, learning, resting, config.company_size):
        for part in drawing.split_to_fit(group):
            if not drawing.learning.isdisjoint(part):
                batch.add(*drawing.draw_tree(part))
    return batch


def draw_groups(
    draw: random.Random, learning: Sequence[str], resting: Sequence[str], max_size: int
) -> list[list[str]]:
    """Every prompt in training in one group, of 1 to `max_size` prompts in random order.

    Places beside the first are filled from the rest of those in training and the resting prompts
    alike, so that late entries meet early ones.
    """
    remaining = draw.sample(list(learning), len(learning))
    groups = []
    while remaining:
        size = draw.randint(1, max_size)
        group = [remaining.pop()]
        company = draw.sample(list(resting), min(len(resting), size - 1))
        while len(group) < size and (remaining or company):
            take_remaining = draw.random() * (len(remaining) + len(company)) < len(remaining)
            group.append(remaining.pop() if take_remaining else company.pop())
        draw.shuffle(group)
        groups.append(group)
    return groups


@dataclass(frozen=True)
class _Drawing:
    """What the trees of one update are drawn from."""

    model: FrozenModel
    config: TrainingConfig
    data: TrainingData
    prompts: Mapping[str, Tensor]
    learning: set[str]
    draw: random.Random

    def split_to_fit(self, group: Sequence[str]) -> list[list[str]]:
        """The group, split where its prompts and their longest branch do not fit the context."""
        parts: list[list[str]] = [[]]
        for name in group:
            names = [*parts[-1], name]
            room = self._room(self._soft_prompts(names), names)
            if parts[-1] and room is not None and room < 0:
                parts.append([])
            parts[-1].append(name)
        return parts

    def draw_tree(self, group: Sequence[str]) -> tuple[Tree, list[tuple[Branch, LossTerm]]]:
        """The trunk of a group, and its branches.

        Without late prefixes filler is for pairs: a passage of distillation follows the prompts at
        once.
        """
        examples = [self.data.examples[name] for name in group if name in self.data.examples]
        if self.data.filler_store is not None:
            filled = any(entry.pairs or entry.lore for entry in examples)
            trunk, tree = self._late_trunk(self.data.filler_store, group, filled)
            return tree, draw_terms(trunk)
        tree = self._soft_prompts(group)
        soft = tree.end
        if any(entry.pairs for entry in examples):
            filler = draw_filler(
                self.model, self.config, self.data, self._room(tree, group), self.draw
            )
            tree = tree.then(filler) if filler else tree
        trunk = Trunk(self.config, self.data, self.draw, group, self.learning, soft, tree.end)
        return tree, draw_terms(trunk)

    def _late_trunk(
        self, store: FillerStore, group: Sequence[str], filled: bool
    ) -> tuple[Trunk, Tree]:
        """The trunk |BOS|filler|, which was read already, and perhaps |more filler| that is not.

        The prompts are seen from the end of what was read.
        """
        text = self.draw.choice(store.texts)
        room = self._room(text.trunk(0, store.at), group)
        most = min(spacing(self.config), len(text.ids), *([] if room is None else [max(0, room)]))
        length = log_uniform(self.draw, most) if filled else 0
        seen = log_uniform(self.draw, min(SEEN, length)) if self.draw.random() < SEEN_SHARE else 0
        tree, behind = text.trunk(length - seen, store.at), text.ids[length - seen : length]
        teacher = partial(self._run_teacher, tree, behind) if length else None
        tree = replace(tree, prefixes=[self.prompts[name] for name in group])
        read, soft = tree.end, 0 if len(self.model.bos) else ROOT
        follows = None
        if length and len(text.ids) - length + seen > 1:
            follows = text.passage(length - seen, self.config.passage_tokens), read
        if seen:
            tree = tree.then(behind)
        return (
            Trunk(
                self.config,
                self.data,
                self.draw,
                group,
                self.learning,
                soft,
                tree.end,
                unseen=not seen,
                continuation=follows,
                run_teacher=teacher,
            ),
            tree,
        )

    def _run_teacher(
        self, read: Tree, seen: Sequence[int], lore: Sequence[int], passages: Sequence[Passage]
    ) -> list[Passage]:
        """See `Trunk.run_teacher`; `seen`: ids of the filler that see the prompts."""
        tree = read.then([*lore, *seen])
        starts = [passage.start for passage in passages]
        return run_teacher(self.model, tree, [passage.ids for passage in passages], starts)

    def _soft_prompts(self, group: Sequence[str]) -> Tree:
        """The start of a trunk: prefixes and BOS, or BOS and embedding rows."""
        tree = bare_tree(self.model)
        if self.config.kind == "prefix":
            at = None if self.data.filler_store is None else self.data.filler_store.at
            return Tree(tree.nodes, [self.prompts[name] for name in group], at)
        for name in group:
            tree = tree.then(self.prompts[name])
        return tree

    def _room(self, tree: Tree, group: Sequence[str]) -> int | None:
        """Tokens of filler that fit before the longest branch; below 0 the branch does not fit."""
        if self.model.context_length is None:
            return None
        examples = [self.data.examples[name] for name in group if name in self.data.examples]
        longest = _longest_branch(examples, self.data.unrelated, self.data.guard)
        return self.model.context_length - tree.start - tree.length - longest


def draw_filler(
    model: FrozenModel,
    config: TrainingConfig,
    data: TrainingData,
    room: int | None,
    draw: random.Random,
) -> list[int]:
    """Between 0 and `max_spacing` tokens of story text, or of random tokens, none special.

    The length is log-uniform: calls right behind the prompts are as frequent as those far away.
    """
    length = log_uniform(
        draw, spacing(config) if room is None else max(0, min(spacing(config), room))
    )
    filler: list[int] = []
    if config.filler == "random" or not data.filler:
        known = known_ids(model)
        while len(filler) < length:
            token = draw.randrange(known)
            if token not in model.special_ids:
                filler.append(token)
        return filler
    filler = list(draw.choice(data.filler))
    while len(filler) < length:
        filler = list(draw.choice(data.filler)) + filler
    return filler[len(filler) - length :]
