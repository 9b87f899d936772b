"""Several heads over one text, each with a strength: codes mixed, dosed and set against each other.

With p the bare model's next-token probabilities and p_i those after head i, tokens are chosen from

    p_mix ∝ p · Π (p_i / p)^w_i

A single head of strength 1 is that head alone, 0 the bare model, between them an interpolation,
above 1 more of the head than the head itself; strengths of two heads that sum to 1 are a blend,
and a negative one steers away. (As classifier-free guidance and DExperts do, Liu et al. 2021.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from softlore.context.compose import ContextLike
from softlore.decode.loop import SampleFunction
from softlore.errors import ConfigError

Conditioning = ContextLike | Sequence[tuple[ContextLike, float]]
MOST = 16  # heads; each is a row that is run at every step
PLAUSIBLE = 0.02  # of the likeliest token's probability under the heads that are wanted


def weighted(steering: Conditioning) -> list[tuple[ContextLike, float]]:
    """Heads with their strengths; a head by itself has strength 1, and an empty one is none.

    Raises:
        ConfigError: a strength that is no number, or too many heads.
    """
    if isinstance(steering, Sequence) and not isinstance(steering, str):
        found = [(conditioning, weight) for conditioning, weight in steering]
    else:
        found = [(steering, 1.0)] if steering != "" else []
    for _, weight in found:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or abs(weight) > 100:
            raise ConfigError(
                f"a head has strength {weight!r}; expected a number from -100 to 100, with 1 for "
                "the head as it is; change it"
            )
    if len(found) > MOST:
        raise ConfigError(f"{len(found)} heads were given; expected at most {MOST}; leave some out")
    return found


class MixedSampler:
    """Chooses one token for each text, whose rows, one a weight, stand side by side in a batch."""

    def __init__(self, choose: SampleFunction, weights: Sequence[float]) -> None:
        self._choose = choose
        self._weights = torch.tensor(list(weights))

    def __call__(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids `[B]`, the same for all rows of a text, from logits `[B, vocab]`."""
        rows = len(self._weights)
        mixed = mix_logits(logits.unflatten(0, (-1, rows)), self._weights.to(logits.device))
        return self._choose(mixed, texts[::rows]).repeat_interleave(rows)


def mix_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """Mixed log-probabilities `[..., vocab]`, up to a constant, of logits `[..., rows, vocab]`.

    Where a weight is negative, tokens that the heads with positive ones hold for implausible are
    left out: there a quotient of two small numbers says nothing (Li et al. 2023).
    """
    logp = logits.log_softmax(dim=-1)
    mixed = (weights[:, None] * logp).sum(dim=-2)
    if (weights < 0).any():
        wanted = weights.clamp_min(0)
        likely = (wanted[:, None] * logp).sum(dim=-2) / wanted.sum()
        least = likely.amax(dim=-1, keepdim=True) + math.log(PLAUSIBLE)
        mixed = mixed.masked_fill(likely < least, -torch.inf)
    return mixed


def with_bare_model(
    conditionings: Sequence[tuple[ContextLike, float]],
) -> list[tuple[ContextLike, float]]:
    """Heads, and the bare model ("") with the weight that is left of 1, where one is."""
    left = 1.0 - sum(weight for _, weight in conditionings)
    return [*conditionings, ("", left)] if abs(left) > 1e-9 else list(conditionings)
