"""Sampling many token sequences: passages that a model writes itself, to train and measure on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from softlore.context import Tree
from softlore.decode.batch import RunningBatch
from softlore.decode.model_runner import TorchModelRunner
from softlore.decode.prefix_cache import PrefixCache
from softlore.decode.samplers import Sampler, SamplingParams
from softlore.decode.sequence_group import SequenceGroup
from softlore.model import FrozenModel

MIN_SHARED = 8  # a tree of this many tokens or more that several texts share is run once

# Contexts mixed by weights that sum to 1.
WeightedTrees = Sequence[tuple[Tree, float]]


def sample_passages(
    model: FrozenModel,
    before: Tree | WeightedTrees,
    openers: Sequence[str],
    count: int,
    length: int,
    seed: int,
) -> list[list[int]]:
    """Passages of `length` tokens that the model writes after `before` and an opener each.

    They are drawn from the model's own distribution (temperature 1), so that a KL on them is an
    unbiased mean. One that the model ends itself is shorter.
    """
    contexts = [(before, openers[i % len(openers)]) for i in range(count)]
    return sample_openings(model, contexts, length, seed)


def sample_openings(
    model: FrozenModel,
    contexts: Sequence[tuple[Tree | WeightedTrees, str]],
    length: int | Sequence[int],
    seed: int | Sequence[int],
    rows_at_once: int = 64,
    on_progress: Callable[[float], None] | None = None,
) -> list[list[int]]:
    """A passage after each context and opener; see `sample_passages` and `sample_ids`.

    An opener without tokens is replaced by the first id of ordinary text.

    Args:
        length: of all, or of each.
    """
    lengths = [length] * len(contexts) if isinstance(length, int) else length
    starts = [
        model.encode(opener)[: size - 1] or [model.ordinary_ids[0]]
        for (_, opener), size in zip(contexts, lengths, strict=True)
    ]
    new = sample_ids(
        model,
        [(before, ids) for (before, _), ids in zip(contexts, starts, strict=True)],
        SamplingParams(temperature=1.0, top_k=0),
        [size - len(ids) for size, ids in zip(lengths, starts, strict=True)],
        seed,
        rows_at_once,
        on_progress,
    )
    return [_before_end(model, [*a, *b]) for a, b in zip(starts, new, strict=True)]


def sample_ids(
    model: FrozenModel,
    contexts: Sequence[tuple[Tree | WeightedTrees, Sequence[int]]],
    params: SamplingParams,
    max_new_tokens: int | Sequence[int],
    seed: int | Sequence[int] = 0,
    rows_at_once: int = 64,
    on_progress: Callable[[float], None] | None = None,
) -> list[list[int]]:
    """New ids after each context; the model's own end does not end them, the context's does.

    Args:
        contexts: the tree before each text (or several, mixed), and its first ids. A tree that
            several share (the same object) is run once.
        max_new_tokens: of all, or of each.
        seed: decides the draws, with the index of the context; or a seed for each.
        rows_at_once: texts that are generated side by side, at most.
        on_progress: called after each step with the share of tokens that is done, 0 to 1.
    """
    limits = [max_new_tokens] * len(contexts) if isinstance(max_new_tokens, int) else max_new_tokens
    seeds = seed if not isinstance(seed, int) else [draw_seed(seed, i) for i in range(len(limits))]
    runner = TorchModelRunner(model, PrefixCache())
    batch = RunningBatch(runner)
    groups: list[SequenceGroup] = []
    size = _even_part(len(contexts), rows_at_once)
    for start in range(0, len(contexts), size):
        _preload_shared(runner, [before for before, _ in contexts[start : start + size]])
        for index in range(start, min(start + size, len(contexts))):
            before, ids = contexts[index]
            mixed = [(before, 1.0)] if isinstance(before, Tree) else before
            trees = [(tree.then(ids) if ids else tree, weight) for tree, weight in mixed]
            sampler = Sampler(params, seeds[index] % 2**63, model)
            group = SequenceGroup.from_trees(runner, trees, sampler, limits[index])
            groups.append(batch.add(group))
        while len(batch):
            batch.step()
            if on_progress is not None:
                on_progress(sum(len(group.output.ids) for group in groups) / max(1, sum(limits)))
        for group in groups[start:]:
            if group.error is not None:
                raise group.error
    return [group.output.ids for group in groups]


def draw_seed(seed: int, index: int) -> int:
    """The seed of the draws of one of several texts."""
    return seed * 1_000_003 + index


def _even_part(total: int, most: int) -> int:
    """The size of the parts, alike, that `total` is cut into: 72 by 64 at most into two of 36."""
    return max(1, math.ceil(total / max(1, math.ceil(total / most))))


def _preload_shared(runner: TorchModelRunner, contexts: Sequence[Tree | WeightedTrees]) -> None:
    """Runs and caches trees that several texts share, in place of those cached before."""
    trees = [
        tree
        for context in contexts
        for tree in ([context] if isinstance(context, Tree) else [tree for tree, _ in context])
    ]
    runner.clear()
    for tree in {id(tree): tree for tree in trees if tree.length >= MIN_SHARED}.values():
        if sum(other is tree for other in trees) > 1:
            runner.preload(tree)


def _before_end(model: FrozenModel, ids: list[int]) -> list[int]:
    """A passage up to the model's own end of text, if that leaves two tokens or more."""
    ends = [i for i, token in enumerate(ids) if token in model.eos_ids and i >= 2]
    return ids[: ends[0]] if ends else ids
