"""Conditionings: prompts that stay before a text, mixed by strengths; sliding windows.

With p the bare model's next-token probabilities and p_i those after conditioning i, tokens are
sampled from

    p_mix ∝ p · Π (p_i / p)^w_i

A single conditioning of strength 1 is that conditioning alone, 0 the bare model, between them an
interpolation, and above 1 an extrapolation. Two strengths that sum to 1 are a blend, and a negative
one steers away (as classifier-free guidance and DExperts do, Liu et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softlore.context import Node, Tree, compose
from softlore.context.compose import ContextLike, count_conditioning_nodes
from softlore.errors import ConfigError, ContextOverflowError
from softlore.model import KVCache, LanguageModel
from softlore.settings.arguments import STRENGTH

Conditioning = ContextLike | Sequence[tuple[ContextLike, float]]
Weighted = list[tuple[ContextLike, float]]
MAX_CONDITIONINGS = 16  # each is a sequence that is run at every step
PLAUSIBLE = 0.02  # least share of the likeliest token's probability, under positive strengths
RETAINED = 0.5  # share of the room after the conditioning that a new window starts with


def weighted(conditioning: Conditioning) -> Weighted:
    """Conditionings with their strengths, 1 by default; an empty conditioning gives none.

    Raises:
        ConfigError: a strength that is not a number, or too many conditionings.
    """
    if isinstance(conditioning, Sequence) and not isinstance(conditioning, str):
        try:
            pairs = [(context, strength) for context, strength in conditioning]
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"conditioning is {conditioning!r:.60}; expected text, a soft prompt, or pairs of "
                "one of these and its strength, such as [(horror, 1.5)]; change it"
            ) from error
    else:
        empty = isinstance(conditioning, str) and not conditioning
        pairs = [] if empty else [(conditioning, 1.0)]
    for _, strength in pairs:
        if not STRENGTH.fits(strength):
            raise ConfigError(
                f"a conditioning has strength {strength!r}; expected {STRENGTH.words}, with 1 for "
                "the conditioning as it is; change it"
            )
    if len(pairs) > MAX_CONDITIONINGS:
        raise ConfigError(
            f"{len(pairs)} conditionings were given; expected at most {MAX_CONDITIONINGS}; leave "
            "some out"
        )
    return pairs


def with_bare_model(conditionings: Sequence[tuple[ContextLike, float]]) -> Weighted:
    """Conditionings, and the bare model ("") with 1 minus the sum of their strengths, unless 0."""
    rest = 1.0 - sum(strength for _, strength in conditionings)
    return [*conditionings, ("", rest)] if abs(rest) > 1e-9 else list(conditionings)


def mix_logits(logits: Tensor, weights: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Mixed log-probabilities `[..., vocab]`, up to a constant, of logits `[..., rows, vocab]`.

    Where a weight is negative, tokens that are implausible under the conditionings with positive
    ones are excluded: there a quotient of two small numbers says nothing (Li et al. 2023).

    `allowed`: `[vocab]` bool; only the plausibility among these tokens counts.
    """
    logp = logits.log_softmax(dim=-1)
    mixed = (weights[:, None] * logp).sum(dim=-2)
    if (weights < 0).any():
        positive = weights.clamp_min(0)
        likely = (positive[:, None] * logp).sum(dim=-2) / positive.sum()
        compared = likely if allowed is None else likely.masked_fill(~allowed, -torch.inf)
        least = compared.amax(dim=-1, keepdim=True) + math.log(PLAUSIBLE)
        mixed = mixed.masked_fill(likely < least, -torch.inf)
    return mixed


# sliding windows ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """The part of a text that the model reads: its conditioning, and as much of its end as fits.

        first window   conditioning | text ..................... full
        next window    conditioning | its newest half .... | new text

    CTRL's own program keeps token 0, the code, and slides the text by a token at a time (Keskar
    et al. 2019). Here a full window gives way to one of the newest half, so that keys and values
    are computed again once in many tokens.

    Attributes:
        tree: its first `n_nodes` nodes stand in every window, as its prefixes do.
        n_nodes: nodes of the conditioning.
    """

    tree: Tree
    n_nodes: int = 0

    @property
    def end(self) -> int:
        """The position of the first new token."""
        return self.tree.start + self.tree.length

    def room(self, model: LanguageModel) -> int:
        """Tokens of text that fit after the conditioning."""
        conditioning = sum(map(len, self.tree.nodes[: self.n_nodes]))
        return (model.context_length or 0) - self.tree.start - conditioning

    def slide(self, n_tokens: int, new: list[int]) -> Window:
        """The conditioning, and the last `n_tokens` of the text and what was generated since."""
        last = self.tree.nodes[-1].sees
        rest = [*self.tree.nodes[self.n_nodes :], Node(new, sees=last)]
        kept = [*self.tree.nodes[: self.n_nodes], *_last_tokens(rest, n_tokens)]
        nodes = [replace(node, parent=i - 1) for i, node in enumerate(kept)]
        return Window(replace(self.tree, nodes=nodes), self.n_nodes)


def first_windows(
    model: LanguageModel,
    context: ContextLike,
    conditionings: Weighted,
    check: bool = True,
    reserved: int = 0,
) -> list[Window]:
    """The windows that a context begins with, one under each conditioning.

    `reserved`: places kept free for prefixes, see `compose`.

    Raises:
        ContextOverflowError: a conditioning that leaves no room.
    """
    windows = [
        Window(
            compose(model, context, check, conditioning, reserved),
            count_conditioning_nodes(model, conditioning),
        )
        for conditioning, _ in conditionings
    ]
    limit = model.context_length
    fit = limit is None or max(window.end for window in windows) <= limit
    return windows if fit else slide(model, windows, [])


def slide(model: LanguageModel, windows: Sequence[Window], new: list[int]) -> list[Window]:
    """The windows that follow full ones, in which the tokens `new` were generated.

    Raises:
        ContextOverflowError: a conditioning that leaves no room.
    """
    room = min(window.room(model) for window in windows)
    n_tokens = int(room * RETAINED)
    if n_tokens < 1:
        raise ContextOverflowError(
            f"the conditioning leaves room for {max(room, 0)} tokens in the context of "
            f"{model.name!r}, {model.context_length}; expected two or more; use shorter or fewer "
            "soft prompts"
        )
    return [window.slide(n_tokens, new) for window in windows]


def _last_tokens(nodes: Sequence[Node], n_tokens: int) -> list[Node]:
    """The last `n_tokens`; soft rows that do not fit completely are left out."""
    parts: list[Node] = []
    for node in reversed(nodes):
        content = node.content
        assert not isinstance(content, KVCache)
        if isinstance(content, Tensor) and len(content) > n_tokens:
            break
        part = content[-n_tokens:] if n_tokens < len(content) else content
        if len(part):
            parts.insert(0, replace(node, content=part))
        n_tokens -= len(part)
        if not n_tokens:
            break
    return parts
