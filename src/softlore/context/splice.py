"""The one splice: soft prompts and text become rows, positions, masks and keys and values.

Training, evaluation, generation and serving all come through here. What is spliced is a *tree*:
prefixes at its head, and nodes of text or embedding rows, each hanging on a parent. A context is
a tree with one branch; a tree batch shares a trunk among many. Which keys a token may see follows
from the tree alone: its ancestors, and itself up to here.
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
    """Prefixes `[layers, 2, kv_heads, n, head_dim]` side by side, then nodes, parents first.

    `at` is the text's first position where it is not simply after the longest prefix: for a
    branch by itself whose trunk was already run.
    """

    nodes: list[Node] = field(default_factory=list)
    prefixes: list[Tensor] = field(default_factory=list)
    at: int | None = None

    @property
    def start(self) -> int:
        if self.at is not None:
            return self.at
        return max((int(p.shape[3]) for p in self.prefixes), default=0)

    @property
    def length(self) -> int:
        """Tokens of all nodes, prefixes not counted."""
        return sum(map(len, self.nodes))

    @property
    def end(self) -> int:
        """The node that what comes after everything hangs on."""
        return len(self.nodes) - 1 if self.nodes else ROOT

    def then(self, content: Sequence[int] | Tensor) -> Tree:
        """This tree with one node more after everything."""
        return Tree([*self.nodes, Node(content, self.end)], self.prefixes, self.at)

    def part(self, start: int, stop: int | None = None) -> Tree:
        """Tokens `start` to `stop` of a tree of one branch, standing where they stand here."""
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
            known = node.parent != ROOT
            starts.append(
                starts[node.parent] + len(self.nodes[node.parent]) if known else self.start
            )
        return starts

    def ancestors(self) -> Tensor:
        """`[nodes, nodes]` bool: whether a token of node i may see node j (itself too)."""
        seen = torch.eye(len(self.nodes), dtype=torch.bool)
        for i, node in enumerate(self.nodes):
            if node.parent != ROOT:
                seen[i] |= seen[node.parent]
        return seen

    def path(self, node: int) -> list[int]:
        """The nodes from the root down to `node`."""
        path = [node]
        while self.nodes[path[0]].parent != ROOT:
            path.insert(0, self.nodes[path[0]].parent)
        return path


@dataclass
class Spliced:
    """What `FrozenModel.hidden` takes, for a batch of trees.

    Attributes:
        embeds: `[B, T, width]`, in the model's dtype.
        positions: `[B, T]`.
        visible: `[B, T, P + T]` bool.
        past: keys and values before the rows, `P` long, or None.
        nodes: `[B, T]` the node each row belongs to; -1 is padding.
        spans: per tree and node, the slots `(start, stop)` that it fills.
    """

    embeds: Tensor
    positions: Tensor
    visible: Tensor
    past: KVCache | None
    nodes: Tensor
    spans: list[list[tuple[int, int]]]

    def after(self, kept: KeysValues) -> KVCache:
        """The past of what comes next, once the rows were run; `kept` holds past and rows."""
        own = self.nodes >= 0
        if self.past is None:
            return KVCache(kept, self.positions, own)
        return self.past.extend(kept, self.positions, own)


def splice(model: FrozenModel, trees: Sequence[Tree], past: KVCache | None = None) -> Spliced:
    """Lays trees out as one padded batch, a tree a row.

    Args:
        past: trunks that were already run, one row a tree, standing in for prefixes; the trees'
            own `prefixes` then only say where their text starts.

    Raises:
        ContextOverflowError: when a branch reaches past the model's context length.
    """
    starts = [tree.starts() for tree in trees]
    check_length(
        model, _reach(trees, starts)
    )  # before anything is laid out: masks grow with the square
    width = max((tree.length for tree in trees), default=0)
    nodes = torch.full((len(trees), width), -1)
    positions = torch.zeros(len(trees), width, dtype=torch.long)
    seen = torch.zeros(len(trees), width, width, dtype=torch.bool)
    spans = []
    for row, tree in enumerate(trees):
        slots, at = [], 0
        for i, (node, start) in enumerate(zip(tree.nodes, starts[row], strict=True)):
            stop = at + len(node)
            nodes[row, at:stop] = i
            positions[row, at:stop] = torch.arange(start, start + len(node))
            slots.append((at, stop))
            at = stop
        spans.append(slots)
        if at:
            mine = nodes[row, :at]
            order = positions[row, :at, None] >= positions[row, None, :at]
            seen[row, :at, :at] = tree.ancestors()[mine][:, mine] & order
    seen |= torch.eye(width, dtype=torch.bool)  # padding sees itself: no empty softmax
    device = model.device
    if past is None:
        past = stack_prefixes(model, trees)
    visible = seen.to(device)
    if past is not None:
        visible = torch.cat([past.visible[:, None].expand(-1, width, -1), visible], dim=2)
    embeds = _rows(model, trees, width)
    return Spliced(embeds, positions.to(device), visible, past, nodes.to(device), spans)


def _rows(model: FrozenModel, trees: Sequence[Tree], width: int) -> Tensor:
    """`[B, T, width]`: one look-up for all ids, float32 soft rows cast here."""
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
        length = tree.length
        parts.append(looked_up.new_zeros(width - length, model.width))
        batch.append(torch.cat(parts))
    return torch.stack(batch)


def stack_prefixes(model: FrozenModel, trees: Sequence[Tree]) -> KVCache | None:
    """The prefixes of each tree side by side, padded to the longest: a Past of `B` rows."""
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
        for_each = [torch.arange(int(p.shape[3]), device=device) for p in parts]
        if parts:
            positions[row, :total] = torch.cat(for_each)
        visible[row, :total] = True
        shape = (model.layers, 2, model.kv_heads, longest - total, model.head_dim)
        padding = torch.zeros(shape, dtype=model.dtype, device=device)
        rows.append(torch.cat([*parts, padding], dim=3))
    stacked = torch.stack(rows, dim=2)  # [layers, 2, B, kv_heads, P, head_dim]
    return KVCache([(layer[0], layer[1]) for layer in stacked], positions, visible)


def _reach(trees: Sequence[Tree], starts: Sequence[Sequence[int]]) -> int:
    """The position after the last token of the longest branch."""
    return max(
        (
            start + len(node)
            for tree, of_tree in zip(trees, starts, strict=True)
            for node, start in zip(tree.nodes, of_tree, strict=True)
            if len(node)
        ),
        default=0,
    )


def check_length(model: LanguageModel, length: int) -> None:
    """Refuses what reaches past the model's context, prefixes and text together.

    Raises:
        ContextOverflowError: then.
    """
    limit = model.context_length
    if limit is not None and length > limit:
        raise ContextOverflowError(
            f"{length} tokens do not fit {model.name!r}, whose context is {limit}; "
            f"expected at most {limit}; shorten the text, or use shorter or fewer soft prompts"
        )
