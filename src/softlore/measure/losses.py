"""Losses of next-token prediction: response NLL, KL to a teacher, fidelity.

Training and measuring share them. All work on flat hidden states `[R, hidden]`: the output layer
turns a few rows at a time into logits, since those of a long text and a large vocabulary do not
fit memory, and on a processor not its cache. A row's loss depends on that row alone, so where a
gradient is needed, each chunk's is computed right behind its loss, and no logits are kept (as in
Liger Kernel's fused linear cross entropy). A teacher is given by its hidden states, which are
hundreds of times smaller than its probabilities; the frozen output layer turns them into the same
logits again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from softlore.model import FrozenModel

# float32 logits at a time: 128 MB; on a processor 24 MB, but rows that are worth a pass over the
# output layer's weights.
LOGITS_AT_ONCE = 1 << 25
CACHED_LOGITS, CACHED_ROWS = 6 << 20, 64

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
    return share_of_effect(mean_kl(model, text, soft), mean_kl(model, text, bare))


def share_of_effect(missing: float, effect: float) -> float:
    """Fidelity, from KL(text ‖ soft) and KL(text ‖ bare); see `fidelity`."""
    return 1 - missing / effect if effect > 0 else math.nan


def _in_chunks(loss: RowLoss, model: FrozenModel, hidden: Tensor, targets: Tensor) -> Tensor:
    if torch.is_grad_enabled() and hidden.requires_grad:
        losses: Tensor = _WithGradient.apply(hidden, targets, loss, model)
        return losses
    chunks = _chunks(model, hidden, targets)
    return torch.cat([loss(model, *chunk) for chunk in chunks])


def _chunks(model: FrozenModel, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states and targets, a few rows at a time."""
    size = LOGITS_AT_ONCE // model.vocab_size
    if hidden.device.type == "cpu":
        size = min(size, max(CACHED_ROWS, CACHED_LOGITS // model.vocab_size))
    return zip(hidden.split(max(1, size)), targets.split(max(1, size)), strict=True)


class _WithGradient(torch.autograd.Function):
    """The losses `[R]` of rows; the gradient of each to its own hidden state is computed, too."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, loss: RowLoss, model: FrozenModel
    ) -> Tensor:
        losses, gradients = [], []
        for rows, expected in _chunks(model, hidden, targets):
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                values = loss(model, leaf, expected)
                values.sum().backward()
            assert leaf.grad is not None
            gradients.append(leaf.grad)
            losses.append(values.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *of_losses: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (of_losses[0][:, None] * gradients).to(gradients.dtype), None, None, None


def _nll(model: FrozenModel, hidden: Tensor, ids: Tensor) -> Tensor:
    return -log_softmax(model.logits(hidden), dim=-1).gather(1, ids[:, None])[:, 0]


def _kl(model: FrozenModel, hidden: Tensor, teacher: Tensor) -> Tensor:
    with torch.no_grad():
        expected = log_softmax(model.logits(teacher), dim=-1)
    predicted = log_softmax(model.logits(hidden), dim=-1)
    return kl_div(predicted, expected, reduction="none", log_target=True).sum(dim=-1)
