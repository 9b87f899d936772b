"""How much of a head, or of several mixed, a soft prompt that was distilled from it does."""

from __future__ import annotations

import math
from collections.abc import Sequence

from softlore.context.compose import ContextLike
from softlore.decode import OPENERS, WeightedTrees, sample_passages
from softlore.decode.conditioning import Conditioning, weighted, with_bare_model
from softlore.measure.material import FIDELITY, HELD_OUT, passage_tokens
from softlore.measure.score import kl, passage_hidden_states, trunk
from softlore.model import FrozenModel
from softlore.tune.teacher import run_teacher


def conditioning_trees(model: FrozenModel, steering: Conditioning) -> WeightedTrees:
    """What stands before a text under heads, with weights that sum to 1."""
    return [
        (trunk(model, conditioning), weight)
        for conditioning, weight in with_bare_model(weighted(steering))
    ]


def conditioning_fidelity(
    model: FrozenModel, steering: Conditioning, soft: ContextLike, seed: int = 0
) -> float:
    """1 − KL(heads ‖ soft) / KL(heads ‖ bare), on passages that the heads write under new draws.

    1 is all that they do, 0 no more than the bare model; not a number where they do nothing.
    """
    trees = conditioning_trees(model, steering)
    count, length = 2 * FIDELITY, passage_tokens(model)
    passages: Sequence[list[int]] = [
        ids
        for ids in sample_passages(model, trees, OPENERS, count, length, HELD_OUT + seed)
        if len(ids) > 1
    ]
    theirs = [passage.hidden for passage in run_teacher(model, trees, passages)]
    bare, ours = (
        passage_hidden_states(model, conditioning, passages) for conditioning in ("", soft)
    )
    whole = kl(model, theirs, bare)
    return 1 - kl(model, theirs, ours) / whole if whole > 0 else math.nan
