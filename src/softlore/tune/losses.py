"""The registry of training losses: their functions, weights, examples and labels.

`LOSSES` is all that the trainer, histories, stops, checkpoints, progress tables, curves and sweeps
know of losses. To add one, write a function that picks its examples for a trunk, and register it:

    LOSSES["style"] = Loss("style", response_nll, "ids", draw_style, weight="style_weight", ...)

with `style_weight` a field of `TrainingConfig`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from softlore.context import Branch
from softlore.measure.losses import RowLoss, response_nll, teacher_kl
from softlore.model import FrozenModel
from softlore.settings import TrainingConfig
from softlore.tune.examples import DISTILLED
from softlore.tune.trunk import Drawn, Example, Target, Trunk

GUARDS = {"prefix": 2, "embedding": 4}  # unrelated passages a trunk; embedding prompts drift more
COMPANY_PAIRS = 2  # pairs in a trunk, for a prompt that is not being trained
SMOOTH = 5  # updates over which `min_loss` and displays average


@dataclass(frozen=True)
class LossTerm:
    """One branch's share of the loss.

    Attributes:
        owners: names of the entries that it belongs to; several for a loss of a whole trunk.
        loss: its name in `LOSSES`.
        weight: of the mean over the branch's rows.
        target: what each row is compared with: ids, or a teacher's hidden states.
    """

    owners: tuple[str, ...]
    loss: str
    weight: float
    target: Target


@dataclass(frozen=True)
class Loss:
    """A term of the training objective.

    Attributes:
        name: its key in `LOSSES` and in histories; a prompt's metrics have `last_NAME`.
        rows: the loss of each row, from hidden states `[R, hidden]` and targets.
        target: what the targets are.
        draw: for a trunk and the names that own the loss, its examples and their branches.
        weight: the field of `TrainingConfig` that holds its weight; None: 1.
        per_trunk: drawn once for all prompts of a trunk, not for each entry.
        label: heading of its column in tables.
        legend: its name in plots.
        curve: the curve of the studio that it is drawn as; of several losses of one curve the
            first that an entry has is shown.
        counts_for_min_loss: whether it counts for `min_loss`. `patience` counts all losses.
        swept: the range that `softlore sweep` tries its weight in by default.
    """

    name: str
    rows: RowLoss
    target: Literal["ids", "hidden_states"]
    draw: Callable[[Trunk, tuple[str, ...]], Sequence[Drawn]]
    weight: str | None = None
    per_trunk: bool = False
    label: str = ""
    legend: str = ""
    curve: str = "loss"
    counts_for_min_loss: bool = False
    swept: str | None = None
    unit: str = "nats a token"

    def weight_in(self, config: TrainingConfig) -> float:
        """Its weight by the settings of a training."""
        return float(getattr(config, self.weight)) if self.weight else 1.0


class TrainingHistory(dict[str, list[float]]):
    """Losses of an entry's updates by their names in `LOSSES`, nats a token."""

    def __init__(self, values: Mapping[str, Iterable[float]] | None = None) -> None:
        super().__init__({name: [] for name in LOSSES})
        self.update({name: list(losses) for name, losses in (values or {}).items()})

    def recent(self, loss: str) -> float | None:
        """The mean of the last updates; None if there are none."""
        values = self[loss][-SMOOTH:]
        return sum(values) / len(values) if values else None

    def shown(self, curve: str = "loss") -> str | None:
        """The loss that a curve shows: the first of that curve that the entry has."""
        names = (name for name, loss in LOSSES.items() if loss.curve == curve)
        return next((name for name in names if self[name]), None)

    def last(self, curve: str) -> float | None:
        """The last value on a curve; None if the entry has no loss of that curve."""
        shown = self.shown(curve)
        return None if shown is None else self[shown][-1]


def curve_names() -> tuple[str, ...]:
    """The curves that losses are shown as, each once."""
    return tuple(dict.fromkeys(loss.curve for loss in LOSSES.values()))


def last_loss(metrics: Mapping[str, Any], curve: str = "loss") -> Any:
    """From a prompt's metrics, the last value of the loss that a curve shows; else None."""
    keys = (f"last_{name}" for name, loss in LOSSES.items() if loss.curve == curve)
    return next((metrics[key] for key in keys if key in metrics), None)


def draw_terms(trunk: Trunk) -> list[tuple[Branch, LossTerm]]:
    """Draws the branches of a trunk, each with its loss: those of each entry, then of the trunk."""
    entries = [(name,) for name in trunk.group if name in trunk.data.examples]
    drawn: list[tuple[Branch, LossTerm]] = []
    for per_trunk, owners in (False, entries), (True, [tuple(trunk.group)]):
        losses = [loss for loss in LOSSES.values() if loss.per_trunk == per_trunk]
        for names in owners:
            for loss in losses:
                own = loss.draw(trunk, names)
                weight = loss.weight_in(trunk.config)
                drawn += [
                    (one.branch, loss_term(one.example, names, loss.name, weight / len(own)))
                    for one in own
                ]
    return drawn


def loss_term(
    example: Example, owners: tuple[str, ...], loss: str, weight: float = 1.0
) -> LossTerm:
    """The term of an example's branch; see `LossTerm`."""
    return LossTerm(owners, loss, weight, example.target)


def row_losses(model: FrozenModel, hidden: Tensor, terms: Sequence[LossTerm]) -> Tensor:
    """Loss of each row `[R]`, nats, of hidden states `[R, hidden]` of the terms' branches."""
    losses = hidden.new_zeros(len(hidden), dtype=torch.float32)
    functions = [LOSSES[term.loss].rows for term in terms for _ in range(len(term.target))]
    for function in dict.fromkeys(functions):
        rows = torch.tensor([of_row is function for of_row in functions], device=hidden.device)
        targets = [term.target for term in terms if LOSSES[term.loss].rows is function]
        values = function(model, hidden[rows], _stack(targets, hidden.device))
        losses = losses.masked_scatter(rows, values)
    return losses


def _stack(targets: Sequence[Target], device: torch.device) -> Tensor:
    return torch.cat([torch.as_tensor(target, device=device) for target in targets])


# the losses ------------------------------------------------------------------------------------


def _draw_pairs(trunk: Trunk, names: tuple[str, ...]) -> Sequence[Drawn]:
    (name,) = names
    limit = trunk.config.pairs_per_step if name in trunk.learning else COMPANY_PAIRS
    return trunk.sample_pairs(trunk.data.examples[name].pairs, limit)


def _draw_distillation(trunk: Trunk, names: tuple[str, ...]) -> Sequence[Drawn]:
    (name,) = names
    examples = trunk.data.examples[name]
    if name not in trunk.learning:
        return []
    limit = DISTILLED["beside pairs" if examples.pairs else "alone"]
    return trunk.sample_passages(examples.passages, limit, 0.5 if examples.lore else 0.0)


def _draw_guard(trunk: Trunk, names: tuple[str, ...]) -> Sequence[Drawn]:
    """For pairs only: the teacher of distillation shows by itself how lore changes other text.

    Behind filler that was read, one passage is what the filler goes on with.
    """
    limit = GUARDS[trunk.config.kind] if trunk.has_pairs else 0
    if trunk.continuation is None or not limit or not trunk.config.drift_guard:
        return trunk.sample(trunk.data.guard, limit, trunk.soft)
    passage, parent = trunk.continuation
    others = trunk.sample(trunk.data.guard, limit - 1, trunk.soft)
    return [*others, Drawn(passage, passage.branch(parent))]


def _draw_continuations(trunk: Trunk, names: tuple[str, ...]) -> Sequence[Drawn]:
    (name,) = names
    told = trunk.data.examples[name].continuations
    if told is None or name not in trunk.learning:
        return []
    return trunk.sample_passages(told.passages, told.drawn, 0.5)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            "response",
            response_nll,
            "ids",
            _draw_pairs,
            label="recall",
            legend="responses",
            counts_for_min_loss=True,
        ),
        Loss(
            "guard",
            teacher_kl,
            "hidden_states",
            _draw_guard,
            weight="drift_guard",
            per_trunk=True,
            label="drift",
            legend="drift",
            curve="drift",
            swept="0.25..4:log",
        ),
        Loss(
            "distil",
            teacher_kl,
            "hidden_states",
            _draw_distillation,
            weight="distil_weight",
            label="distilled",
            legend="text, distilled",
        ),
        Loss(
            "continuation",
            teacher_kl,
            "hidden_states",
            _draw_continuations,
            weight="continuation_guard",
            label="after it",
            legend="what follows",
            curve="drift",
        ),
    )
}
