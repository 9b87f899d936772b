"""Running trees: three exact ways with one result, from the plainest to the fastest.

- `rows`: every branch is a row of its own, its trunk run again (the way of mkultra and PEFT);
- `expanded`: the trunk runs once, and its keys and values are handed to each branch's row;
- `packed`: a tree is one row, its branches side by side under a tree-shaped mask.

`expanded` can run its branches in micro-batches under one trunk, short leaves apart from long ones
so that little is padding: gradients are summed at the trunk's keys and values, then go through the
trunk once (exact, by the chain rule).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from softlore.context.splice import ROOT, Node, Spliced, Tree, splice, stack_prefixes
from softlore.model import FrozenModel, KeysValues, KVCache

TreeLayout = Literal["packed", "expanded", "rows"]
SIMILAR = 0.6  # leaves this much shorter than the longest are run apart from it


@dataclass(frozen=True)
class Branch:
    """A branch: `ids` after node `parent`; the hidden states of `ids[start:stop]` are wanted."""

    ids: Sequence[int]
    parent: int = ROOT
    start: int = 0
    stop: int | None = None

    @property
    def take(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def wanted(self) -> int:
        return len(range(*self.take.indices(len(self.ids))))


@dataclass(frozen=True)
class TreeBatch:
    """A trunk and the leaves that hang on it."""

    trunk: Tree
    leaves: Sequence[Branch]


def hidden_states(
    model: FrozenModel, batch: Sequence[TreeBatch], form: TreeLayout = "packed"
) -> Tensor:
    """Last hidden states `[sum of wanted, hidden]` of all leaves, tree by tree, leaf by leaf."""
    sizes = [leaf.wanted for branching in batch for leaf in branching.leaves]
    found: dict[int, Tensor] = {}
    for hidden, leaves in _chunks(model, batch, form, None, None):
        found |= zip(leaves, hidden.split([sizes[i] for i in leaves]), strict=True)
    return torch.cat([found[i] for i in range(len(sizes))])


def backward(
    model: FrozenModel,
    batch: Sequence[TreeBatch],
    loss: Callable[[Tensor, Sequence[int]], Tensor],
    form: TreeLayout = "packed",
    micro_batch: int | None = None,
) -> float:
    """Runs a batch and adds its gradient to whatever in the trunks requires one.

    Args:
        loss: from hidden states `[wanted, hidden]` of some leaves, and which they are, in order
            (counted through the whole batch), to their share of the loss.
        micro_batch: most leaves at once (form `expanded`; others take all at once).

    Returns:
        The summed loss.
    """
    total, held = 0.0, _DetachedTrunk()
    for hidden, leaves in _chunks(model, batch, form, micro_batch, held):
        share = loss(hidden, leaves)
        share.backward()
        total += float(share.detach())
    held.release()
    return total


class _DetachedTrunk:
    """A trunk's keys and values, cut off as leaves until every micro-batch has been through."""

    def __init__(self) -> None:
        self.whole: list[Tensor] = []
        self.cut: list[Tensor] = []

    def hold(self, past: KVCache) -> KVCache:
        pairs: KeysValues = []
        for pair in past.keys_values:
            cut = tuple(t.detach().requires_grad_(t.requires_grad) for t in pair)
            self.whole.extend(pair)
            self.cut.extend(cut)
            pairs.append((cut[0], cut[1]))
        return KVCache(pairs, past.positions, past.visible)

    def release(self) -> None:
        held = [
            (w, c.grad) for w, c in zip(self.whole, self.cut, strict=True) if c.grad is not None
        ]
        if held:
            torch.autograd.backward([w for w, _ in held], [g for _, g in held])


def _chunks(
    model: FrozenModel,
    batch: Sequence[TreeBatch],
    form: TreeLayout,
    micro_batch: int | None,
    held: _DetachedTrunk | None,
) -> Iterator[tuple[Tensor, Sequence[int]]]:
    """Yields hidden states of some leaves at a time, and which leaves they are."""
    flat = [(row, leaf) for row, branching in enumerate(batch) for leaf in branching.leaves]
    if form == "expanded":
        yield from _expanded(model, batch, flat, micro_batch or len(flat), held)
        return
    if form == "packed":
        trees = [_grown(b.trunk, b.leaves) for b in batch]
        first = [len(b.trunk.nodes) for b in batch]
        places = [
            (row, first[row] + i) for row, b in enumerate(batch) for i in range(len(b.leaves))
        ]
    else:
        trees = [_alone(batch[row].trunk, leaf) for row, leaf in flat]
        places = [(i, len(tree.nodes) - 1) for i, tree in enumerate(trees)]
    spliced = splice(model, trees)
    hidden, _ = _run(model, spliced)
    yield _gather(hidden, spliced, places, [leaf for _, leaf in flat]), range(len(flat))


def _expanded(
    model: FrozenModel,
    batch: Sequence[TreeBatch],
    flat: list[tuple[int, Branch]],
    micro_batch: int,
    held: _DetachedTrunk | None,
) -> Iterator[tuple[Tensor, Sequence[int]]]:
    trunks = [b.trunk for b in batch]
    past, nodes = _run_trunks(model, trunks)
    buckets = _by_length([len(leaf.ids) for _, leaf in flat], micro_batch)
    if past is not None and held is not None and len(buckets) > 1:
        past = held.hold(past)
    for bucket in buckets:
        part = [flat[i] for i in bucket]
        trees = [_twig(trunks[row], leaf) for row, leaf in part]
        mine = None
        if past is not None:
            index = torch.tensor([row for row, _ in part], device=model.device)
            seen = torch.stack([_seen(trunks[row], leaf, nodes[row]) for row, leaf in part])
            mine = past.rows(index, past.visible[index] & seen.to(model.device))
        spliced = splice(model, trees, mine)
        hidden, _ = _run(model, spliced)
        places = [(i, 0) for i in range(len(part))]
        yield _gather(hidden, spliced, places, [leaf for _, leaf in part]), bucket


def _by_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Leaves in buckets of at most `most`, none much shorter than its bucket's longest."""
    buckets: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[buckets[-1][0]] if buckets else 0
        if not buckets or len(buckets[-1]) >= most or lengths[i] < SIMILAR * longest:
            buckets.append([])
        buckets[-1].append(i)
    return buckets


def _run_trunks(model: FrozenModel, trunks: Sequence[Tree]) -> tuple[KVCache | None, Tensor]:
    """Runs trunks once: their keys and values, and `[B, P]` the node of each key (prefix: -2)."""
    if not any(len(node) for tree in trunks for node in tree.nodes):
        past = stack_prefixes(model, trunks)
        length = 0 if past is None else len(past)
        return past, torch.full((len(trunks), length), -2)
    spliced = splice(model, trunks)
    _, kept = model.hidden(
        spliced.embeds, spliced.positions, spliced.visible, spliced.past, keep=True
    )
    past = spliced.after(kept or [])
    prefix = torch.full((len(trunks), len(past) - spliced.nodes.shape[1]), -2)
    return past, torch.cat([prefix, spliced.nodes.cpu()], dim=1)


def _seen(trunk: Tree, leaf: Branch, nodes: Tensor) -> Tensor:
    """`[P]` bool: the trunk's keys that a leaf may look back on."""
    seen = nodes == -2
    if leaf.parent != ROOT:
        for node in trunk.path(leaf.parent):
            seen |= nodes == node
    return seen


def _grown(trunk: Tree, leaves: Sequence[Branch]) -> Tree:
    return Tree(trunk.nodes + [Node(leaf.ids, leaf.parent) for leaf in leaves], trunk.prefixes)


def _alone(trunk: Tree, leaf: Branch) -> Tree:
    """One branch with its trunk in front: a plain context."""
    path = trunk.path(leaf.parent) if leaf.parent != ROOT else []
    nodes = [Node(trunk.nodes[n].content, i - 1) for i, n in enumerate(path)]
    return Tree([*nodes, Node(leaf.ids, len(nodes) - 1)], trunk.prefixes)


def _twig(trunk: Tree, leaf: Branch) -> Tree:
    """A leaf by itself, whose text starts where its trunk has ended."""
    at = trunk.start
    if leaf.parent != ROOT:
        at = trunk.starts()[leaf.parent] + len(trunk.nodes[leaf.parent])
    return Tree([Node(leaf.ids)], at=at)


def _run(model: FrozenModel, spliced: Spliced) -> tuple[Tensor, KeysValues | None]:
    return model.hidden(spliced.embeds, spliced.positions, spliced.visible, spliced.past)


def _gather(
    hidden: Tensor, spliced: Spliced, places: list[tuple[int, int]], leaves: list[Branch]
) -> Tensor:
    """Flat `[wanted, hidden]` rows: 2-D before the head, which else is copied for each branch."""
    width = hidden.shape[1]
    index: list[int] = []
    for (row, node), leaf in zip(places, leaves, strict=True):
        start, stop = spliced.spans[row][node]
        index.extend(row * width + i for i in range(start, stop)[leaf.take])
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat.index_select(0, torch.tensor(index, device=flat.device))
