"""Source attribution: under which control code a text is the likeliest.

For each code c the text x is read after it, log p(x | c) = Σ log p(x_t | c, x_<t), and Bayes' rule
gives p(c | x) ∝ p(x | c) p(c) (Keskar et al. 2019, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from softlore.context import Tree, splice
from softlore.control.codes import Code
from softlore.errors import ConfigError, ContextError, ContextOverflowError
from softlore.measure.score import nll, trunk
from softlore.model import FrozenModel
from softlore.prompts import Context

TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class Attribution:
    """One code's claim on a text.

    Attributes:
        code: its name.
        nll: −log p(text | code), nats.
        perplexity: exp(nll / tokens).
        posterior: p(code | text) among the codes that were asked about.
    """

    code: str
    nll: float
    perplexity: float
    posterior: float


def attribute(
    model: FrozenModel,
    text: str,
    codes: Mapping[str, Code],
    prior: Mapping[str, float] | None = None,
) -> list[Attribution]:
    """Codes by how likely they make a text, the likeliest first.

    All codes are scored in one batch in which each code's trunk carries the same text. A text
    longer than the context is read in windows, each after the code. Where a code is a prefix
    prompt, and so nothing stands before the text's first token, that token is left out for all.

    Args:
        prior: p(code), in any scale; equal for all where it is left out.

    Raises:
        ContextError: a text too short to say anything.
        ConfigError: a prior that lacks a code, or is no positive number.
    """
    before = _log_prior(codes, prior)
    trees = [trunk(model, code.conditioning) for code in codes.values()]
    inside = all(Context(code.conditioning).body.pieces for code in codes.values())
    ids = model.encode(text, inside=inside)
    start = 0 if all(tree.nodes for tree in trees) else 1
    if len(ids) <= start:
        raise ContextError(
            f"the text has {len(ids)} tokens; expected at least {start + 1}; give more of it"
        )
    windows = _windows(model, trees, ids)
    totals = [0.0] * len(trees)
    for window in windows:
        for i, loss in enumerate(_losses(model, trees, window, start)):
            totals[i] += loss
    scored = sum(len(window) - start for window in windows)
    chances = posterior([b - total for b, total in zip(before, totals, strict=True)])
    found = [
        Attribution(name, total, math.exp(min(total / scored, 700.0)), chance)
        for name, total, chance in zip(codes, totals, chances, strict=True)
    ]
    return sorted(found, key=lambda one: -one.posterior)


def posterior(scores: list[float]) -> list[float]:
    """Probabilities from log p(x | c) + log p(c)."""
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    return [weight / sum(weights) for weight in weights]


@torch.no_grad()
def _losses(model: FrozenModel, trees: list[Tree], ids: list[int], start: int) -> list[float]:
    """−log p(ids[start:]) after each tree, nats; as many trees at once as memory likes."""
    most = max(1, TOKENS_AT_ONCE // len(ids))
    found: list[float] = []
    for at in range(0, len(trees), most):
        part = trees[at : at + most]
        spliced = splice(model, [tree.then(ids) for tree in part])
        hidden, _ = model.hidden(
            spliced.embeds, spliced.positions, spliced.visible, spliced.past
        )  # [B, T, hidden]; a row tells the token after it
        firsts = [tree.length + start - 1 for tree in part]
        rows = [hidden[i, first : first + len(ids) - start] for i, first in enumerate(firsts)]
        told = torch.tensor(ids[start:] * len(part), device=hidden.device)
        losses = nll(model, torch.cat(rows), told).view(len(part), -1).sum(dim=1)
        found += losses.tolist()
    return found


def _windows(model: FrozenModel, trees: list[Tree], ids: list[int]) -> list[list[int]]:
    if model.context_length is None:
        return [ids]
    room = model.context_length - max(tree.start + tree.length for tree in trees)
    if room < 2:
        raise ContextOverflowError(
            f"a code leaves room for {room} tokens in the context of {model.name!r}; expected two "
            "or more; use a shorter one"
        )
    count = -(-len(ids) // room)
    size = -(-len(ids) // count)
    windows = [ids[at : at + size] for at in range(0, len(ids), size)]
    return [window for window in windows if len(window) > 1] or windows


def _log_prior(codes: Mapping[str, Code], prior: Mapping[str, float] | None) -> list[float]:
    if prior is None:
        return [0.0] * len(codes)
    found = [prior.get(name, 0.0) for name in codes]
    for name, value in zip(codes, found, strict=True):
        if not 0 < value < math.inf:
            raise ConfigError(
                f"the prior of code {name!r} is {value!r}; expected a number above 0 for each of "
                f"{len(codes)} codes; name it, or leave the prior out"
            )
    return [math.log(value) for value in found]
