"""Optimizers by name, and the schedule of the learning rate, whose end can move."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from softlore.errors import ConfigError
from softlore.settings import TrainingConfig
from softlore.settings.training import LEARNING_RATES, MUON_RATE, Factory
from softlore.tune.muon import Muon

# Of the rate of embedding rows, where there are texts alone: distillation compares whole
# distributions, a finer target than ids.
GENTLE = 1 / 3
# Draws change from update to update, so that a short memory serves better than torch's defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    name: {"betas": (0.8, 0.9)} for name in ("adam", "adamw", "nadam", "radam")
}
WARM_UP = 0.02  # of all updates
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}


def resolved(config: TrainingConfig, layers: int, has_pairs: bool) -> TrainingConfig:
    """The settings with the default learning rate filled in.

    Args:
        layers: of the model.
        has_pairs: whether there are calls with responses, and not texts alone.
    """
    if config.learning_rate is not None:
        return config
    rate = default_rate(config, layers)
    gentle = config.kind == "embedding" and not has_pairs
    return config.changed(learning_rate=rate * (GENTLE if gentle else 1.0))


def default_rate(config: TrainingConfig, layers: int) -> float:
    """The default learning rate of a prompt; `layers`: of the model."""
    if config.kind != "prefix":
        return LEARNING_RATES[config.kind]
    if str(config.optimizer).lower() == "muon":
        return MUON_RATE / layers**0.25
    return LEARNING_RATES["prefix"] / math.sqrt(layers)


def make_optimizer(parameter: torch.nn.Parameter, config: TrainingConfig) -> torch.optim.Optimizer:
    """`Muon` or a `torch.optim` class by name (any case), or what a factory returns.

    Raises:
        ConfigError: no such class.
    """
    rate = config.learning_rate or default_rate(config, len(parameter))
    if callable(config.optimizer):
        return config.optimizer([parameter], lr=rate)
    make, options = optimizer_class(config.optimizer), OPTIONS.get(config.optimizer.lower(), {})
    optimizer: torch.optim.Optimizer = make([parameter], lr=rate, **options)
    return optimizer


def optimizer_class(name: str) -> Factory:
    """A class of `torch.optim` or `Muon` by its name, in any case.

    Raises:
        ConfigError: there is none.
    """
    classes: dict[str, Factory] = {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    classes["muon"] = Muon
    for unfit in ("optimizer", "lbfgs", "sparseadam"):  # no steps from one dense gradient
        classes.pop(unfit, None)
    if name.lower() not in classes:
        raise ConfigError(
            f"optimizer {name!r} is not in torch.optim, or makes no steps from a gradient; "
            f"expected one of {', '.join(sorted(classes))}, or a factory; choose one"
        )
    return classes[name.lower()]


class Schedule:
    """The factor of the learning rate: a warm-up, then a fall to 0 at the last update.

        1 ┌────╮                     `end_at` moves the end: the rate falls from where it is,
          │     ╲  end_at            by the same shape.
          │      ╲╮
        0 ┴───────╲╲────── step

    Attributes:
        start, level: the update that the fall begins at, and the factor there.
        end: the last update; where it is set by itself, the factor is as if it had always been it.
    """

    def __init__(self, shape: str, max_steps: int) -> None:
        self._shape = SHAPES[shape]
        self.start, self.level, self.end = 0, 1.0, max_steps

    def __call__(self, step: int) -> float:
        warm = max(1, round(WARM_UP * self.end))
        return min(1.0, (step + 1) / warm) * self._fall(step)

    def _fall(self, step: int) -> float:
        done = (step - self.start) / max(1, self.end - self.start)
        return self.level * self._shape(min(max(done, 0.0), 1.0))

    def end_at(self, step: int, end: int) -> None:
        """Moves the last update to `end`; `step`: updates made so far."""
        self.level, self.start, self.end = self._fall(step), step, end


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, schedule: Schedule | None
) -> Any:
    """The scheduler that follows a `Schedule`, or what the settings' factory returns.

    Raises:
        ConfigError: a scheduler that needs the loss.
    """
    if schedule is not None:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.__call__)
    assert callable(config.schedule)
    scheduler = config.schedule(optimizer)
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ConfigError(
            "schedule is a ReduceLROnPlateau; expected one that goes by updates alone; use "
            "patience to stop on a plateau"
        )
    return scheduler
