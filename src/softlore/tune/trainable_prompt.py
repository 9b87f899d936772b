"""TrainablePrompt: the tensor of a prompt in training, its optimizer, schedule and stopping."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softlore.errors import DivergedError
from softlore.settings import TrainingConfig
from softlore.tune.losses import LOSSES, TrainingHistory
from softlore.tune.optimizer import Schedule, make_optimizer, make_scheduler

MIN_GAIN = 0.005  # share of the best held-out loss by which a better one counts as a gain
FALL = 0.25  # of the updates made so far: over these the learning rate falls once nothing is gained


class TrainablePrompt:
    """A trainable prompt with its optimizer state.

    The parameter is in units of `scale`, so that one learning rate suits every model.

    Args:
        value: what the prompt starts from.
        kept: a mask of the numbers that keep what they start from; see `kept_part`.

    Attributes:
        steps: updates made.
        end: the last update, as things are.
        stopped: why it is finished; None while it is in training.
        best: the lowest held-out loss so far, nats a token.
    """

    def __init__(
        self,
        name: str,
        value: Tensor,
        scale: Tensor,
        config: TrainingConfig,
        kept: Tensor | None = None,
    ) -> None:
        self.name, self.config, self.kept = name, config, kept
        self.scale = scale.to(value.device)
        self.parameter = torch.nn.Parameter((value / self.scale).float().clone())
        self.optimizer = make_optimizer(self.parameter, config)
        shape = config.schedule
        self.schedule = Schedule(shape, config.max_steps) if isinstance(shape, str) else None
        self.scheduler = make_scheduler(self.optimizer, config, self.schedule)
        self.history = TrainingHistory()
        self.steps = 0
        self._planned_end, self._why_end = config.max_steps, "max_steps"
        self.end = config.max_steps
        self.stopped: str | None = None if config.max_steps else "max_steps"
        self.best, self.best_step = math.inf, 0
        self._best_value = self.parameter.detach().clone()
        self._gained_at = 0
        self._live: Tensor | None = None
        self._previous = self.parameter.detach().clone()  # before the last update

    def value(self) -> Tensor:
        """The tensor itself, float32, detached."""
        return self.parameter.detach() * self.scale

    def live(self) -> Tensor:
        """The tensor as an autograd leaf that collects the gradient of this update."""
        self._live = self.value().requires_grad_()
        return self._live

    def reduce_gradient(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Replaces the gradient by `reduce` of it, such as a sum over processes.

        Zeros are reduced where this process ran no branch of the prompt.
        """
        assert self._live is not None
        gradient = self._live.grad
        self._live.grad = reduce(torch.zeros_like(self._live) if gradient is None else gradient)

    def is_finite(self, losses: Mapping[str, float]) -> bool:
        """Whether losses and the gradient that `live()` has collected are finite numbers."""
        gradient = None if self._live is None else self._live.grad
        finite = all(map(math.isfinite, losses.values()))
        return gradient is not None and finite and bool(torch.isfinite(gradient).all())

    def step_back(self) -> DivergedError:
        """Restores the tensor from before the last update, and returns the error to raise."""
        self.parameter.data.copy_(self._previous)
        return DivergedError(
            f"entry {self.name!r} met a loss or gradient that is not a number at update "
            f"{self.steps + 1}; expected finite ones; its last good state is kept; lower "
            "learning_rate (--learning-rate), or train in float32"
        )

    def update(self, losses: Mapping[str, float]) -> None:
        """One optimizer step from the gradient that `live()` has collected.

        Raises:
            DivergedError: NaN or infinity; the tensor is the last one whose losses were finite.
        """
        if not self.is_finite(losses) or self._live is None or self._live.grad is None:
            raise self.step_back()
        self._previous.copy_(self.parameter.detach())
        self.parameter.grad = self._live.grad * self.scale
        if self.kept is not None:  # Muon's update of a matrix depends on all of its gradient
            self.parameter.grad.masked_fill_(self.kept, 0.0)
        self.optimizer.step()
        if self.kept is not None:  # also against weight decay
            self.parameter.data.copy_(torch.where(self.kept, self._previous, self.parameter.data))
        if not bool(torch.isfinite(self.value()).all()):
            raise self.step_back()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._live = None
        self.steps += 1
        for loss, value in losses.items():
            self.history[loss].append(value)
        self.stopped = self._reason_to_stop()

    def _reason_to_stop(self) -> str | None:
        recent = {name: self.history.recent(name) for name in LOSSES}
        counted = [value for name, value in recent.items() if LOSSES[name].counts_for_min_loss]
        fit = [value for value in counted if value is not None]
        if self.config.min_loss is not None and fit and sum(fit) <= self.config.min_loss:
            return "min_loss"
        if self.steps < self.end:
            return None
        return self._why_end if self.end == self._planned_end else "time_budget"

    @property
    def planned(self) -> int:
        """Updates still to make if there is time for all of them."""
        return self._planned_end - self.steps

    def limit(self, updates: int) -> None:
        """Makes at most so many more updates, in which the learning rate falls to 0."""
        self.end = min(self._planned_end, self.steps + max(0, updates))
        if self.schedule is not None:
            self.schedule.end = self.end
            rate = self.schedule(self.steps)
            for group, base in zip(
                self.optimizer.param_groups, self.scheduler.base_lrs, strict=True
            ):
                group["lr"] = base * rate

    def _return_to_best(self) -> None:
        if math.isfinite(self.best):
            self.parameter.data.copy_(self._best_value)

    def record_held_out(self, loss: float) -> None:
        """Notes the held-out loss of the present state, nats a token.

        Where nothing was gained for `patience` updates, the rate falls and training ends; a
        finished prompt returns to its best state.
        """
        if loss < self.best * (1 - MIN_GAIN) or math.isinf(self.best):
            self._gained_at = self.steps
        if loss < self.best:
            self.best, self.best_step = loss, self.steps
            self._best_value.copy_(self.parameter.detach())
        patience = self.config.patience
        if self.stopped is not None:
            self._return_to_best()
        elif patience is not None and self.steps - self._gained_at >= patience:
            end = self.steps + max(1, round(FALL * self.steps))
            if end < self.end:
                self.end, self._planned_end, self._why_end = end, end, "patience"
                if self.schedule is not None:
                    self.schedule.end_at(self.steps, end)

    # checkpoints -------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON that `restore` needs."""
        tensors = {
            "parameter": self.parameter.detach(),
            "best": self._best_value,
            "scale": self.scale,
        }
        optimizer = self.optimizer.state_dict()
        plain: dict[str, Any] = {}
        for key, value in optimizer["state"].get(0, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}"] = value
            else:
                plain[key] = value
        groups = [{k: v for k, v in g.items() if _is_plain(v)} for g in optimizer["param_groups"]]
        facts = {
            "optimizer": plain,
            "groups": groups,
            "history": dict(self.history),
            "steps": self.steps,
            "stopped": self.stopped,
            "best": [self.best if math.isfinite(self.best) else None, self.best_step],
            "gained_at": self._gained_at,
            "end": [self.end, self._planned_end, self._why_end],
            "schedule": self.schedule and [self.schedule.start, self.schedule.level],
        }
        return tensors, facts

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continues from `state()`, bit for bit."""
        self.end, self._planned_end, self._why_end = facts["end"]
        if self.schedule is not None:
            self.schedule.end = self.end
            self.schedule.start, self.schedule.level = facts["schedule"]
        self.scale = tensors["scale"].to(self.scale.device)
        self.parameter.data.copy_(tensors["parameter"])
        self._best_value.copy_(tensors["best"])
        self._previous.copy_(tensors["parameter"])
        prefix = "optimizer."
        saved = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        with warnings.catch_warnings():  # torch expects an optimizer step between two of these
            warnings.simplefilter("ignore")
            for _ in range(facts["steps"]):  # works for schedules of any class
                self.scheduler.step()
        current = self.optimizer.state_dict()
        groups = [
            old | new for old, new in zip(current["param_groups"], facts["groups"], strict=True)
        ]
        state = {0: saved | facts["optimizer"]} if saved or facts["optimizer"] else {}
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.history = TrainingHistory(facts["history"])
        self.steps, self.stopped = facts["steps"], facts["stopped"]
        self._gained_at = facts["gained_at"]
        best, self.best_step = facts["best"]
        self.best = math.inf if best is None else best


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a training after an update.

    Attributes:
        waiting: entries that have not started.
        seconds_left: until the last update, if no entry stops early; None if it is not known.
    """

    step: int
    trainables: Mapping[str, TrainablePrompt]
    waiting: int
    seconds_left: float | None = None

    @property
    def done(self) -> float:
        """Share of all updates that have been made, 0 to 1."""
        shares = [
            1.0 if trainable.stopped else trainable.steps / max(1, trainable.end)
            for trainable in self.trainables.values()
        ]
        return sum(shares) / (len(shares) + self.waiting)


@dataclass(frozen=True)
class TrainingEstimate:
    """What remains to do: updates and seconds if none stops early, and bytes of each prompt.

    `seconds` is None before the first update. `sight`: tokens of text after which no layer sees a
    prefix, if every layer has a sliding window; else None.
    """

    updates: int
    seconds: float | None
    prompt_bytes: int
    sight: int | None = None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
