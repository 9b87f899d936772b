"""The classic objective, as mkultra trains: softlore's trainer with its settings and optimizers."""

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


def _steady(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """No schedule: mkultra has none."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


# The classic objective, as mkultra has it: no drift guard, random tokens for filler.
CLASSIC: dict[str, Any] = {
    "kind": "embedding",
    "filler": "random",
    "max_spacing": 0,
    "drift_guard": 0.0,
    "schedule": _steady,
}


def make_trainer(
    model: Any,
    optimizer: Any,
    note: Callable[[TrainingProgress], bool | None],
    settings: Mapping[str, Any],
    **taught: Any,
) -> tune.WorldInfoTrainer:
    """The trainer of softlore, from what the model has learned so far."""
    model.eval()  # training is on the model as it writes, without dropout
    settings = dict(settings)
    if isinstance(optimizer, torch.optim.Optimizer):
        unit = float(scale_of(model.frozen, model.learned_embedding.detach(), "embedding"))
        settings["optimizer"] = functools.partial(
            Stepping, theirs=optimizer, model=model, unit=unit
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
    return tune.WorldInfoTrainer(model.frozen, on_step=note, **taught, **settings)


class Stepping(torch.optim.Optimizer):
    """Lets an optimizer that has the model's learned embedding take the trainer's steps.

    The trainer's parameter is in units of its own; the learned embedding is stepped in mkultra's,
    so that learning rate and decay mean what they mean there.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        *,
        theirs: torch.optim.Optimizer,
        model: Any,
        unit: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self.theirs = theirs
        self.learned: torch.nn.Parameter = model.learned_embedding
        self.unit = unit
        group = theirs.param_groups[0]
        if len(group["params"]) != 1 or group["params"][0] is not self.learned:
            theirs.state.clear()  # made before the learned embedding was set anew
            group["params"] = [self.learned]
        del theirs.param_groups[1:]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of theirs, from our gradient."""
        ours: Tensor = self.param_groups[0]["params"][0]
        self.learned.copy_(ours * self.unit)
        assert ours.grad is not None
        self.learned.grad = (ours.grad / self.unit).to(self.learned)
        self.theirs.step()
        self.learned.grad = None
        ours.copy_(self.learned / self.unit)

    def state_dict(self) -> dict[str, Any]:
        """Theirs: that is where the state is."""
        return self.theirs.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Gives theirs its state back."""
        self.theirs.load_state_dict(state_dict)
