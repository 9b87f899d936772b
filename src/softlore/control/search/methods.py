"""Search methods, each a step from one candidate to the next.

- random: random prompts, the baseline;
- GCG (Zou et al. 2023): the best of many single-token swaps, drawn from the top-k of the negative
  gradient with respect to the one-hot tokens;
- AutoPrompt (Shin et al. 2020): at one random position, the best of the top-k of −E·g, for
  embedding matrix E and gradient g at that position's embedding;
- PEZ (Wen et al. 2023): continuous rows move by the gradient taken at the tokens nearest to them;
- reflect: texts are rewritten by what they fail to say, see `search.reflect`;
- beam: readable texts are written token by token, see `search.beam`.

Every draw is a function of the seed and the step, so a resumed search gives the same result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn.functional import normalize

from softlore.control.search.beam import beam_step
from softlore.control.search.reflect import reflect_step
from softlore.control.search.scoring import Ids, Scorer
from softlore.control.search.state import Scored, SearchState
from softlore.errors import ConfigError

GCG_WIDTH, GCG_TOP_K = 64, 256
AUTOPROMPT_TOP_K = 10
PEZ_RATE = 0.3  # Adafactor's, relative to the rows' own size
RANDOM_WIDTH = 32
APPEND_TRIES = 200  # most draws for each token of a random prompt
TRIES = 6  # draws for each candidate of a step, on average; then the step has fewer candidates


Step = Callable[[Scorer, SearchState, random.Random], Scored]


def random_step(scorer: Scorer, state: SearchState, draw: random.Random) -> Scored:
    """Scores candidates of random tokens."""
    return _scored(scorer, [random_ids(scorer, len(state.ids), draw) for _ in range(RANDOM_WIDTH)])


def gcg_step(scorer: Scorer, state: SearchState, draw: random.Random) -> Scored:
    """Scores swaps; the best candidate of them is the next one, even if it is worse.

    With a buffer, a step starts from the best candidate there (nanoGCG, Gray Swan AI 2024).
    """
    options = state.options
    if state.pool:
        state.ids = state.pool[0][0]
    top = top_swaps(scorer.one_hot_gradient(state.ids), GCG_TOP_K)

    def swapped() -> list[int]:
        ids = list(state.ids)
        for index in draw.sample(range(len(ids)), min(options.swaps, len(ids))):
            ids[index] = draw.choice(top[index])
        return ids

    scored = _scored(scorer, _legal(scorer, swapped, GCG_WIDTH))
    if scored and options.buffer:
        known = [ids for ids, _ in state.pool]
        new = [(ids, [value]) for ids, value in scored if ids not in known]
        state.pool = sorted([*state.pool, *new], key=itemgetter(1))[: options.buffer]
    elif scored:
        state.ids = min(scored, key=itemgetter(1))[0]
    return scored


def autoprompt_step(scorer: Scorer, state: SearchState, draw: random.Random) -> Scored:
    """Scores the first-order best swaps at one position; one is made only if the loss falls."""
    index = draw.randrange(len(state.ids))
    top = top_swaps(scorer.one_hot_gradient(state.ids)[index : index + 1], AUTOPROMPT_TOP_K)[0]
    swaps = [[*state.ids[:index], token, *state.ids[index + 1 :]] for token in top]
    scored = _scored(scorer, [state.ids, *(ids for ids in swaps if scorer.legal(ids))])
    state.ids = min(scored, key=itemgetter(1))[0]
    return scored


def pez_step(scorer: Scorer, state: SearchState, draw: random.Random) -> Scored:
    """Moves the rows by the gradient at their nearest tokens, and scores the new nearest tokens."""
    if state.rows is None:
        state.rows = scorer.table[state.ids].clone()
    if state.optimizer is None:
        state.optimizer = pez_optimizer(state.rows)
    ids = nearest_ids(scorer, state.rows.detach())
    _, gradient = scorer.gradient(ids)
    state.rows.grad = gradient
    state.optimizer.step()
    state.ids = nearest_ids(scorer, state.rows.detach())
    return _scored(scorer, [state.ids] if scorer.legal(state.ids) else [])


def pez_optimizer(rows: Tensor) -> torch.optim.Optimizer:
    """The optimizer of PEZ's rows."""
    return torch.optim.Adafactor([rows.requires_grad_(True)], lr=PEZ_RATE)


METHODS: dict[str, Step] = {
    "gcg": gcg_step,
    "pez": pez_step,
    "autoprompt": autoprompt_step,
    "random": random_step,
    "reflect": reflect_step,
    "beam": beam_step,
}


def random_ids(scorer: Scorer, n_tokens: int, draw: random.Random, start: Ids = ()) -> list[int]:
    """Random legal ids that begin with `start`, or with as much of it as is legal.

    They grow token by token: few long random sequences are legal, since the tokenizer merges
    neighbors.

    Raises:
        ConfigError: no legal sequence of this length was found.
    """
    tokens = scorer.allowed.nonzero()[:, 0].tolist()
    ids = list(start[:n_tokens])
    while ids and not scorer.legal(ids):
        ids.pop()
    for _ in range(n_tokens * APPEND_TRIES):
        if len(ids) == n_tokens:
            return ids
        longer = [*ids, draw.choice(tokens)]
        if scorer.legal(longer):
            ids = longer
    raise ConfigError(
        f"no {n_tokens} tokens of {scorer.model.name!r} were found that decode and encode to "
        "themselves; expected a tokenizer that allows it; search a shorter prompt"
    )


def nearest_ids(scorer: Scorer, rows: Tensor) -> list[int]:
    """The allowed tokens whose embedding rows are nearest by cosine to `rows` `[n, width]`."""
    similarity = normalize(rows.float(), dim=-1) @ normalize(scorer.table, dim=-1).T
    ids: list[int] = similarity.masked_fill(~scorer.allowed, -torch.inf).argmax(dim=-1).tolist()
    return ids


def top_swaps(gradient: Tensor, k: int) -> list[list[int]]:
    """By position: the `k` tokens that to first order lower the loss most, by `[n, vocab]`."""
    values, tokens = (-gradient).topk(min(k, gradient.shape[1]), dim=-1)
    return [
        [t for t, v in zip(row, scores, strict=True) if v > -torch.inf]
        for row, scores in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def _legal(scorer: Scorer, propose: Callable[[], list[int]], count: int) -> list[list[int]]:
    """At most `count` distinct legal candidates."""
    legal: dict[tuple[int, ...], None] = {}
    for _ in range(count * TRIES):
        ids = propose()
        if tuple(ids) not in legal and scorer.legal(ids):
            legal[tuple(ids)] = None
        if len(legal) == count:
            break
    return [list(ids) for ids in legal]


def _scored(scorer: Scorer, candidates: Sequence[Ids]) -> Scored:
    losses = scorer.losses(candidates)
    return [(list(ids), loss) for ids, loss in zip(candidates, losses, strict=True)]
