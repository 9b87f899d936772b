"""Topics of passages: what a teacher reads before it writes; a long text is read in chunks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from softlore.context import Node, Tree
from softlore.decode import WeightedTrees
from softlore.lore import Entry
from softlore.lore.chunks import chunks, pieces
from softlore.lore.study import as_line, study_openings
from softlore.model import FrozenModel

MAX_CHUNK = 768  # tokens of a text that a teacher reads at once, at most
LEAD_IN = 1 / 8  # of it is for the text before a chunk, which is read first


@dataclass(frozen=True)
class Topic:
    """What passages are written after, and begin with.

    Attributes:
        before: the teacher's context: a tree, or several mixed by weights.
        openers: first words of the passages, in turn.
        lore: token ids of the text in it that the passages are about.
    """

    before: WeightedTrees
    openers: Sequence[str]
    lore: Sequence[int] = ()


def lore_topics(model: FrozenModel, entry: Entry, length: int, count: int) -> list[Topic]:
    """The topics of an entry's text: one, or the chunks of a long text, in a random order.

    A text that fits the context and `MAX_CHUNK` is read whole. Of a longer one the teacher reads a
    chunk at a time, with what is right before it.

    Args:
        length: tokens of a passage.
        count: most passages that are written in all.
    """
    size = model.context_length
    most = MAX_CHUNK if size is None else min(MAX_CHUNK, size - length - len(model.bos))
    whole = len(lore_ids(model, entry.text)) <= most
    parts = [("", entry.text)] if whole else _chunks(model, entry.text)
    openings = -(-count // len(parts))
    topics = []
    for number, (lead_in, chunk) in enumerate(parts):
        openers = study_openings(entry.model_copy(update={"text": chunk}), openings, number)
        empty = {opening for opening in set(openers) if not model.encode(opening)}
        usable = [opening for opening in openers if opening not in empty]
        read = lead_in + chunk
        topics.append(Topic([(lore_tree(model, read), 1.0)], usable, lore_ids(model, read)))
    return random.Random(entry.name).sample(topics, len(topics))


def _chunks(model: FrozenModel, text: str) -> list[tuple[str, str]]:
    """The chunks of a long text, each with the end of the one before it."""
    size = model.context_length
    most = MAX_CHUNK if size is None else min(MAX_CHUNK, size // 2)
    lead_in = int(LEAD_IN * most)

    def count(part: str) -> int:
        return len(model.encode(part))

    parts = chunks(text, max(1, most - lead_in), count)
    ends = ["", *(pieces(part, max(1, lead_in), count)[-1] for part in parts)]
    return list(zip(ends, parts, strict=False))


def bare_tree(model: FrozenModel) -> Tree:
    """What the bare model has read before a text: BOS, if it has one."""
    return Tree([Node(model.bos)] if model.bos else [])


def lore_ids(model: FrozenModel, text: str) -> list[int]:
    """Token ids of a lore's text on a line of its own."""
    return model.encode(as_line(text))


def lore_tree(model: FrozenModel, text: str) -> Tree:
    """What a teacher has read before a text: BOS, and the lore's text."""
    return Tree([Node(model.bos + lore_ids(model, text))])


def length_of(before: WeightedTrees) -> int:
    """Positions that the longest tree takes."""
    return max(tree.start + tree.length for tree, _ in before)
