"""Splices soft prompts and text into the tensors that a model's forward takes.

Training, evaluation, generation and serving all splice here. The input is a *tree*: prefixes, and
nodes of token ids, embedding rows, or text that was read already, each after a parent node. A
context is a tree of one branch; a tree batch hangs many branches on one trunk. Positions and masks
follow from the tree:

- Positions of text start after the longest prefix, wherever a context's prefixes begin and end, so
  that adding a shorter one moves no text. Each prefix's own keys stand at 0, 1, …; two prefixes
  share positions and do not see each other. With prefixes of 3 and 2 tokens:

      keys       [p p p][q q][text .......]
      positions   0 1 2  0 1  3 4 5 6 7 ...

- A token of text sees the nodes from its parent up to the root, its own node up to itself, and the
  prefixes that its node sees: all of them (*classic*), or those that stand before it (*late*).
  Siblings do not see each other and may share positions. With p seen by all, q from the third
  token on:

                  p p p q q a b c d
          a       1 1 1 . . 1 . . .      1 visible
          b       1 1 1 . . 1 1 . .
          c       1 1 1 1 1 1 1 1 .      . hidden
          d       1 1 1 1 1 1 1 1 1

- Rows of a batch are padded at the end. Padding sees itself alone: a softmax over no key is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softlore.context.tree import Tree
from softlore.errors import ContextOverflowError
from softlore.model import FrozenModel, KeysValues, KVCache, LanguageModel
from softlore.model.steering import stack_steering


@dataclass
class Spliced:
    """A batch of trees as `FrozenModel.hidden` takes it.

    Attributes:
        embeds: `[B, T, width]` embedding rows, in the model's dtype.
        positions: `[B, T]`.
        visible: `[B, T, P + T]` bool: which keys each row sees, those of `past` first.
        past: keys and values of prefixes and of text that was read already, `P` long, or None.
        nodes: `[B, P + T]` the node that each key is of; -1: of a prefix, or padding.
        spans: for each tree and node, the range `(start, stop)` of its rows in `T`.
        steering: the trees' control vectors `[B, layers, width]`; None if none has any.
    """

    embeds: Tensor
    positions: Tensor
    visible: Tensor
    past: KVCache | None
    nodes: Tensor
    spans: list[list[tuple[int, int]]]
    steering: Tensor | None = None

    def run(self, model: FrozenModel, keep: bool = False) -> tuple[Tensor, KeysValues | None]:
        """`FrozenModel.hidden` of the batch."""
        return model.hidden(
            self.embeds, self.positions, self.visible, self.past, keep, self.steering
        )

    def after(self, keys_values: KeysValues) -> KVCache:
        """The cache of the text after these rows, in which prefixes are invisible.

        `keys_values`: of `past` and of the rows, together.
        """
        positions = self.positions
        if self.past is not None:
            positions = torch.cat([self.past.positions, positions], dim=1)
        return KVCache(keys_values, positions, self.nodes >= 0)


def splice(model: FrozenModel, trees: Sequence[Tree]) -> Spliced:
    """Lays trees out as one padded batch, a tree a row.

    Raises:
        ContextOverflowError: a branch reaches past the model's context length.
    """
    starts = [tree.starts() for tree in trees]
    check_length(model, _longest_reach(trees, starts))  # masks grow with the square: check first
    width = max((tree.n_rows for tree in trees), default=0)
    past, kept = stack_past(model, trees)
    n_past = kept.shape[1]
    nodes = torch.full((len(trees), width), -1)
    positions = torch.zeros(len(trees), width, dtype=torch.long)
    visible = torch.zeros(len(trees), width, n_past + width, dtype=torch.bool)
    text = torch.full((len(trees), n_past), -1)
    spans = []
    for row, tree in enumerate(trees):
        spans.append(_lay_out(tree, starts[row], nodes[row], positions[row]))
        n, keys = tree.n_rows, kept[row]
        text[row] = torch.where(keys < len(tree.nodes), keys, -1)
        own, at = nodes[row, :n], positions[row, :n]
        seen = tree.sight()[own][:, torch.cat([keys, own])]
        seen[:, n_past:] &= at[:, None] >= at[None, :]
        visible[row, :n, : n_past + n] = seen
    visible[:, :, n_past:] |= torch.eye(width, dtype=torch.bool)
    nodes = torch.cat([text, nodes], dim=1)
    device = model.device
    embeds = _embed(model, trees, width)
    steering = stack_steering([tree.steering for tree in trees], device)
    return Spliced(
        embeds, positions.to(device), visible.to(device), past, nodes.to(device), spans, steering
    )


def _lay_out(
    tree: Tree, starts: Sequence[int], nodes: Tensor, positions: Tensor
) -> list[tuple[int, int]]:
    """Fills one row's `nodes` and `positions` `[T]`; returns the nodes' spans."""
    spans, length = [], 0
    for i, (node, start) in enumerate(zip(tree.nodes, starts, strict=True)):
        stop = length + node.n_rows
        nodes[length:stop] = i
        positions[length:stop] = torch.arange(start, start + node.n_rows)
        spans.append((length, stop))
        length = stop
    return spans


def _embed(model: FrozenModel, trees: Sequence[Tree], width: int) -> Tensor:
    """`[B, T, width]`: one look-up for all ids; soft rows are cast to the model's dtype."""
    contents = [
        [node.content for node in tree.nodes if not isinstance(node.content, KVCache)]
        for tree in trees
    ]
    ids = [i for row in contents for c in row if not isinstance(c, Tensor) for i in c]
    looked_up = model.embed_ids(ids)
    batch, at = [], 0
    for row, tree in zip(contents, trees, strict=True):
        parts = []
        for content in row:
            if isinstance(content, Tensor):
                parts.append(content.to(looked_up))
            else:
                parts.append(looked_up[at : at + len(content)])
                at += len(content)
        parts.append(looked_up.new_zeros(width - tree.n_rows, model.width))
        batch.append(torch.cat(parts))
    return torch.stack(batch)


@dataclass
class _Kept:
    """Keys and values that are not run: of a prefix, or of text that was read already.

    Attributes:
        layers: a (key, value) each, `[kv_heads, n, head_dim]`.
        positions: `[n]`.
        number: its column in `Tree.sight`.
    """

    layers: Sequence[tuple[Tensor, Tensor]]
    positions: Tensor
    number: int

    @property
    def trained(self) -> bool:
        return any(tensor.requires_grad for layer in self.layers for tensor in layer)


def stack_past(model: FrozenModel, trees: Sequence[Tree]) -> tuple[KVCache | None, Tensor]:
    """What trees need not run, side by side and padded to the longest.

    In each row, what needs no gradient comes first, and then prefixes before text.

    Returns:
        The cache, `P` long, or None if it is empty; and `[B, P]`, on the processor, the column in
        `Tree.sight` of each key; -1 is padding.
    """
    cast: dict[int, Sequence[tuple[Tensor, Tensor]]] = {}  # a prefix of many trees is cast once
    rows = [_kept(model, tree, cast) for tree in trees]
    totals = [sum(len(part.positions) for part in parts) for parts in rows]
    longest = max(totals, default=0)
    numbers = torch.full((len(trees), longest), -1)
    if not longest:
        return None, numbers
    positions = torch.zeros(len(trees), longest, dtype=torch.long, device=model.device)
    for row, parts in enumerate(rows):
        if parts:
            positions[row, : totals[row]] = torch.cat([part.positions for part in parts])
            each = [part.number for part in parts for _ in range(len(part.positions))]
            numbers[row, : totals[row]] = torch.tensor(each)
    like = next(part for parts in rows for part in parts).layers
    pairs = [
        tuple(
            _side_by_side([[p.layers[i][side] for p in parts] for parts in rows], longest, tensor)
            for side, tensor in enumerate(layer)
        )
        for i, layer in enumerate(like)
    ]
    visible = (numbers >= 0).to(model.device)
    constant = min(sum(len(p.positions) for p in parts if not p.trained) for parts in rows)
    return KVCache([(k, v) for k, v in pairs], positions, visible, constant), numbers


def _kept(
    model: FrozenModel, tree: Tree, cast: dict[int, Sequence[tuple[Tensor, Tensor]]]
) -> list[_Kept]:
    """Keys and values that exist: of prefixes that some node sees, and of nodes read before."""
    all_seen = not tree.nodes or any(node.sees is None for node in tree.nodes)
    seen = {i for node in tree.nodes for i in node.sees or ()}
    kept = []
    for i, prefix in enumerate(tree.prefixes):
        if not all_seen and i not in seen:
            continue
        if id(prefix) not in cast:
            own = prefix.to(device=model.device, dtype=model.dtype)
            cast[id(prefix)] = [(layer[0], layer[1]) for layer in own]
        positions = torch.arange(int(prefix.shape[3]), device=model.device)
        kept.append(_Kept(cast[id(prefix)], positions, len(tree.nodes) + i))
    for number, node in enumerate(tree.nodes):
        if isinstance(node.content, KVCache) and len(node.content):
            layers = [(k[0], v[0]) for k, v in node.content.keys_values]
            kept.append(_Kept(layers, node.content.positions[0], number))
    return sorted(kept, key=lambda part: part.trained)


def _side_by_side(rows: Sequence[Sequence[Tensor]], length: int, like: Tensor) -> Tensor:
    """`[B, kv_heads, length, head_dim]` of each row's parts `[kv_heads, n, head_dim]`, padded."""
    flat: list[Tensor] = []
    for parts in rows:
        missing = length - sum(int(part.shape[1]) for part in parts)
        flat += parts
        if missing:
            flat.append(like.new_zeros(like.shape[0], missing, like.shape[2]))
    joined = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)  # copied once
    return joined.unflatten(1, (len(rows), length)).transpose(0, 1)


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
