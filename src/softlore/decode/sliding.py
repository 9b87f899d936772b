"""Writing past the end of the context: the window slides, and what heads it stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from softlore.context import Node, Tree, compose
from softlore.context.compose import ContextLike, count_conditioning_nodes
from softlore.decode.loop import SampleFunction, decode
from softlore.errors import ContextOverflowError
from softlore.model import FrozenModel, LanguageModel

Content = Sequence[int] | Tensor
KEPT = 0.5  # of the room after the head: how much of the text a new window begins with


@dataclass(frozen=True)
class Window:
    """A tree whose first `head` nodes stand in every window; its prefixes always do."""

    tree: Tree
    conditioning: int

    def room(self, model: LanguageModel) -> int:
        """Tokens of text that fit after the head."""
        kept = sum(map(len, self.tree.nodes[: self.conditioning]))
        return (model.context_length or 0) - self.tree.start - kept

    def slide(self, tail: int, written: list[int]) -> Window:
        """The head, and the last `tail` tokens of the text and of what was written."""
        nodes = [
            Node(node.content, i - 1) for i, node in enumerate(self.tree.nodes[: self.conditioning])
        ]
        contents = [*(node.content for node in self.tree.nodes[self.conditioning :]), written]
        for content in _newest(contents, tail):
            nodes.append(Node(content, len(nodes) - 1))
        return Window(Tree(nodes, self.tree.prefixes, self.tree.at), self.conditioning)


def windows(
    model: LanguageModel,
    context: ContextLike,
    conditionings: Sequence[tuple[ContextLike, float]] = (),
    check: bool = True,
) -> list[Window]:
    """What a context is first read as: once, or under each of several heads."""
    if not conditionings:
        return [Window(compose(model, context, check=check), 0)]
    return [
        Window(
            compose(model, context, check=check, conditioning=conditioning),
            count_conditioning_nodes(model, conditioning),
        )
        for conditioning, _ in conditionings
    ]


def fitting(model: LanguageModel, rows: list[Window]) -> list[Window]:
    """Windows that the model can read: those there are, or slid ones if one is too long.

    Raises:
        ContextOverflowError: a head that leaves no room.
    """
    limit = model.context_length
    taken = max(row.tree.start + row.tree.length for row in rows)
    return rows if limit is None or taken <= limit else slide(model, rows, [[] for _ in rows])


def decode_sliding(
    model: FrozenModel, rows: list[Window], choose: SampleFunction, max_new_tokens: int
) -> Iterator[list[int]]:
    """Yields a token a row, `max_new_tokens` times, or until the caller leaves the loop.

    CTRL's own program keeps token 0, the code, and slides the text by a token at a time (Keskar
    et al. 2019). Here a full window gives way to one of the head and the newest half of the text,
    so that keys and values are computed anew once in many tokens.

    Raises:
        ContextOverflowError: a head that leaves no room.
    """
    rows, left = fitting(model, rows), max_new_tokens
    while left:
        written: list[list[int]] = [[] for _ in rows]
        for tokens in decode(model, [row.tree for row in rows], choose, left):
            for ids, token in zip(written, tokens, strict=True):
                ids.append(token)
            yield tokens
        left -= len(written[0])
        if left:
            rows = slide(model, rows, written)


def slide(
    model: LanguageModel, rows: Sequence[Window], written: Sequence[list[int]]
) -> list[Window]:
    """The windows that follow, once so much was written in those that are full.

    Raises:
        ContextOverflowError: a head that leaves no room.
    """
    room = min(row.room(model) for row in rows)
    tail = int(room * KEPT)
    if tail < 1:
        raise ContextOverflowError(
            f"what heads the text leaves room for {max(room, 0)} tokens in the context of "
            f"{model.name!r}, {model.context_length}; expected two or more; use shorter or fewer "
            "soft prompts"
        )
    return [row.slide(tail, ids) for row, ids in zip(rows, written, strict=True)]


def _newest(contents: Sequence[Content], tail: int) -> list[Content]:
    """The last `tail` tokens; soft rows that do not fit whole are left out."""
    found: list[Content] = []
    for content in reversed(contents):
        if isinstance(content, Tensor) and len(content) > tail:
            break
        part = content[-tail:] if tail < len(content) else content
        if len(part):
            found.insert(0, part)
        tail -= len(part)
        if not tail:
            break
    return found
