"""Source attribution: finds the control code under which a text is most likely.

For each code c the text x is read after it, log p(x | c) = Σ log p(x_t | c, x_<t), and Bayes' rule
gives p(c | x) ∝ p(x | c) p(c) (Keskar et al. 2019, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from softlore.context import Tree, splice
from softlore.control.codes import CODES, Code
from softlore.errors import ConfigError, ContextError, ContextOverflowError
from softlore.measure.losses import response_nll
from softlore.measure.score import trunk
from softlore.model import FrozenModel
from softlore.prompts import Context
from softlore.settings.arguments import FROZEN, NAMED, TEXT, expecting

TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class Attribution:
    """How likely a text is under one code.

    Attributes:
        code: its name.
        nll: −log p(text | code), nats.
        perplexity: exp(nll / tokens).
        posterior: p(code | text) among the given codes.
    """

    code: str
    nll: float
    perplexity: float
    posterior: float


@expecting(model=FROZEN, text=TEXT, codes=CODES, prior=NAMED.optional)
def attribute(
    model: FrozenModel,
    text: str,
    codes: Mapping[str, Code],
    prior: Mapping[str, float] | None = None,
) -> list[Attribution]:
    """Codes by their posterior for a text, the likeliest first.

    All codes are scored in one batch: the same text after each code. A text longer than the context
    is scored in windows, each after the code. With a prefix prompt no token precedes the text's
    first one, so where any code is one, that token is not scored for any code.

    Args:
        prior: p(code), unnormalized; uniform if None.

    Raises:
        ContextError: the text is too short.
        ConfigError: the prior lacks a code, or is not positive.
    """
    log_prior = _log_prior(codes, prior)
    trees = [trunk(model, code.conditioning) for code in codes.values()]
    inside = all(Context(code.conditioning).body.pieces for code in codes.values())
    ids = model.encode(text, inside=inside)
    start = 0 if all(tree.nodes for tree in trees) else 1
    if len(ids) <= start:
        raise ContextError(
            f"the text has {len(ids)} tokens; expected at least {start + 1}; use a longer one"
        )
    windows = _windows(model, trees, ids)
    losses = [_losses(model, trees, window, start) for window in windows]  # [windows][codes]
    totals = [sum(of_code) for of_code in zip(*losses, strict=True)]
    scored = sum(len(window) - start for window in windows)
    posteriors = posterior([p - total for p, total in zip(log_prior, totals, strict=True)])
    attributions = [
        Attribution(name, total, math.exp(min(total / scored, 700.0)), probability)
        for name, total, probability in zip(codes, totals, posteriors, strict=True)
    ]
    return sorted(attributions, key=lambda attribution: -attribution.posterior)


def posterior(scores: list[float]) -> list[float]:
    """Softmax of log p(x | c) + log p(c)."""
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    return [weight / sum(weights) for weight in weights]


@torch.no_grad()
def _losses(model: FrozenModel, trees: list[Tree], ids: list[int], start: int) -> list[float]:
    """−log p(ids[start:]) after each tree, nats, in batches of `TOKENS_AT_ONCE`."""
    most = max(1, TOKENS_AT_ONCE // len(ids))
    losses: list[float] = []
    for at in range(0, len(trees), most):
        part = trees[at : at + most]
        spliced = splice(model, [tree.then(ids) for tree in part])
        hidden, _ = spliced.run(model)  # [B, T, hidden]; row t predicts token t + 1
        firsts = [tree.length + start - 1 for tree in part]
        rows = [hidden[i, first : first + len(ids) - start] for i, first in enumerate(firsts)]
        targets = torch.tensor(ids[start:] * len(part), device=hidden.device)
        nll = response_nll(model, torch.cat(rows), targets)
        losses += nll.view(len(part), -1).sum(dim=1).tolist()
    return losses


def _windows(model: FrozenModel, trees: list[Tree], ids: list[int]) -> list[list[int]]:
    if model.context_length is None:
        return [ids]
    room = model.context_length - max(tree.start + tree.length for tree in trees)
    if room < 2:
        raise ContextOverflowError(
            f"a code leaves {room} tokens of the context of {model.name!r} for text; expected two "
            "or more; use a shorter code"
        )
    count = -(-len(ids) // room)
    size = -(-len(ids) // count)
    windows = [ids[at : at + size] for at in range(0, len(ids), size)]
    return [window for window in windows if len(window) > 1] or windows


def _log_prior(codes: Mapping[str, Code], prior: Mapping[str, float] | None) -> list[float]:
    if prior is None:
        return [0.0] * len(codes)
    values = [prior.get(name, 0.0) for name in codes]
    for name, value in zip(codes, values, strict=True):
        if not 0 < value < math.inf:
            raise ConfigError(
                f"the prior of code {name!r} is {value!r}; expected a number above 0 for each of "
                f"{len(codes)} codes; add it, or omit the prior"
            )
    return [math.log(value) for value in values]
