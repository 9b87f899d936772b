"""Passages that a model writes itself: unrelated ones, and ones about an entry's lore."""

from __future__ import annotations

from collections.abc import Sequence

from softlore.context import Tree
from softlore.decode.conditioning import MixedSampler
from softlore.decode.loop import SampleFunction, decode
from softlore.decode.samplers import Sampler, SamplingParams
from softlore.lore import Entry
from softlore.model import FrozenModel

# First words of passages on nothing in particular.
OPENERS = (
    "The", "One day", "It was", "He", "She", "There was", "When", "In the", "They", "At last",
    "A", "I", "The old", "Then", "Every", "After", "We", "His", "Her", "No one", "On the", "You",
)  # fmt: skip
# ... and of some that may or may not turn to an entry.
_ASIDE = ("Once upon a time", "The", "It was a cold day and", "He", "She", "They", "In the")
ROWS_AT_ONCE = 32


def openers(entry: Entry) -> list[str]:
    """First words of passages about an entry, half of them its name or a key."""
    names = list(dict.fromkeys([entry.name, *entry.keys]))[:4]
    forms = ("{}", "One day, {}", "{} was", "{} looked")
    about = [form.format(name) for name in names for form in forms]
    return [*about, *_ASIDE]


WeightedTrees = Sequence[
    tuple[Tree, float]
]  # what stands before a text, mixed by weights that sum to 1


def sample_passages(
    model: FrozenModel,
    before: Tree | WeightedTrees,
    openers: Sequence[str],
    count: int,
    length: int,
    seed: int,
) -> list[list[int]]:
    """Passages of `length` tokens that the model writes after `before` and an opener each.

    Their law is the model's own (temperature 1), so that a KL on them is an honest mean. One that
    the model ends itself is shorter.
    """
    encoded = [ids for ids in (model.encode(opener)[: length - 1] for opener in openers) if ids]
    doses: WeightedTrees = [(before, 1.0)] if isinstance(before, Tree) else before
    passages: list[list[int]] = []
    for start in range(0, count, ROWS_AT_ONCE):
        heads = [encoded[i % len(encoded)] for i in range(start, min(count, start + ROWS_AT_ONCE))]
        trees = [tree.then(head) for head in heads for tree, _ in doses]
        chooser = Sampler(SamplingParams(temperature=1.0, top_k=0), seed=seed * 1_000_003 + start)
        mixed = MixedSampler(chooser, [weight for _, weight in doses])
        choose: SampleFunction = chooser if len(doses) == 1 else mixed
        rows = [list(head) for head in heads]
        for step in decode(model, trees, choose, length - min(map(len, heads))):
            for row, token in zip(rows, step[:: len(doses)], strict=True):
                row.append(token)
        passages.extend(row[:length] for row in rows)
    return [_before_end(model, passage) for passage in passages]


def _before_end(model: FrozenModel, ids: list[int]) -> list[int]:
    """A passage up to the model's own end of text, if that leaves two tokens or more."""
    ends = [i for i, token in enumerate(ids) if token in model.eos_ids and i >= 2]
    return ids[: ends[0]] if ends else ids
