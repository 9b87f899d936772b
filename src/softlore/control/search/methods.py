"""The ways of searching, each a step from one candidate to the next.

- random: trial and error, for comparison;
- GCG (Zou et al. 2023): the best of many single swaps, drawn from the top-k of −∇ with respect to
  the one-hot tokens;
- AutoPrompt (Shin et al. 2020): at one random position, the best of the top-k of −E·g;
- PEZ (Wen et al. 2023): rows P move by the gradient taken at P′, the tokens nearest to them.

Every draw is a function of the seed and the step alone, so a search resumes where it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from softlore.control.search.scoring import Ids, Scorer
from softlore.errors import ConfigError

GCG_WIDTH, GCG_TOP_K = 64, 256
AUTOPROMPT_TOP_K = 10
PEZ_RATE = 0.3  # Adafactor's, relative to the rows' own size
RANDOM_WIDTH = 32
GROWING_TRIES = 200  # draws a token
TRIES = 6  # draws for a legal candidate, on average, before a step makes do with fewer


@dataclass
class SearchState:
    """Where a search is.

    Attributes:
        ids: the current candidate.
        step: steps made.
        rows: PEZ's continuous prompt `[n, width]`, and its optimizer.
    """

    ids: list[int]
    step: int = 0
    rows: Tensor | None = None
    optimizer: Any = field(default=None, repr=False)


Step = Callable[[Scorer, SearchState, random.Random], list[tuple[list[int], float]]]


def random_step(
    scorer: Scorer, state: SearchState, draw: random.Random
) -> list[tuple[list[int], float]]:
    """Candidates of random tokens."""
    found = [random_ids(scorer, len(state.ids), draw) for _ in range(RANDOM_WIDTH)]
    return _scored(scorer, found)


def gcg_step(
    scorer: Scorer, state: SearchState, draw: random.Random
) -> list[tuple[list[int], float]]:
    """Single swaps; the best of them is the next candidate, be it better or not."""
    top = top_swaps(scorer.one_hot_gradient(state.ids), GCG_TOP_K)

    def swapped() -> list[int]:
        ids = list(state.ids)
        place = draw.randrange(len(ids))
        ids[place] = draw.choice(top[place])
        return ids

    scored = _scored(scorer, _legal(scorer, swapped, GCG_WIDTH))
    if scored:
        state.ids = min(scored, key=lambda one: one[1])[0]
    return scored


def autoprompt_step(
    scorer: Scorer, state: SearchState, draw: random.Random
) -> list[tuple[list[int], float]]:
    """Swaps at one position, first-order best; kept only if the loss falls."""
    place = draw.randrange(len(state.ids))
    top = top_swaps(scorer.one_hot_gradient(state.ids)[place : place + 1], AUTOPROMPT_TOP_K)[0]
    swaps = [[*state.ids[:place], token, *state.ids[place + 1 :]] for token in top]
    scored = _scored(scorer, [state.ids, *(ids for ids in swaps if scorer.legal(ids))])
    state.ids = min(scored, key=lambda one: one[1])[0]
    return scored


def pez_step(
    scorer: Scorer, state: SearchState, draw: random.Random
) -> list[tuple[list[int], float]]:
    """Rows move by the gradient at their nearest tokens; those tokens are the candidate."""
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
    """What moves PEZ's rows."""
    return torch.optim.Adafactor([rows.requires_grad_(True)], lr=PEZ_RATE)


METHODS: dict[str, Step] = {
    "gcg": gcg_step,
    "pez": pez_step,
    "autoprompt": autoprompt_step,
    "random": random_step,
}


def random_ids(scorer: Scorer, n_tokens: int, draw: random.Random, start: Ids = ()) -> list[int]:
    """Random legal ids that begin with `start`, or with as much of it as is legal.

    They grow a token at a time: of whole random sequences few survive, for neighbours merge.

    Raises:
        ConfigError: no token can follow, whatever is tried.
    """
    tokens = scorer.allowed.nonzero()[:, 0].tolist()
    ids = list(start[:n_tokens])
    while ids and not scorer.legal(ids):
        ids.pop()
    for _ in range(n_tokens * GROWING_TRIES):
        if len(ids) == n_tokens:
            return ids
        longer = [*ids, draw.choice(tokens)]
        if scorer.legal(longer):
            ids = longer
    raise ConfigError(
        f"no {n_tokens} tokens of {scorer.model.name!r} were found that survive decode and encode; "
        "expected a tokenizer whose text gives its tokens back; search a shorter prompt"
    )


def nearest_ids(scorer: Scorer, rows: Tensor) -> list[int]:
    """The allowed tokens whose embedding rows are nearest by cosine to `rows` `[n, width]`."""
    likeness = normalize(rows.float(), dim=-1) @ normalize(scorer.table, dim=-1).T
    found: list[int] = likeness.masked_fill(~scorer.allowed, -torch.inf).argmax(dim=-1).tolist()
    return found


def top_swaps(gradient: Tensor, k: int) -> list[list[int]]:
    """For each position the `k` tokens that, to first order, lower the loss the most."""
    values, tokens = (-gradient).topk(min(k, gradient.shape[1]), dim=-1)
    return [
        [t for t, v in zip(row, kept, strict=True) if v > -torch.inf]
        for row, kept in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def _legal(scorer: Scorer, propose: Callable[[], list[int]], wanted: int) -> list[list[int]]:
    """Different legal candidates, as many as wanted or as are found in a few tries each."""
    found: dict[tuple[int, ...], None] = {}
    for _ in range(wanted * TRIES):
        ids = propose()
        if tuple(ids) not in found and scorer.legal(ids):
            found[tuple(ids)] = None
        if len(found) == wanted:
            break
    return [list(ids) for ids in found]


def _scored(scorer: Scorer, candidates: Sequence[Ids]) -> list[tuple[list[int], float]]:
    losses = scorer.losses(candidates)
    return [(list(ids), loss) for ids, loss in zip(candidates, losses, strict=True)]
