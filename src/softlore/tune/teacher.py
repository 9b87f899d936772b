"""Passages, and what a teacher thinks of them: the bare model, or the model that read the lore.

Kept are the teacher's last hidden states, not its probabilities: they are hundreds of times
smaller, and the frozen head turns them into the same logits when they are needed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softlore.context import Branch, Node, Tree, TreeBatch, hidden_states
from softlore.decode import OPENERS, WeightedTrees, sample_passages
from softlore.model import FrozenModel

ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Passage:
    """Token ids, and the teacher's hidden states `[len - start, hidden]` from `start` on."""

    ids: list[int]
    start: int
    hidden: Tensor


def run_teacher(
    model: FrozenModel, before: Tree | WeightedTrees, passages: Sequence[list[int]], start: int = 0
) -> list[Passage]:
    """Reads passages after `before` and keeps what the model thinks at each token.

    Of several teachers by weights that sum to 1 the weighted sum of hidden states is kept: the
    head is linear, so its logits are, up to a constant, those of the mixed log-probabilities.
    """
    if isinstance(before, Tree):
        return _taught(model, before, passages, start)
    mixed: list[Passage] = []
    for tree, weight in before:
        parts = _taught(model, tree, passages, start)
        if not mixed:
            mixed = [replace(part, hidden=weight * part.hidden) for part in parts]
        else:
            mixed = [
                replace(whole, hidden=whole.hidden + weight * part.hidden)
                for whole, part in zip(mixed, parts, strict=True)
            ]
    return mixed


@torch.no_grad()
def _taught(
    model: FrozenModel, before: Tree, passages: Sequence[list[int]], start: int
) -> list[Passage]:
    taught: list[Passage] = []
    for at in range(0, len(passages), ROWS_AT_ONCE):
        part = passages[at : at + ROWS_AT_ONCE]
        leaves = [Branch(ids, before.end, start) for ids in part]
        hidden = hidden_states(model, [TreeBatch(before, leaves)], "expanded")
        rows = hidden.split([leaf.wanted for leaf in leaves])
        taught.extend(
            Passage(list(ids), start, row.clone()) for ids, row in zip(part, rows, strict=True)
        )
    return taught


def bare_tree(model: FrozenModel) -> Tree:
    """What stands before a text when nothing does: BOS, where the model has one."""
    return Tree([Node(model.bos)] if model.bos else [])


def unrelated_passages(
    model: FrozenModel, story: str | None, count: int, length: int, seed: int
) -> list[list[int]]:
    """Passages for filler and drift guard: cut from the writer's story, or the model's own."""
    if story is None:
        return sample_passages(model, bare_tree(model), OPENERS, count, length, seed)
    ids = model.encode(story)
    if len(ids) <= length:
        return [ids] if len(ids) > 1 else []
    draw = random.Random(f"story/{seed}")
    starts = [draw.randrange(len(ids) - length) for _ in range(count)]
    return [ids[start : start + length] for start in starts]
