"""Losses of next-token prediction: response NLL, KL to a teacher, fidelity.

Training and measuring share them. All work on flat hidden states `[R, hidden]`: the output layer
turns a few rows at a time into logits, since those of a long text and a large vocabulary do not
fit memory. Where a gradient is needed, chunks are checkpointed: their logits are recomputed in
the backward pass. A teacher is given by its hidden states, which are hundreds of times smaller
than its probabilities; the frozen output layer turns them into the same logits again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from softlore.model import FrozenModel

LOGITS_AT_ONCE = 1 << 25  # float32 logits in memory at a time: 128 MB

RowLoss = Callable[[FrozenModel, Tensor, Tensor], Tensor]


def response_nll(model: FrozenModel, hidden: Tensor, ids: Tensor) -> Tensor:
    """−log p `[R]`, nats, of the next ids `[R]` after hidden states `[R, hidden]`."""
    return _in_chunks(_nll, model, hidden, ids)


def teacher_kl(model: FrozenModel, hidden: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ model) `[R]`, nats, of next tokens after hidden states `[R, hidden]` of both."""
    return _in_chunks(_kl, model, hidden, teacher)


@torch.no_grad()
def mean_kl(model: FrozenModel, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> float:
    """Mean KL(teacher ‖ student), nats a token, from hidden states of both; NaN for no passage."""
    if not teacher:
        return math.nan
    return float(teacher_kl(model, torch.cat(list(student)), torch.cat(list(teacher))).mean())


def fidelity(
    model: FrozenModel, text: Sequence[Tensor], bare: Sequence[Tensor], soft: Sequence[Tensor]
) -> float:
    """Share of a text's effect that a soft prompt has: 1 − KL(text ‖ soft) / KL(text ‖ bare).

    1 is all of it, 0 no more than the bare model, below 0 less than that. NaN if the text has no
    effect.

    Args:
        text, bare, soft: hidden states of the same passages after the text, after nothing and
            after the soft prompt. Use passages that the model sampled after the text, and that
            were not trained on.
    """
    effect = mean_kl(model, text, bare)
    return 1 - mean_kl(model, text, soft) / effect if effect > 0 else math.nan


def _in_chunks(loss: RowLoss, model: FrozenModel, hidden: Tensor, targets: Tensor) -> Tensor:
    size = max(1, LOGITS_AT_ONCE // model.vocab_size)
    if len(hidden) <= size:
        return loss(model, hidden, targets)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    if torch.is_grad_enabled() and hidden.requires_grad:
        return torch.cat([checkpoint(loss, model, *c, use_reentrant=False) for c in chunks])
    return torch.cat([loss(model, *chunk) for chunk in chunks])


def _nll(model: FrozenModel, hidden: Tensor, ids: Tensor) -> Tensor:
    return -log_softmax(model.logits(hidden), dim=-1).gather(1, ids[:, None])[:, 0]


def _kl(model: FrozenModel, hidden: Tensor, teacher: Tensor) -> Tensor:
    with torch.no_grad():
        expected = log_softmax(model.logits(teacher), dim=-1)
    predicted = log_softmax(model.logits(hidden), dim=-1)
    return (expected.exp() * (expected - predicted)).sum(dim=-1)
