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

expanded: trunks run once, `[trees, T]`; then each branch has a row behind the keys and values of
its trunk, `[branches, max n_i]`. Branches run in micro-batches of similar length, so that little
is padding. The trunk's keys and values are then detached leaves of autograd: each micro-batch adds
its gradient there, and the sum goes through the trunk's graph once, which is exact by the chain
rule.

     trunk ──▶ K, V ┊ detached K, V ──▶ branches 1..m ──▶ loss.backward()  ─┐ gradients add up at
                    ┊              └──▶ branches m+1.. ──▶ loss.backward() ─┤ the detached K and V
     trunk.backward(Σ gradient at K, V) ◀───────────────────────────────────┘

A trunk that was read already (late prefixes: the bare model's filler) is not run in either layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from softlore.context.splice import Spliced, splice
from softlore.context.tree import ROOT, Node, Tree
from softlore.model import FrozenModel, KeysValues

TreeLayout = Literal["packed", "expanded"]
SIMILAR = 0.6  # branches shorter than this share of the longest run in another micro-batch


@dataclass(frozen=True)
class Branch:
    """A run of token ids after a node of the trunk.

    Attributes:
        ids: token ids.
        parent: index of the trunk's node that they follow; `ROOT`: the prefixes alone.
        start, stop: hidden states are returned for `ids[start:stop]` only.
        sees_from: the first token that sees the prefixes.
    """

    ids: Sequence[int]
    parent: int = ROOT
    start: int = 0
    stop: int | None = None
    sees_from: int = 0

    def nodes(self, parent: int, number: int) -> list[Node]:
        """Its nodes of a tree, from `number` on: of two, the first sees no prefix."""
        if not self.sees_from:
            return [Node(self.ids, parent)]
        before, after = self.ids[: self.sees_from], self.ids[self.sees_from :]
        return [Node(before, parent, sees=()), Node(after, number)]

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
        return self.trunk.n_rows + sum(len(branch.ids) for branch in self.branches)


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
        micro_batch: branches of a forward pass at most (layout `expanded`; `packed` runs all).

    Returns:
        The summed loss.
    """
    total, trunk = 0.0, _DetachedTrunks()
    for hidden, indices in _run_branches(model, batch, layout, micro_batch, trunk):
        share = loss(hidden, indices)
        share.backward()
        total += float(share.detach())
    trunk.backward()
    return total


class _DetachedTrunks:
    """Keys and values of trunks, detached to collect the gradients of all micro-batches."""

    def __init__(self) -> None:
        self._outputs: list[Tensor] = []
        self._detached: list[Tensor] = []

    def detach(self, keys_values: KeysValues) -> KeysValues:
        pairs: KeysValues = []
        for pair in keys_values:
            key, value = (t.detach().requires_grad_(t.requires_grad) for t in pair)
            self._outputs += pair
            self._detached += (key, value)
            pairs.append((key, value))
        return pairs

    def backward(self) -> None:
        """Sends the summed gradients through the trunks."""
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
    detached: _DetachedTrunks | None,
) -> Iterator[tuple[Tensor, Sequence[int]]]:
    """Yields the hidden states of a part of the branches at a time, with their indices."""
    flat = [(row, branch) for row, tree in enumerate(batch) for branch in tree.branches]
    if layout == "packed":
        trees = [_with_branches(tree.trunk, tree.branches) for tree in batch]
        places = [(row, span) for row, (_, spans) in enumerate(trees) for span in spans]
        spliced = splice(model, [tree for tree, _ in trees])
        yield _run(model, spliced, places, [branch for _, branch in flat]), range(len(flat))
        return
    buckets = _by_length([len(branch.ids) for _, branch in flat], micro_batch or len(flat))
    whole = [tree.trunk for tree in batch]
    trunks = read_trunks(model, whole, detached if len(buckets) > 1 else None)
    for bucket in buckets:
        part = [flat[i] for i in bucket]
        trees = [_with_branches(*_path_to(trunks[row], branch)) for row, branch in part]
        places = [(row, span) for row, (_, spans) in enumerate(trees) for span in spans]
        spliced = splice(model, [tree for tree, _ in trees])
        yield _run(model, spliced, places, [branch for _, branch in part]), bucket


def _by_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices in buckets of at most `most`, longest first, similar lengths together."""
    buckets: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[buckets[-1][0]] if buckets else 0
        if not buckets or len(buckets[-1]) >= most or lengths[i] < SIMILAR * longest:
            buckets.append([])
        buckets[-1].append(i)
    return buckets


def read_trunks(
    model: FrozenModel, trunks: Sequence[Tree], detached: _DetachedTrunks | None = None
) -> list[Tree]:
    """Runs the tokens of trunks; returns the trunks with keys and values in their place.

    Args:
        detached: cuts the graph at these keys and values, and collects their gradients.
    """
    if not any(tree.n_rows for tree in trunks):
        return list(trunks)
    spliced = splice(model, trunks)
    _, keys_values = spliced.run(model, keep=True)
    kept = keys_values or []
    after = spliced.after(detached.detach(kept) if detached is not None else kept)
    n_past = after.positions.shape[1] - spliced.positions.shape[1]
    read = []
    for row, tree in enumerate(trunks):
        of_row = after.row(row)
        nodes = [
            replace(node, content=of_row.cut(n_past + stop, n_past + start))
            if node.n_rows
            else node
            for node, (start, stop) in zip(tree.nodes, spliced.spans[row], strict=True)
        ]
        read.append(replace(tree, nodes=nodes))
    return read


def _path_to(trunk: Tree, branch: Branch) -> tuple[Tree, list[Branch]]:
    """What a branch sees of its trunk, and the branch on its end."""
    nodes = [
        replace(trunk.nodes[number], parent=i - 1)
        for i, number in enumerate(trunk.path(branch.parent))
    ]
    tree = replace(trunk, nodes=nodes, at=trunk.start)
    return tree, [replace(branch, parent=tree.end)]


def _with_branches(trunk: Tree, branches: Sequence[Branch]) -> tuple[Tree, list[tuple[int, int]]]:
    """A trunk and its branches as one tree, and the first and the last node of each branch."""
    nodes, spans = list(trunk.nodes), []
    for branch in branches:
        first = len(nodes)
        nodes += branch.nodes(branch.parent, first)
        spans.append((first, len(nodes) - 1))
    return replace(trunk, nodes=nodes), spans


def _run(
    model: FrozenModel,
    spliced: Spliced,
    places: Sequence[tuple[int, tuple[int, int]]],
    branches: Sequence[Branch],
) -> Tensor:
    """Runs a batch; returns the rows `[sum of n_rows, hidden]` of its branches.

    `places`: of each branch, its tree and its first and last node.
    """
    hidden, _ = spliced.run(model)
    width = hidden.shape[1]
    index: list[int] = []
    for (row, (first, last)), branch in zip(places, branches, strict=True):
        start, stop = spliced.spans[row][first][0], spliced.spans[row][last][1]
        index.extend(row * width + i for i in range(start, stop)[branch.rows])
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat.index_select(0, torch.tensor(index, device=flat.device))
