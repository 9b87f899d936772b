"""How much of a head, or of several mixed, a soft prompt that was distilled from it does."""

from __future__ import annotations

import math
from collections.abc import Sequence

from softlore.context.compose import Readable
from softlore.decode import OPENERS, Dosed, sample_passages
from softlore.decode.mixing import Steering, dosed, with_bare
from softlore.measure.material import FIDELITY, HELD_OUT, passage_tokens
from softlore.measure.score import kl, thoughts, trunk
from softlore.model import FrozenModel
from softlore.tune.teacher import teach


def head_trees(model: FrozenModel, steering: Steering) -> Dosed:
    """What stands before a text under heads, with weights that sum to 1."""
    return [(trunk(model, head), weight) for head, weight in with_bare(dosed(steering))]


def head_fidelity(model: FrozenModel, steering: Steering, soft: Readable, seed: int = 0) -> float:
    """1 − KL(heads ‖ soft) / KL(heads ‖ bare), on passages that the heads write under new draws.

    1 is all that they do, 0 no more than the bare model; not a number where they do nothing.
    """
    trees = head_trees(model, steering)
    count, length = 2 * FIDELITY, passage_tokens(model)
    passages: Sequence[list[int]] = [
        ids
        for ids in sample_passages(model, trees, OPENERS, count, length, HELD_OUT + seed)
        if len(ids) > 1
    ]
    theirs = [passage.hidden for passage in teach(model, trees, passages)]
    bare, ours = (thoughts(model, head, passages) for head in ("", soft))
    whole = kl(model, theirs, bare)
    return 1 - kl(model, theirs, ours) / whole if whole > 0 else math.nan
