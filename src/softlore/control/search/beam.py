"""A beam of readable texts, written token by token under a bound of their perplexity.

After BEAST (Sadasivan et al. 2024, arXiv 2402.15570): every text of the beam goes on with tokens
that the bare model draws, and those go on that do best. When the beam has its length, a new one
begins.
"""

from __future__ import annotations

import math
import random
from operator import itemgetter

from softlore.control.search.scoring import Scorer
from softlore.control.search.state import Scored, SearchState
from softlore.decode.passages import sample_ids
from softlore.decode.samplers import SamplingParams
from softlore.measure.score import trunk

WIDTH, BRANCHES = 8, 8  # texts of the beam, and draws for each
TOP_P = 0.95


def beam_step(scorer: Scorer, state: SearchState, draw: random.Random) -> Scored:
    """Goes on with every text of the beam by a token, and keeps the best."""
    beams = [ids for ids, _ in state.pool]
    if not beams or len(beams[0]) >= state.options.n_tokens:
        beams = [[]]
    tree = trunk(scorer.model, "")
    starts = [ids for ids in beams for _ in range(BRANCHES if ids else WIDTH * BRANCHES)]
    params = SamplingParams(temperature=1.0, top_k=0, top_p=TOP_P)
    lines = [(tree, [*scorer.line, *ids]) for ids in starts]  # each begins as a line does
    new = sample_ids(scorer.model, lines, params, 1, draw.randrange(2**31))
    scorer.count_tokens(sum(map(len, beams)) + len(starts))
    longer = {(*ids, *token): None for ids, token in zip(starts, new, strict=True) if token}
    candidates = [list(ids) for ids in longer if scorer.legal(ids)]
    bound = math.log(state.options.perplexity)
    own = scorer.own_losses(candidates)
    scorer.count_tokens(sum(map(len, candidates)))
    candidates = [ids for ids, loss in zip(candidates, own, strict=True) if loss <= bound]
    values = scorer.losses(candidates)
    scored = sorted(zip(candidates, values, strict=True), key=itemgetter(1))
    state.pool = [(ids, [value]) for ids, value in scored[:WIDTH]]
    return scored
