"""Muon: an optimizer whose updates move all directions of a matrix by as much.

Keller Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024). A head's keys
in one layer are a matrix of a row for each position, and so are its values, and the rows of an
embedding prompt. Adam moves each number by as much as any other, so that most of an update follows
the few directions that most gradients share, and those bend all text. With orthogonalized momentum
each direction counts the same: a prompt learns more in as many updates, at less drift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Root mean square of an update's numbers at a learning rate of 1: about as far as Adam's go.
SIZE = 0.4
STEPS = 6  # of the iteration, after which singular values are between 0.7 and 1.2
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon for stacks of matrices, which `torch.optim.Muon` does not take.

    Args:
        params: tensors of `[…, rows, columns]`.
        momentum: short, as draws change from update to update.
        size: root mean square of an update's numbers at a learning rate of 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.1,
        momentum: float = 0.8,
        size: float = SIZE,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "size": size})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update from the gradients."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(gradient)
                average = state["momentum"].mul_(group["momentum"]).add_(gradient)
                ahead = gradient + group["momentum"] * average
                scale = group["lr"] * group["size"] * max(ahead.shape[-2:]) ** 0.5
                parameter.sub_(orthogonalized(ahead), alpha=scale)
        return loss


def orthogonalized(matrices: Tensor) -> Tensor:
    """`[…, rows, columns]` with the same singular vectors, and singular values of about 1.

    By a Newton-Schulz iteration of fifth order, which needs products only.
    """
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    norms = torch.linalg.matrix_norm(wide, keepdim=True)
    x = wide / norms.clamp_min(torch.finfo(wide.dtype).tiny)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide is matrices else x.mT
