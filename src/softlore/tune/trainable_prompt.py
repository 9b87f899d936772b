"""TrainablePrompt: the tensor of a prompt in training, its optimizer, schedule and stopping."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softlore.errors import ConfigError, DivergedError
from softlore.lore import Entry
from softlore.lore.styles import style_blocks
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt
from softlore.prompts.responses import KEY, HashedResponses
from softlore.settings import TrainingConfig
from softlore.settings.training import LEARNING_RATES, Factory
from softlore.tune.losses import LOSSES, TrainingHistory

# Distillation compares whole distributions, a finer target than ids: it needs a lower rate.
TEXT_ALONE = 1 / 3
# Draws change from update to update, so that a short memory serves better than torch's defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    name: {"betas": (0.8, 0.9)} for name in ("adam", "adamw", "nadam", "radam")
}
WARM_UP = 0.02  # of max_steps
MAX_CHARACTERS = 20_000  # of a text whose repetition counts as a copy; longer ones are corpora


class TrainablePrompt:
    """A trainable prompt with its optimizer state.

    The parameter is in units of `scale`, so that one learning rate suits every model.

    Attributes:
        steps: updates made.
        stopped: why it is finished; None while it is in training.
    """

    def __init__(self, name: str, value: Tensor, scale: Tensor, config: TrainingConfig) -> None:
        self.name = name
        self.config = config
        self.scale = scale.to(value.device)
        self.parameter = torch.nn.Parameter((value / self.scale).float().clone())
        self.optimizer = make_optimizer(self.parameter, config)
        self.scheduler = make_schedule(self.optimizer, config)
        self.history = TrainingHistory()
        self.steps = 0
        self.stopped: str | None = None
        self._best = math.inf
        self._best_at = 0
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
        self.optimizer.step()
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
        config = self.config
        recent = {name: self.history.recent(name) for name in LOSSES}
        counted = [value for name, value in recent.items() if LOSSES[name].counts_for_min_loss]
        fit = [value for value in counted if value is not None]
        if config.min_loss is not None and fit and sum(fit) <= config.min_loss:
            return "min_loss"
        if self.steps >= config.max_steps:
            return "max_steps"
        if config.patience is not None:
            total = sum(value for value in recent.values() if value)
            if total < self._best * 0.995:
                self._best, self._best_at = total, self.steps
            elif self.steps - self._best_at >= config.patience:
                return "patience"
        return None

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
        groups = [{k: v for k, v in g.items() if _is_plain(v)} for g in optimizer["param_groups"]]
        facts = {
            "optimizer": plain,
            "groups": groups,
            "history": dict(self.history),
            "steps": self.steps,
            "stopped": self.stopped,
            "best": [self._best if math.isfinite(self._best) else None, self._best_at],
        }
        return tensors, facts

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continues from `state()`, bit for bit."""
        self.parameter.data.copy_(tensors["parameter"])
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
        best, self._best_at = facts["best"]
        self._best = math.inf if best is None else best


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a training after an update; `waiting`: entries that have not started."""

    step: int
    trainables: Mapping[str, TrainablePrompt]
    waiting: int

    @property
    def done(self) -> float:
        """Share of all updates that have been made, 0 to 1."""
        shares = [
            1.0 if trainable.stopped else trainable.steps / trainable.config.max_steps
            for trainable in self.trainables.values()
        ]
        return sum(shares) / (len(shares) + self.waiting)


@dataclass(frozen=True)
class TrainingEstimate:
    """What remains to do: updates, seconds if none stops early, and bytes of each prompt.

    `sight`: tokens of text after which no layer sees a prefix, if every layer has a sliding window;
    else None.
    """

    updates: int
    seconds: float
    prompt_bytes: int
    sight: int | None = None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


# optimizer and schedule ------------------------------------------------------------------------


def resolved(config: TrainingConfig, text_alone: bool) -> TrainingConfig:
    """The settings with the default learning rate filled in."""
    if config.learning_rate is not None:
        return config
    rate = LEARNING_RATES[config.kind] * (TEXT_ALONE if text_alone else 1.0)
    return config.changed(learning_rate=rate)


def make_optimizer(parameter: torch.nn.Parameter, config: TrainingConfig) -> torch.optim.Optimizer:
    """A `torch.optim` class by name (any case), or what a factory returns.

    Raises:
        ConfigError: no such class, or one that can't train this parameter.
    """
    rate = config.learning_rate or LEARNING_RATES[config.kind]
    if callable(config.optimizer):
        return config.optimizer([parameter], lr=rate)
    make, options = optimizer_class(config.optimizer), OPTIONS.get(config.optimizer.lower(), {})
    try:
        optimizer: torch.optim.Optimizer = make([parameter], lr=rate, **options)
    except (TypeError, ValueError) as error:  # such as Muon's, which takes matrices only
        raise ConfigError(
            f"optimizer {config.optimizer!r} can't train a {config.kind} prompt ({error}); "
            "expected one that takes it; choose another, such as adam"
        ) from error
    return optimizer


def optimizer_class(name: str) -> Factory:
    """A class of `torch.optim` by its name, in any case. Raises ConfigError where there is none."""
    classes: dict[str, Factory] = {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    for unfit in ("optimizer", "lbfgs", "sparseadam"):  # no steps from one dense gradient
        classes.pop(unfit, None)
    if name.lower() not in classes:
        raise ConfigError(
            f"optimizer {name!r} is not in torch.optim, or makes no steps from a gradient; "
            f"expected one of {', '.join(sorted(classes))}, or a factory; choose one"
        )
    return classes[name.lower()]


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> Any:
    """A `LambdaLR` by name, with a short warm-up, or what a factory returns.

    Raises:
        ConfigError: a schedule that needs the loss.
    """
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


# the finished prompt ---------------------------------------------------------------------------


def entry_hash(entry: Entry) -> str:
    """SHA-256 of what an entry is trained on: name, text and blocks, not its activation fields."""
    data = [entry.name, entry.text, [[b.call, list(b.responses)] for b in entry.blocks]]
    return "sha256:" + hashlib.sha256(json.dumps(data).encode()).hexdigest()


def finished_prompt(
    model: FrozenModel, entry: Entry, trainable: TrainablePrompt, company: Sequence[str]
) -> SoftPrompt:
    """The trainable's tensor with its settings, company and last losses.

    The uuid follows from lore, settings and tensor: the same training gives the same one.
    """
    config, value = trainable.config, trainable.value()
    others = [name for name in company if name != entry.name] if config.company_size > 1 else []
    recent = {f"last_{name}": trainable.history.recent(name) for name in LOSSES}
    data_hash = entry_hash(entry)
    training = config.to_dict() | {
        "steps": trainable.steps,
        "stopped": trainable.stopped,
        "in_company": others,
        "alone": not others,
    }
    identity = f"{data_hash}/{json.dumps(training, sort_keys=True)}/{value.sum().item()!r}"
    return SoftPrompt(
        name=entry.name,
        kind=config.kind,
        tensor=value,
        fingerprint=model.fingerprint(config.kind),
        uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, identity)),
        base_model=model.name,
        tokenizer_fingerprint=model.tokenizer_fingerprint,
        training=training | {KEY: _hashed_responses(model, entry, config.style).as_text()},
        metrics={key: round(value, 6) for key, value in recent.items() if value is not None},
        data_hash=data_hash,
    )


def _hashed_responses(model: FrozenModel, entry: Entry, style: str | None) -> HashedResponses:
    """Hashes of what was trained on, responses or text, so that generation can avoid copies."""
    blocks = entry.blocks or (style_blocks(entry, style) if style else [])
    texts = [response for block in blocks for response in block.responses] or [entry.text]
    short = [text for text in texts if len(text) <= MAX_CHARACTERS]
    return HashedResponses.of(model.encode(text, inside=True) for text in short)
