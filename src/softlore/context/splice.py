"""Splices soft prompts and text into the tensors that a model's forward takes.

Training, evaluation, generation and serving all splice here. The input is a *tree*: prefixes, and
nodes of token ids or embedding rows, each after a parent node. A context is a tree of one branch;
a tree batch hangs many branches on one trunk. Positions and masks follow from the tree:

- Positions of text start after the longest prefix, wherever a context's prefixes begin and end, so
  that adding a shorter one moves no text. Each prefix's own keys stand at 0, 1, …; two prefixes
  share positions and do not see each other. With prefixes of 3 and 2 tokens:

      keys       [p p p][q q][text .......]
      positions   0 1 2  0 1  3 4 5 6 7 ...

- A token of text sees all prefixes, the nodes from its parent up to the root, and its own node up
  to itself. Siblings do not see each other and may share positions.
- Rows of a batch are padded at the end. Padding sees itself alone: a softmax over no key is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softlore.errors import ContextOverflowError
from softlore.model import FrozenModel, KeysValues, KVCache, LanguageModel

ROOT = -1  # the parent of a node that sees the prefixes and nothing else


@dataclass
class Node:
    """A run of token ids, or of embedding rows `[n, width]`, after its parent's last token."""

    content: Sequence[int] | Tensor
    parent: int = ROOT

    def __len__(self) -> int:
        return len(self.content)


@dataclass
class Tree:
    """Prefixes, and nodes of text after them.

    Attributes:
        nodes: parents before their children.
        prefixes: keys and values `[layers, 2, kv_heads, n, head_dim]` each, seen by all nodes.
        at: first position of the text, if it is not the one after the longest prefix: set for
            a branch whose trunk has been run already.
    """

    nodes: list[Node] = field(default_factory=list)
    prefixes: list[Tensor] = field(default_factory=list)
    at: int | None = None

    @property
    def start(self) -> int:
        """First position of the text."""
        if self.at is not None:
            return self.at
        return max((int(p.shape[3]) for p in self.prefixes), default=0)

    @property
    def length(self) -> int:
        """Tokens of all nodes, prefixes not counted."""
        return sum(map(len, self.nodes))

    @property
    def end(self) -> int:
        """The parent of a node that comes after everything: the last node, or `ROOT`."""
        return len(self.nodes) - 1 if self.nodes else ROOT

    def then(self, content: Sequence[int] | Tensor) -> Tree:
        """A copy with one more node after everything."""
        return Tree([*self.nodes, Node(content, self.end)], self.prefixes, self.at)

    def part(self, start: int, stop: int | None = None) -> Tree:
        """Tokens `start` to `stop` of a tree of one branch, at their positions in this tree."""
        stop = self.length if stop is None else min(stop, self.length)
        nodes: list[Node] = []
        at = 0
        for node in self.nodes:
            content = node.content[max(0, start - at) : max(0, stop - at)]
            if len(content):
                nodes.append(Node(content, len(nodes) - 1))
            at += len(node)
        return Tree(nodes, self.prefixes, self.start + start)

    def starts(self) -> list[int]:
        """First position of each node."""
        starts: list[int] = []
        for node in self.nodes:
            if node.parent == ROOT:
                starts.append(self.start)
            else:
                starts.append(starts[node.parent] + len(self.nodes[node.parent]))
        return starts

    def ancestors(self) -> Tensor:
        """`[nodes, nodes]` bool: whether tokens of node i may see node j; True for j = i."""
        seen = torch.eye(len(self.nodes), dtype=torch.bool)
        for i, node in enumerate(self.nodes):
            if node.parent != ROOT:
                seen[i] |= seen[node.parent]
        return seen

    def path(self, node: int) -> list[int]:
        """The nodes from the root down to `node`; none for `ROOT`."""
        path: list[int] = []
        while node != ROOT:
            path.insert(0, node)
            node = self.nodes[node].parent
        return path


@dataclass
class Spliced:
    """A batch of trees as `FrozenModel.hidden` takes it.

    Attributes:
        embeds: `[B, T, width]` embedding rows, in the model's dtype.
        positions: `[B, T]`.
        visible: `[B, T, P + T]` bool: which keys each row sees, those of `past` first.
        past: keys and values before the rows, `P` long, or None.
        nodes: `[B, T]` the node each row belongs to; -1 is padding.
        spans: for each tree and node, the range `(start, stop)` of its rows in `T`.
    """

    embeds: Tensor
    positions: Tensor
    visible: Tensor
    past: KVCache | None
    nodes: Tensor
    spans: list[list[tuple[int, int]]]

    def after(self, keys_values: KeysValues) -> KVCache:
        """The cache after these rows. `keys_values`: of `past` and of the rows, together."""
        visible = self.nodes >= 0
        if self.past is None:
            return KVCache(keys_values, self.positions, visible)
        return self.past.extend(keys_values, self.positions, visible)


def splice(model: FrozenModel, trees: Sequence[Tree], past: KVCache | None = None) -> Spliced:
    """Lays trees out as one padded batch, a tree a row.

    Args:
        past: keys and values of trunks that were already run, one row a tree, in place of the
            trees' prefixes.

    Raises:
        ContextOverflowError: a branch reaches past the model's context length.
    """
    starts = [tree.starts() for tree in trees]
    check_length(model, _longest_reach(trees, starts))  # masks grow with the square: check first
    width = max((tree.length for tree in trees), default=0)
    nodes = torch.full((len(trees), width), -1)
    positions = torch.zeros(len(trees), width, dtype=torch.long)
    visible = torch.zeros(len(trees), width, width, dtype=torch.bool)
    spans = []
    for row, tree in enumerate(trees):
        spans.append(_lay_out(tree, starts[row], nodes[row], positions[row], visible[row]))
    visible |= torch.eye(width, dtype=torch.bool)
    device = model.device
    visible = visible.to(device)
    if past is None:
        past = stack_prefixes(model, trees)
    if past is not None:
        visible = torch.cat([past.visible[:, None].expand(-1, width, -1), visible], dim=2)
    embeds = _embed(model, trees, width)
    return Spliced(embeds, positions.to(device), visible, past, nodes.to(device), spans)


def _lay_out(
    tree: Tree, starts: Sequence[int], nodes: Tensor, positions: Tensor, visible: Tensor
) -> list[tuple[int, int]]:
    """Fills one row's `nodes` and `positions` `[T]` and `visible` `[T, T]`; returns its spans."""
    spans, length = [], 0
    for i, (node, start) in enumerate(zip(tree.nodes, starts, strict=True)):
        stop = length + len(node)
        nodes[length:stop] = i
        positions[length:stop] = torch.arange(start, start + len(node))
        spans.append((length, stop))
        length = stop
    if length:
        of_node, at = nodes[:length], positions[:length]
        ancestors = tree.ancestors()[of_node][:, of_node]
        visible[:length, :length] = ancestors & (at[:, None] >= at[None, :])
    return spans


def _embed(model: FrozenModel, trees: Sequence[Tree], width: int) -> Tensor:
    """`[B, T, width]`: one look-up for all ids; soft rows are cast to the model's dtype."""
    ids = [
        i
        for tree in trees
        for node in tree.nodes
        if not isinstance(node.content, Tensor)
        for i in node.content
    ]
    looked_up = model.embed_ids(ids)
    batch, at = [], 0
    for tree in trees:
        parts = []
        for node in tree.nodes:
            if isinstance(node.content, Tensor):
                parts.append(node.content.to(looked_up))
            else:
                parts.append(looked_up[at : at + len(node)])
                at += len(node)
        parts.append(looked_up.new_zeros(width - tree.length, model.width))
        batch.append(torch.cat(parts))
    return torch.stack(batch)


def stack_prefixes(model: FrozenModel, trees: Sequence[Tree]) -> KVCache | None:
    """A cache with each tree's prefixes side by side, padded to the longest; None without any."""
    totals = [sum(int(p.shape[3]) for p in tree.prefixes) for tree in trees]
    longest = max(totals, default=0)
    if not longest:
        return None
    device = model.device
    positions = torch.zeros(len(trees), longest, dtype=torch.long, device=device)
    visible = torch.zeros(len(trees), longest, dtype=torch.bool, device=device)
    rows = []
    for row, (tree, total) in enumerate(zip(trees, totals, strict=True)):
        parts = [p.to(device=device, dtype=model.dtype) for p in tree.prefixes]
        if parts:
            positions[row, :total] = torch.cat(
                [torch.arange(int(p.shape[3]), device=device) for p in parts]
            )
        visible[row, :total] = True
        shape = (model.layers, 2, model.kv_heads, longest - total, model.head_dim)
        padding = torch.zeros(shape, dtype=model.dtype, device=device)
        rows.append(torch.cat([*parts, padding], dim=3))
    stacked = torch.stack(rows, dim=2)  # [layers, 2, B, kv_heads, P, head_dim]
    return KVCache([(layer[0], layer[1]) for layer in stacked], positions, visible)


def _longest_reach(trees: Sequence[Tree], starts: Sequence[Sequence[int]]) -> int:
    """The position after the last token of the longest branch."""
    return max(
        (
            start + len(node)
            for tree, tree_starts in zip(trees, starts, strict=True)
            for node, start in zip(tree.nodes, tree_starts, strict=True)
            if len(node)
        ),
        default=0,
    )


def check_length(model: LanguageModel, length: int) -> None:
    """Raises ContextOverflowError if prefixes and text are longer than the model's context."""
    limit = model.context_length
    if limit is not None and length > limit:
        raise ContextOverflowError(
            f"{length} tokens do not fit {model.name!r}, whose context is {limit}; "
            f"expected at most {limit}; shorten the text, or use shorter or fewer soft prompts"
        )
