"""Drawing an update: who stands with whom, how much filler between, and which leaves hang on it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from softlore.context import ROOT, Node, Tree
from softlore.model import FrozenModel
from softlore.settings import TrainingConfig
from softlore.tune.examples import DISTILLED, EntryExamples
from softlore.tune.initial import known_ids
from softlore.tune.objective import TrainingBatch, passage_branch, response_branch
from softlore.tune.teacher import Passage

GUARDS = {"prefix": 2, "embedding": 4}  # unrelated passages a trunk; rows bend more
RESTING_PAIRS = 2  # pairs of a prompt that only keeps company


@dataclass(frozen=True)
class TrainingData:
    """What every update draws from, made once."""

    examples: Mapping[str, EntryExamples]
    guard: Sequence[Passage]
    filler: Sequence[list[int]]


def draw_groups(
    draw: random.Random, learning: Sequence[str], resting: Sequence[str], most: int
) -> list[list[str]]:
    """Every trainable in one group, of 1 to `most` prompts in random order.

    Places beside the first are filled from the trainables left and the resting prompts alike, so
    that late entries meet early ones.
    """
    left = draw.sample(list(learning), len(learning))
    groups = []
    while left:
        size = draw.randint(1, most)
        group = [left.pop()]
        company = draw.sample(list(resting), min(len(resting), size - 1))
        while len(group) < size and (left or company):
            from_left = draw.random() * (len(left) + len(company)) < len(left)
            group.append(left.pop() if from_left else company.pop())
        draw.shuffle(group)
        groups.append(group)
    return groups


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
        prompts: the tensors of all that may stand in a trunk, learning or resting.
        learning: those that are being trained.
    """
    draw = random.Random(f"{config.seed}/{step}")
    busy = set(learning)
    resting = [name for name in prompts if name not in busy]
    batch = TrainingBatch()
    for group in draw_groups(draw, learning, resting, config.company_size):
        for part in _that_fit(model, config, data, prompts, group, busy):
            _add_trunk(model, config, data, prompts, part, busy, draw, batch)
    return batch


def _that_fit(
    model: FrozenModel,
    config: TrainingConfig,
    data: TrainingData,
    prompts: Mapping[str, Tensor],
    group: Sequence[str],
    busy: set[str],
) -> list[list[str]]:
    """The group, cut where its prompts and their longest leaf would not fit the context."""
    parts: list[list[str]] = [[]]
    for name in group:
        trunk = _soft(model, config, prompts, [*parts[-1], name])
        room = _room(model, trunk, [*parts[-1], name], data)
        if parts[-1] and room is not None and room < 0:
            parts.append([])
        parts[-1].append(name)
    return [part for part in parts if not busy.isdisjoint(part)]


def _soft(
    model: FrozenModel, config: TrainingConfig, prompts: Mapping[str, Tensor], group: Sequence[str]
) -> Tree:
    """The head of a trunk: the group's prefixes, or BOS and the group's rows."""
    tree = Tree([Node(model.bos)] if model.bos else [])
    for name in group:
        if config.kind == "prefix":
            tree.prefixes.append(prompts[name])
        else:
            tree.nodes.append(Node(prompts[name], len(tree.nodes) - 1))
    return tree


def _add_trunk(
    model: FrozenModel,
    config: TrainingConfig,
    data: TrainingData,
    prompts: Mapping[str, Tensor],
    group: Sequence[str],
    busy: set[str],
    draw: random.Random,
    batch: TrainingBatch,
) -> None:
    """One trunk |soft|filler| with the pairs, passages and guards that hang on it.

    Filler and guard are for pairs. A teacher that has read the lore says by itself how far other
    text is to be bent, and a guard would pull against it.
    """
    tree = _soft(model, config, prompts, group)
    soft = len(tree.nodes) - 1 if tree.nodes else ROOT
    asked = any(data.examples[name].pairs for name in group if name in data.examples)
    if asked:
        filler = draw_filler(model, config, data, _room(model, tree, group, data), draw)
        if filler:
            tree.nodes.append(Node(filler, soft))
    end = len(tree.nodes) - 1 if tree.nodes else ROOT
    grown = []
    for name in group:
        examples = data.examples.get(name)
        if examples is None:
            continue
        most = config.pairs_per_step if name in busy else RESTING_PAIRS
        pairs = draw.sample(examples.pairs, min(most, len(examples.pairs)))
        grown += [response_branch(pair, end, name, 1 / len(pairs)) for pair in pairs]
        if name in busy and examples.passages:
            wanted = DISTILLED["beside pairs" if pairs else "alone"]
            part = draw.sample(examples.passages, min(wanted, len(examples.passages)))
            weight = config.distil_weight / len(part)
            grown += [passage_branch(p, soft, name, "distil", weight) for p in part]
    if asked and config.drift_guard > 0 and data.guard:
        guards = draw.sample(list(data.guard), min(GUARDS[config.kind], len(data.guard)))
        weight = config.drift_guard / len(guards)
        grown += [passage_branch(p, soft, "/".join(group), "guard", weight) for p in guards]
    batch.add(tree, grown)


def _room(model: FrozenModel, tree: Tree, group: Sequence[str], data: TrainingData) -> int | None:
    """How many filler tokens still fit before the longest leaf; below 0 even the leaf does not."""
    if model.context_length is None:
        return None
    examples = [data.examples[name] for name in group if name in data.examples]
    lengths = [examples.longest for examples in examples] + [len(p.ids) for p in data.guard]
    longest = max(lengths, default=0)
    return model.context_length - tree.start - tree.length - longest


def draw_filler(
    model: FrozenModel,
    config: TrainingConfig,
    data: TrainingData,
    room: int | None,
    draw: random.Random,
) -> list[int]:
    """Between 0 and `max_spacing` tokens of story text, or of random tokens."""
    most = config.max_spacing if room is None else max(0, min(config.max_spacing, room))
    length = draw.randint(0, most)
    if config.filler == "random" or not data.filler:
        filler: list[int] = []
        known = known_ids(model)
        while len(filler) < length:  # special tokens are never drawn
            token = draw.randrange(known)
            if token not in model.special_ids:
                filler.append(token)
        return filler
    filler = list(draw.choice(data.filler))
    while len(filler) < length:
        filler = list(draw.choice(data.filler)) + filler
    return filler[len(filler) - length :]
