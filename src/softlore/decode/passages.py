"""Sampling many token sequences: passages that a model writes itself, to train and measure on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from softlore.context import Tree
from softlore.decode.batch import RunningBatch
from softlore.decode.model_runner import TorchModelRunner
from softlore.decode.prefix_cache import PrefixCache
from softlore.decode.samplers import Sampler, SamplingParams
from softlore.decode.sequence_group import SequenceGroup
from softlore.lore import Entry
from softlore.lore.styles import sentence_starts
from softlore.model import FrozenModel

# First words of passages on nothing in particular.
OPENERS = (
    "The", "One day", "It was", "He", "She", "There was", "When", "In the", "They", "At last",
    "A", "I", "The old", "Then", "Every", "After", "We", "His", "Her", "No one", "On the", "You",
)  # fmt: skip
# ... and of some that may or may not turn to an entry.
_ASIDE = ("Once upon a time", "The", "It was a cold day and", "He", "She", "They", "In the")
_QUESTIONS = (
    "Who is {}?", "What does {} look like?", "Tell me about {}.", "Describe {}.",
    "What do you know of {}?", "What is special about {}?",
)  # fmt: skip
MIN_SHARED = 8  # a tree of this many tokens or more that several texts share is run once

# Contexts mixed by weights that sum to 1.
WeightedTrees = Sequence[tuple[Tree, float]]


def openers(entry: Entry) -> list[str]:
    """First words of passages about an entry, half of them its name or a key."""
    names = list(dict.fromkeys([entry.name, *entry.keys]))[:4]
    forms = ("{}", "One day, {}", "{} was", "{} looked")
    about = [form.format(name) for name in names for form in forms]
    return [*about, *_ASIDE]


def study_openers(entry: Entry) -> list[str]:
    """First words of passages by which an entry's text is studied.

    In turn: a sentence of the text cut somewhere, half of them after a scene is set; the name in a
    story, as in `openers`; a question. Cut sentences ask for each fact where it stands.
    """
    starts = sentence_starts(entry)
    random.Random(entry.name).shuffle(starts)
    scene = f"{entry.name} came in. "
    cuts = [scene + start if i % 2 else start for i, start in enumerate(starts)]
    in_stories, questions = openers(entry), [form.format(entry.name) for form in _QUESTIONS]
    count = max(len(cuts), len(in_stories))
    kinds = [kind for kind in (cuts, in_stories, questions) if kind]
    return [kind[i % len(kind)] for i in range(count) for kind in kinds]


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
    length: int,
    seed: int | Sequence[int],
    rows_at_once: int = 64,
    on_progress: Callable[[float], None] | None = None,
) -> list[list[int]]:
    """A passage after each context and opener; see `sample_passages` and `sample_ids`.

    An opener without tokens is replaced by the first id of ordinary text.
    """
    starts = [
        model.encode(opener)[: length - 1] or [model.ordinary_ids[0]] for _, opener in contexts
    ]
    new = sample_ids(
        model,
        [(before, ids) for (before, _), ids in zip(contexts, starts, strict=True)],
        SamplingParams(temperature=1.0, top_k=0),
        [length - len(ids) for ids in starts],
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
        rows_at_once: texts that are generated side by side.
        on_progress: called after each step with the share of tokens that is done, 0 to 1.
    """
    limits = [max_new_tokens] * len(contexts) if isinstance(max_new_tokens, int) else max_new_tokens
    seeds = (
        seed if not isinstance(seed, int) else [seed * 1_000_003 + i for i in range(len(limits))]
    )
    runner = TorchModelRunner(model, PrefixCache())
    batch = RunningBatch(runner)
    groups: list[SequenceGroup] = []
    for start in range(0, len(contexts), rows_at_once):
        _preload_shared(runner, [before for before, _ in contexts[start : start + rows_at_once]])
        for index in range(start, min(start + rows_at_once, len(contexts))):
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
