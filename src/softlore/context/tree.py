"""Trees: what a model reads, as prefixes and nodes of text that follow each other or branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from softlore.model import KVCache

PLACES = 32  # positions that are kept free for prefixes, or a multiple
# Identifies one key of a cache: a token id, or soft rows and the index of one.
CacheKey = int | tuple[Tensor, int]
ROOT = -1  # the parent of a node that sees the prefixes and nothing else


@dataclass
class Node:
    """A run of text after its parent's last token.

    Attributes:
        content: token ids; embedding rows `[n, width]`; or the keys and values, in one row, of
            text that was read already at the node's positions, and is not run again.
        sees: indices of the tree's prefixes that its tokens see; None: all of them.
    """

    content: Sequence[int] | Tensor | KVCache
    parent: int = ROOT
    sees: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.content)

    @property
    def ids(self) -> Sequence[int]:
        """Its token ids; none of embedding rows, and of text that was read already."""
        return () if isinstance(self.content, Tensor | KVCache) else self.content

    @property
    def n_rows(self) -> int:
        """Tokens to run: none of a text that was read already."""
        return 0 if isinstance(self.content, KVCache) else len(self.content)


@dataclass
class Tree:
    """Prefixes, and nodes of text after them.

    Attributes:
        nodes: parents before their children.
        prefixes: keys and values `[layers, 2, kv_heads, n, head_dim]` each.
        at: first position of the text, if it is not the one after the longest prefix: of a part
            of a context, or where places are kept free for prefixes that may come.
        steering: the sum of its control vectors `[layers, width]`, float32; None if it has none.
    """

    nodes: list[Node] = field(default_factory=list)
    prefixes: list[Tensor] = field(default_factory=list)
    at: int | None = None
    steering: Tensor | None = None

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
    def n_rows(self) -> int:
        """Tokens to run: those that were not read already."""
        return sum(node.n_rows for node in self.nodes)

    @property
    def end(self) -> int:
        """The parent of a node that comes after everything: the last node, or `ROOT`."""
        return len(self.nodes) - 1 if self.nodes else ROOT

    def steered(self, steering: Tensor | None) -> Tree:
        """A copy that is steered by control vectors `[layers, width]`, too; itself for None."""
        if steering is None:
            return self
        return replace(
            self, steering=steering if self.steering is None else self.steering + steering
        )

    def then(
        self, content: Sequence[int] | Tensor | KVCache, sees: Sequence[int] | None = None
    ) -> Tree:
        """A copy with one more node after everything."""
        return replace(self, nodes=[*self.nodes, Node(content, self.end, sees)])

    def part(self, start: int, stop: int | None = None, read: KVCache | None = None) -> Tree:
        """Tokens `start` to `stop` of a tree of one branch, at their positions in this tree.

        None of them may have been read already.

        Args:
            read: keys and values of the tokens before `start`; without them the part is only of
                use where something else holds these.
        """
        stop = self.length if stop is None else min(stop, self.length)
        nodes = [] if read is None else [Node(read, ROOT, sees=())]
        at = 0
        for node in self.nodes:
            assert not isinstance(node.content, KVCache)
            content = node.content[max(0, start - at) : max(0, stop - at)]
            if len(content):
                nodes.append(Node(content, len(nodes) - 1, node.sees))
            at += len(node)
        return replace(self, nodes=nodes, at=self.start + (start if read is None else 0))

    def prefixes_of(self, node: Node) -> list[Tensor]:
        """The prefixes that a node sees."""
        return self.prefixes if node.sees is None else [self.prefixes[i] for i in node.sees]

    def starts(self) -> list[int]:
        """First position of each node."""
        starts: list[int] = []
        for node in self.nodes:
            if node.parent == ROOT:
                starts.append(self.start)
            else:
                starts.append(starts[node.parent] + len(self.nodes[node.parent]))
        return starts

    def sight(self) -> Tensor:
        """`[nodes, nodes + prefixes + 1]` bool: what tokens of node i may see.

        Node j (True for j = i), then each prefix, then padding, which none sees.
        """
        n_nodes, n_prefixes = len(self.nodes), len(self.prefixes)
        seen = torch.eye(n_nodes, n_nodes + n_prefixes + 1, dtype=torch.bool)
        for i, node in enumerate(self.nodes):
            if node.parent != ROOT:
                seen[i, :n_nodes] |= seen[node.parent, :n_nodes]
            prefixes = range(n_prefixes) if node.sees is None else node.sees
            seen[i, [n_nodes + prefix for prefix in prefixes]] = True
        return seen

    def path(self, node: int) -> list[int]:
        """The nodes from the root down to `node`; none for `ROOT`."""
        path: list[int] = []
        while node != ROOT:
            path.insert(0, node)
            node = self.nodes[node].parent
        return path


def free_places(n_tokens: int, context_length: int | None) -> int:
    """Positions to keep free before a text for prefixes of up to `n_tokens`.

    A multiple of `PLACES`, so that prefixes of other lengths move no text; in a context so short
    that this would be over an eighth of it, `n_tokens`.
    """
    places = -(-n_tokens // PLACES) * PLACES
    fits = context_length is None or places <= context_length // 8
    return places if fits else n_tokens


def common_length(a: Sequence[CacheKey], b: Sequence[CacheKey]) -> int:
    """How many keys at the beginning are the same."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if isinstance(x, int) or isinstance(y, int):
            if x is not y and x != y:
                return i
        elif x[1] != y[1] or not same_tensor(x[0], y[0]):
            return i
    return min(len(a), len(b))


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal."""
    return a is b or (a.shape == b.shape and torch.equal(a, b))
