"""softlore's trainer with mkultra's objective, and with optimizers over mkultra's parameter."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from softlore import tune
from softlore.prompts import SoftPrompt
from softlore.tune import TrainingProgress
from softlore.tune.initial import scale_of


def _constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """A constant learning rate, as in mkultra."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


# mkultra's objective: no drift guard, random tokens as filler.
CLASSIC: dict[str, Any] = {
    "kind": "embedding",
    "filler": "random",
    "max_spacing": 0,
    "drift_guard": 0.0,
    "schedule": _constant,
}


def make_trainer(
    model: Any,
    optimizer: Any,
    on_step: Callable[[TrainingProgress], bool | None],
    settings: Mapping[str, Any],
    **source: Any,
) -> tune.WorldInfoTrainer[Any]:
    """A softlore trainer that starts from the model's learned embedding.

    Args:
        model: a PromptTuningLM.
        optimizer: one over `model.get_soft_params()`, or softlore's `optimizer` setting, or None.
        on_step: called after each update; True stops.
        settings: fields of `TrainingConfig`.
        source: what to train on, and other arguments of softlore's WorldInfoTrainer.
    """
    model.eval()  # no dropout in training, as in generation
    settings = dict(settings)
    if isinstance(optimizer, torch.optim.Optimizer):
        unit = float(scale_of(model.frozen, model.learned_embedding.detach(), "embedding"))
        settings["optimizer"] = functools.partial(
            WrappedOptimizer, wrapped=optimizer, model=model, unit=unit
        )
    elif optimizer is not None:
        settings["optimizer"] = optimizer
    rows = model.learned_embedding.detach().float().cpu()
    start = SoftPrompt(
        name="start",
        kind="embedding",
        tensor=rows,
        fingerprint=model.frozen.fingerprint("embedding"),
        uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, rows.numpy().tobytes().hex())),
    )
    settings |= {"n_tokens": len(rows), "initial": start}
    return tune.WorldInfoTrainer(model.frozen, on_step=on_step, **source, **settings)


class WrappedOptimizer(torch.optim.Optimizer):
    """Makes the trainer's updates by an optimizer over the model's learned embedding.

    The trainer's parameter is in units of `unit`, the root mean square of the model's embedding
    rows; the learned embedding is in mkultra's, so that learning rate and weight decay have the
    meaning that they have there:

        learned = parameter × unit,    gradient of learned = gradient of parameter / unit
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        *,
        wrapped: torch.optim.Optimizer,
        model: Any,
        unit: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self.wrapped = wrapped
        self.learned: torch.nn.Parameter = model.learned_embedding
        self.unit = unit
        group = wrapped.param_groups[0]
        if len(group["params"]) != 1 or group["params"][0] is not self.learned:
            wrapped.state.clear()  # made before the learned embedding was replaced
            group["params"] = [self.learned]
        del wrapped.param_groups[1:]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of the wrapped optimizer, from the gradient of the trainer's parameter."""
        parameter: Tensor = self.param_groups[0]["params"][0]
        self.learned.copy_(parameter * self.unit)
        assert parameter.grad is not None
        self.learned.grad = (parameter.grad / self.unit).to(self.learned)
        self.wrapped.step()
        self.learned.grad = None
        parameter.copy_(self.learned / self.unit)

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapped optimizer."""
        return self.wrapped.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state of the wrapped optimizer."""
        self.wrapped.load_state_dict(state_dict)
