"""One entry in training: its tensor, optimizer, schedule, progress and stop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softlore.errors import ConfigError, DivergedError
from softlore.settings import TrainingConfig
from softlore.settings.training import LEARNING_RATES, Factory

# Relative to the scale of what is trained; how they were found: docs/results.md.
# A teacher's every probability is a finer target than a response: it wants a lower rate.
TEXT_ALONE = 1 / 3
# Draws change from update to update, so that a short memory serves better than torch's defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    name: {"betas": (0.8, 0.9)} for name in ("adam", "adamw", "nadam", "radam")
}
WARM_UP = 0.02  # of max_steps
SMOOTH = 5  # updates that `min_loss` looks back on


@dataclass
class History:
    """What an entry's updates came to, in nats a token."""

    response: list[float] = field(default_factory=list)
    guard: list[float] = field(default_factory=list)
    distil: list[float] = field(default_factory=list)

    def recent(self, kind: str) -> float | None:
        values = getattr(self, kind)[-SMOOTH:]
        return sum(values) / len(values) if values else None


class TrainablePrompt:
    """A soft prompt in the making.

    The parameter is in units of `scale`, so that one learning rate suits every model.
    """

    def __init__(self, name: str, value: Tensor, scale: Tensor, config: TrainingConfig) -> None:
        self.name = name
        self.config = config
        self.scale = scale.to(value.device)
        self.parameter = torch.nn.Parameter((value / self.scale).float().clone())
        self.optimizer = make_optimizer(self.parameter, config)
        self.scheduler = make_schedule(self.optimizer, config)
        self.history = History()
        self.steps = 0
        self.stopped: str | None = None  # why, once it has
        self._best = math.inf
        self._best_at = 0
        self._live: Tensor | None = None
        self._before = self.parameter.detach().clone()  # the last update

    def value(self) -> Tensor:
        """The tensor itself, float32, detached."""
        return self.parameter.detach() * self.scale

    def live(self) -> Tensor:
        """The tensor as a leaf that collects this update's gradient."""
        self._live = self.value().requires_grad_()
        return self._live

    def gather(self, share: Callable[[Tensor], Tensor]) -> None:
        """Puts what `share` makes of the gradient so far in its place: the sum of several, say.

        Nothing has reached a trainable whose part of the batch was run elsewhere; it gives zeros.
        """
        assert self._live is not None
        own = self._live.grad
        self._live.grad = share(torch.zeros_like(self._live) if own is None else own)

    def sound(self, losses: dict[str, float]) -> bool:
        """Whether losses and the gradient that `live()` has collected are finite numbers."""
        gradient = None if self._live is None else self._live.grad
        finite = all(map(math.isfinite, losses.values()))
        return gradient is not None and finite and bool(torch.isfinite(gradient).all())

    def step_back(self) -> DivergedError:
        """Puts back what was there before the last update, and returns what to tell of it."""
        self.parameter.data.copy_(self._before)
        return DivergedError(
            f"entry {self.name!r} met a loss or gradient that is not a number at update "
            f"{self.steps + 1}; expected finite ones; its last good state is kept; lower "
            "learning_rate (--learning-rate), or train in float32"
        )

    def update(self, losses: dict[str, float]) -> None:
        """One optimizer step from the gradient that `live()` has collected.

        Raises:
            DivergedError: NaN or infinity; the tensor is the last one whose losses were finite.
        """
        if not self.sound(losses) or self._live is None or self._live.grad is None:
            raise self.step_back()
        self._before.copy_(self.parameter.detach())
        self.parameter.grad = self._live.grad * self.scale
        self.optimizer.step()
        if not bool(torch.isfinite(self.value()).all()):
            raise self.step_back()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._live = None
        self.steps += 1
        for kind, value in losses.items():
            getattr(self.history, kind).append(value)
        self._consider_stop()

    def _consider_stop(self) -> None:
        config, response = self.config, self.history.recent("response")
        if config.min_loss is not None and response is not None and response <= config.min_loss:
            self.stopped = "min_loss"
        elif self.steps >= config.max_steps:
            self.stopped = "max_steps"
        elif config.patience is not None:
            total = sum(v for v in map(self.history.recent, ("response", "guard", "distil")) if v)
            if total < self._best * 0.995:
                self._best, self._best_at = total, self.steps
            elif self.steps - self._best_at >= config.patience:
                self.stopped = "patience"

    # checkpoints -------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON that `restore` needs."""
        tensors = {"parameter": self.parameter.detach()}
        optimizer = self.optimizer.state_dict()
        plain: dict[str, Any] = {}
        for key, value in optimizer["state"].get(0, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}"] = value
            else:
                plain[key] = value
        groups = [{k: v for k, v in g.items() if _plain(v)} for g in optimizer["param_groups"]]
        facts = {
            "optimizer": plain,
            "groups": groups,
            "history": vars(self.history),
            "steps": self.steps,
            "stopped": self.stopped,
            "best": [self._best if math.isfinite(self._best) else None, self._best_at],
        }
        return tensors, facts

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Goes on from `state()`, bit for bit."""
        self.parameter.data.copy_(tensors["parameter"])
        self._before.copy_(tensors["parameter"])
        prefix = "optimizer."
        kept = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        with warnings.catch_warnings():  # torch would have the optimizer step between
            warnings.simplefilter("ignore")
            for _ in range(facts["steps"]):  # a schedule of any make comes to where it was
                self.scheduler.step()
        current = self.optimizer.state_dict()
        groups = [
            old | new for old, new in zip(current["param_groups"], facts["groups"], strict=True)
        ]
        state = {0: kept | facts["optimizer"]} if kept or facts["optimizer"] else {}
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.history = History(**facts["history"])
        self.steps, self.stopped = facts["steps"], facts["stopped"]
        best, self._best_at = facts["best"]
        self._best = math.inf if best is None else best


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def resolved(config: TrainingConfig, text_alone: bool) -> TrainingConfig:
    """The settings with the learning rate that stands for None."""
    if config.learning_rate is not None:
        return config
    rate = LEARNING_RATES[config.kind] * (TEXT_ALONE if text_alone else 1.0)
    return config.changed(learning_rate=rate)


def make_optimizer(parameter: torch.nn.Parameter, config: TrainingConfig) -> torch.optim.Optimizer:
    """A `torch.optim` class by name (any case), or a factory's."""
    rate = config.learning_rate or LEARNING_RATES[config.kind]
    if callable(config.optimizer):
        return config.optimizer([parameter], lr=rate)
    classes: dict[str, Factory] = {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    for unfit in ("optimizer", "lbfgs", "sparseadam"):  # no steps from one dense gradient
        classes.pop(unfit, None)
    name = config.optimizer.lower()
    if name not in classes:
        raise ConfigError(
            f"optimizer {config.optimizer!r} is not in torch.optim, or makes no steps from a "
            f"gradient; expected one of {', '.join(sorted(classes))}, or a factory; choose one"
        )
    try:
        return classes[name]([parameter], lr=rate, **OPTIONS.get(name, {}))
    except (TypeError, ValueError) as error:  # such as Muon's, which wants matrices
        raise ConfigError(
            f"optimizer {config.optimizer!r} can't train a {config.kind} prompt ({error}); "
            "expected one that takes it; choose another, such as adam"
        ) from error


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> Any:
    """A `LambdaLR` by name, with a short warm-up, or a factory's."""
    if callable(config.schedule):
        schedule = config.schedule(optimizer)
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ConfigError(
                "schedule is a ReduceLROnPlateau; expected one that goes by updates alone; use "
                "patience to stop on a plateau"
            )
        return schedule
    total, warm = config.max_steps, max(1, round(WARM_UP * config.max_steps))
    shapes = {
        "constant": lambda done: 1.0,
        "linear": lambda done: 1.0 - done,
        "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * min(done, 1.0))),
    }
    shape = shapes[config.schedule]

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warm) * shape(step / total)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
