"""Runs tree batches: what several texts share is run once, with exact gradients.

A tree batch is a trunk (soft prompts, BOS, filler) and branches that hang on nodes of it:

    [soft prompts][filler]─┬─[call + response]       parent: filler
                │          └─[call + response]       parent: filler
                └────────────[unrelated passage]     parent: soft prompts

Two layouts give the same hidden states. With T tokens in the trunk and n_i in branch i:

packed: a tree is one row of T + Σ n_i tokens. A branch's positions continue from its parent, and
the mask hides branches from each other (and the filler from the passage `P`):

                 s s f f a a b b P P       s soft prompt, f filler, a and b call + response
            a    1 1 1 1 1 . . . . .
            a    1 1 1 1 1 1 . . . .       1 visible
            b    1 1 1 1 . . 1 . . .
            b    1 1 1 1 . . 1 1 . .       . hidden
            P    1 1 . . . . . . 1 .
            P    1 1 . . . . . . 1 1

expanded: trunks run once, `[trees, T]`; their keys and values are indexed out to a row a branch,
`[branches, kv_heads, T, head_dim]`, behind which the branches run, `[branches, max n_i]`. Branches
run in micro-batches of similar length, so that little is padding. The trunk's keys and values are
then detached leaves of autograd: each micro-batch adds its gradient there, and the sum goes through
the trunk's graph once, which is exact by the chain rule.

     trunk ──▶ K, V ┊ detached K, V ──▶ branches 1..m ──▶ loss.backward()  ─┐ gradients add up at
                    ┊              └──▶ branches m+1.. ──▶ loss.backward() ─┤ the detached K and V
     trunk.backward(Σ gradient at K, V) ◀───────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from softlore.context.splice import ROOT, Node, Spliced, Tree, splice, stack_prefixes
from softlore.model import FrozenModel, KeysValues, KVCache

TreeLayout = Literal["packed", "expanded"]
SIMILAR = 0.6  # branches shorter than this share of the longest run in another micro-batch
PREFIX_NODE = -2  # the node of a prefix's keys, which every branch may see


@dataclass(frozen=True)
class Branch:
    """A run of token ids after a node of the trunk.

    Attributes:
        ids: token ids.
        parent: index of the trunk's node that they follow; `ROOT`: the prefixes alone.
        start, stop: hidden states are returned for `ids[start:stop]` only.
    """

    ids: Sequence[int]
    parent: int = ROOT
    start: int = 0
    stop: int | None = None

    @property
    def rows(self) -> slice:
        """The indices in `ids` whose hidden states are returned."""
        return slice(self.start, self.stop)

    @property
    def n_rows(self) -> int:
        """How many hidden states are returned."""
        return len(range(*self.rows.indices(len(self.ids))))


@dataclass(frozen=True)
class TreeBatch:
    """A trunk and its branches."""

    trunk: Tree
    branches: Sequence[Branch]

    @property
    def tokens(self) -> int:
        """Tokens to run, those of the trunk counted once."""
        return self.trunk.length + sum(len(branch.ids) for branch in self.branches)


def hidden_states(
    model: FrozenModel, batch: Sequence[TreeBatch], layout: TreeLayout = "packed"
) -> Tensor:
    """Last hidden states `[sum of n_rows, hidden]` of all branches, tree by tree, in order."""
    sizes = [branch.n_rows for tree in batch for branch in tree.branches]
    states: dict[int, Tensor] = {}
    for hidden, indices in _run_branches(model, batch, layout, None, None):
        states |= zip(indices, hidden.split([sizes[i] for i in indices]), strict=True)
    return torch.cat([states[i] for i in range(len(sizes))])


def backward(
    model: FrozenModel,
    batch: Sequence[TreeBatch],
    loss: Callable[[Tensor, Sequence[int]], Tensor],
    layout: TreeLayout = "packed",
    micro_batch: int | None = None,
) -> float:
    """Runs a batch and adds its gradient to the tensors in the trunks that require one.

    Args:
        loss: from the hidden states `[sum of n_rows, hidden]` of some branches, and their indices
            (counted through the whole batch), to their share of the loss.
        micro_batch: most branches at once (layout `expanded`; `packed` runs all at once).

    Returns:
        The summed loss.
    """
    total, trunk = 0.0, _DetachedTrunk()
    for hidden, indices in _run_branches(model, batch, layout, micro_batch, trunk):
        share = loss(hidden, indices)
        share.backward()
        total += float(share.detach())
    trunk.backward()
    return total


class _DetachedTrunk:
    """A trunk's keys and values, detached to collect the gradients of all micro-batches."""

    def __init__(self) -> None:
        self._outputs: list[Tensor] = []
        self._detached: list[Tensor] = []

    def detach(self, past: KVCache) -> KVCache:
        pairs: KeysValues = []
        for pair in past.keys_values:
            key, value = (t.detach().requires_grad_(t.requires_grad) for t in pair)
            self._outputs += pair
            self._detached += (key, value)
            pairs.append((key, value))
        return KVCache(pairs, past.positions, past.visible)

    def backward(self) -> None:
        """Sends the summed gradients through the trunk."""
        collected = [
            (output, detached.grad)
            for output, detached in zip(self._outputs, self._detached, strict=True)
            if detached.grad is not None
        ]
        if collected:
            outputs, gradients = zip(*collected, strict=True)
            torch.autograd.backward(outputs, gradients)


def _run_branches(
    model: FrozenModel,
    batch: Sequence[TreeBatch],
    layout: TreeLayout,
    micro_batch: int | None,
    detached: _DetachedTrunk | None,
) -> Iterator[tuple[Tensor, Sequence[int]]]:
    """Yields hidden states of some branches at a time, and the branches' indices."""
    flat = [(row, branch) for row, tree in enumerate(batch) for branch in tree.branches]
    if layout == "expanded":
        yield from _run_expanded(model, batch, flat, micro_batch or len(flat), detached)
        return
    spliced = splice(model, [_packed_tree(tree) for tree in batch])
    places = [
        (row, len(tree.trunk.nodes) + i)
        for row, tree in enumerate(batch)
        for i in range(len(tree.branches))
    ]
    hidden = _run(model, spliced)
    yield _gather(hidden, spliced, places, [branch for _, branch in flat]), range(len(flat))


def _run_expanded(
    model: FrozenModel,
    batch: Sequence[TreeBatch],
    flat: list[tuple[int, Branch]],
    micro_batch: int,
    detached: _DetachedTrunk | None,
) -> Iterator[tuple[Tensor, Sequence[int]]]:
    trunks = [tree.trunk for tree in batch]
    past, nodes = _run_trunks(model, trunks)
    buckets = _by_length([len(branch.ids) for _, branch in flat], micro_batch)
    if past is not None and detached is not None and len(buckets) > 1:
        past = detached.detach(past)
    for bucket in buckets:
        part = [flat[i] for i in bucket]
        expanded = None
        if past is not None:
            index = torch.tensor([row for row, _ in part], device=model.device)
            seen = torch.stack([_visible_keys(trunks[row], b, nodes[row]) for row, b in part])
            expanded = past.rows(index, past.visible[index] & seen.to(model.device))
        spliced = splice(model, [_branch_tree(trunks[row], b) for row, b in part], expanded)
        places = [(i, 0) for i in range(len(part))]
        hidden = _run(model, spliced)
        yield _gather(hidden, spliced, places, [branch for _, branch in part]), bucket


def _by_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices in buckets of at most `most`, longest first, similar lengths together."""
    buckets: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[buckets[-1][0]] if buckets else 0
        if not buckets or len(buckets[-1]) >= most or lengths[i] < SIMILAR * longest:
            buckets.append([])
        buckets[-1].append(i)
    return buckets


def _run_trunks(model: FrozenModel, trunks: Sequence[Tree]) -> tuple[KVCache | None, Tensor]:
    """The trunks' keys and values, `P` long, and `[B, P]` the node of each key."""
    if not any(len(node) for tree in trunks for node in tree.nodes):
        past = stack_prefixes(model, trunks)
        length = 0 if past is None else len(past)
        return past, torch.full((len(trunks), length), PREFIX_NODE)
    spliced = splice(model, trunks)
    _, keys_values = model.hidden(
        spliced.embeds, spliced.positions, spliced.visible, spliced.past, keep=True
    )
    past = spliced.after(keys_values or [])
    prefixes = torch.full((len(trunks), len(past) - spliced.nodes.shape[1]), PREFIX_NODE)
    return past, torch.cat([prefixes, spliced.nodes.cpu()], dim=1)


def _visible_keys(trunk: Tree, branch: Branch, nodes: Tensor) -> Tensor:
    """`[P]` bool: the trunk's keys that a branch may see, given the node of each key."""
    seen = nodes == PREFIX_NODE
    for node in trunk.path(branch.parent):
        seen |= nodes == node
    return seen


def _packed_tree(tree: TreeBatch) -> Tree:
    branches = [Node(branch.ids, branch.parent) for branch in tree.branches]
    return Tree(tree.trunk.nodes + branches, tree.trunk.prefixes)


def _branch_tree(trunk: Tree, branch: Branch) -> Tree:
    """A branch by itself, at the positions after its parent."""
    start = trunk.start
    if branch.parent != ROOT:
        start = trunk.starts()[branch.parent] + len(trunk.nodes[branch.parent])
    return Tree([Node(branch.ids)], at=start)


def _run(model: FrozenModel, spliced: Spliced) -> Tensor:
    return model.hidden(spliced.embeds, spliced.positions, spliced.visible, spliced.past)[0]


def _gather(
    hidden: Tensor, spliced: Spliced, places: list[tuple[int, int]], branches: list[Branch]
) -> Tensor:
    """The rows `[sum of n_rows, hidden]` that branches at `(row, node)` return."""
    width = hidden.shape[1]
    index: list[int] = []
    for (row, node), branch in zip(places, branches, strict=True):
        start, stop = spliced.spans[row][node]
        index.extend(row * width + i for i in range(start, stop)[branch.rows])
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat.index_select(0, torch.tensor(index, device=flat.device))
