"""Drawing an update: who stands with whom, how much filler between, and which leaves hang on it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from softlore.context import ROOT, Node, Tree
from softlore.model import FrozenModel
from softlore.tune.config import TrainingConfig
from softlore.tune.initial import known_ids
from softlore.tune.lessons import DISTILLED, Lesson
from softlore.tune.objective import Batch, passage_leaf, response_leaf
from softlore.tune.teacher import Passage

GUARDS = {"prefix": 2, "embedding": 4}  # unrelated passages a trunk; rows bend more
RESTING_PAIRS = 2  # pairs of a prompt that only keeps company


@dataclass(frozen=True)
class Supplies:
    """What every update draws from, made once."""

    lessons: Mapping[str, Lesson]
    guard: Sequence[Passage]
    filler: Sequence[list[int]]


def draw_groups(
    draw: random.Random, learning: Sequence[str], resting: Sequence[str], most: int
) -> list[list[str]]:
    """Every learner in one group, of 1 to `most` prompts in random order.

    Places beside the first are filled from the learners left and the resting prompts alike, so
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
    supplies: Supplies,
    prompts: Mapping[str, Tensor],
    learning: Sequence[str],
    step: int,
) -> Batch:
    """The tree batch of one update: a function of the seed and `step` alone.

    Args:
        prompts: the tensors of all that may stand in a trunk, learning or resting.
        learning: those that are being trained.
    """
    draw = random.Random(f"{config.seed}/{step}")
    busy = set(learning)
    resting = [name for name in prompts if name not in busy]
    batch = Batch()
    for group in draw_groups(draw, learning, resting, config.company_size):
        for part in _that_fit(model, config, supplies, prompts, group, busy):
            _add_trunk(model, config, supplies, prompts, part, busy, draw, batch)
    return batch


def _that_fit(
    model: FrozenModel,
    config: TrainingConfig,
    supplies: Supplies,
    prompts: Mapping[str, Tensor],
    group: Sequence[str],
    busy: set[str],
) -> list[list[str]]:
    """The group, cut where its prompts and their longest leaf would not fit the context."""
    parts: list[list[str]] = [[]]
    for name in group:
        trunk = _soft(model, config, prompts, [*parts[-1], name])
        room = _room(model, trunk, [*parts[-1], name], supplies)
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
    supplies: Supplies,
    prompts: Mapping[str, Tensor],
    group: Sequence[str],
    busy: set[str],
    draw: random.Random,
    batch: Batch,
) -> None:
    """One trunk |soft|filler| with the pairs, passages and guards that hang on it.

    Filler and guard are for pairs. A teacher that has read the lore says by itself how far other
    text is to be bent, and a guard would pull against it.
    """
    tree = _soft(model, config, prompts, group)
    soft = len(tree.nodes) - 1 if tree.nodes else ROOT
    asked = any(supplies.lessons[name].pairs for name in group if name in supplies.lessons)
    if asked:
        filler = draw_filler(model, config, supplies, _room(model, tree, group, supplies), draw)
        if filler:
            tree.nodes.append(Node(filler, soft))
    end = len(tree.nodes) - 1 if tree.nodes else ROOT
    grown = []
    for name in group:
        lesson = supplies.lessons.get(name)
        if lesson is None:
            continue
        most = config.pairs_per_step if name in busy else RESTING_PAIRS
        pairs = draw.sample(lesson.pairs, min(most, len(lesson.pairs)))
        grown += [response_leaf(pair, end, name, 1 / len(pairs)) for pair in pairs]
        if name in busy and lesson.passages:
            wanted = DISTILLED["beside pairs" if pairs else "alone"]
            part = draw.sample(lesson.passages, min(wanted, len(lesson.passages)))
            weight = config.distil_weight / len(part)
            grown += [passage_leaf(p, soft, name, "distil", weight) for p in part]
    if asked and config.drift_guard > 0 and supplies.guard:
        guards = draw.sample(list(supplies.guard), min(GUARDS[config.kind], len(supplies.guard)))
        weight = config.drift_guard / len(guards)
        grown += [passage_leaf(p, soft, "/".join(group), "guard", weight) for p in guards]
    batch.add(tree, grown)


def _room(model: FrozenModel, tree: Tree, group: Sequence[str], supplies: Supplies) -> int | None:
    """How many filler tokens still fit before the longest leaf; below 0 even the leaf does not."""
    if model.context_length is None:
        return None
    lessons = [supplies.lessons[name] for name in group if name in supplies.lessons]
    lengths = [lesson.longest for lesson in lessons] + [len(p.ids) for p in supplies.guard]
    longest = max(lengths, default=0)
    return model.context_length - tree.start - tree.length - longest


def draw_filler(
    model: FrozenModel,
    config: TrainingConfig,
    supplies: Supplies,
    room: int | None,
    draw: random.Random,
) -> list[int]:
    """Between 0 and `max_spacing` tokens of story text, or of random tokens."""
    most = config.max_spacing if room is None else max(0, min(config.max_spacing, room))
    length = draw.randint(0, most)
    if config.filler == "random" or not supplies.filler:
        filler: list[int] = []
        known = known_ids(model)
        while len(filler) < length:  # special tokens are never drawn
            token = draw.randrange(known)
            if token not in model.special_ids:
                filler.append(token)
        return filler
    filler = list(draw.choice(supplies.filler))
    while len(filler) < length:
        filler = list(draw.choice(supplies.filler)) + filler
    return filler[len(filler) - length :]
