"""The held-out loss: what an entry is measured on while it is trained, to stop when it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from softlore.model import FrozenModel
from softlore.settings import TrainingConfig
from softlore.tune.distributed import SingleProcess
from softlore.tune.losses import LOSSES
from softlore.tune.objective import MemoryPlan, losses_of
from softlore.tune.passages import OnPhase
from softlore.tune.trainable_prompt import TrainablePrompt
from softlore.tune.training_data import draw_batch
from softlore.tune.trunk import TrainingData

INTERVAL = 16  # updates between two times of measuring, or `patience` where that is less
DRAWS = (-1, -2)  # in place of the numbers of updates: the same filler and examples each time


def measure_held_out(
    model: FrozenModel,
    config: TrainingConfig,
    data: TrainingData,
    trainables: Mapping[str, TrainablePrompt],
    plan: MemoryPlan,
    ranks: SingleProcess,
    on_phase: OnPhase,
) -> None:
    """Measures entries at intervals and at their end; see `TrainablePrompt.record_held_out`.

    Processes that train together share the work, and all have its sum: equal losses decide when to
    stop.
    """
    if config.patience is None:
        return
    interval = min(INTERVAL, config.patience)
    due = [
        name
        for name, trainable in trainables.items()
        if trainable.stopped
        or (trainable.steps % interval == 0 and trainable.end - trainable.steps > interval // 2)
    ]
    if not due:
        return
    on_phase("measuring", 0.0)
    values = {name: trainables[name].value() for name in due}
    losses = held_out_losses(model, config, data.to_measure(), values, due, plan, ranks)
    for name, loss in losses.items():
        trainables[name].record_held_out(loss)


def held_out_losses(
    model: FrozenModel,
    config: TrainingConfig,
    data: TrainingData,
    prompts: Mapping[str, Tensor],
    names: Sequence[str],
    plan: MemoryPlan,
    ranks: SingleProcess | None = None,
) -> dict[str, float]:
    """The training objective of each entry alone, on examples that it is not trained on.

    Held-out calls take the place of the entry's pairs where it has any, and passages that are kept
    back that of its passages and of the guard's. The same spacings are drawn each time.

    Args:
        data: what is measured on; see `TrainingData.to_measure`.
        prompts: the tensors of the entries.
        names: the entries to measure.
        ranks: processes that share the work; by default this one does it.
    """
    ranks = ranks or SingleProcess()
    alone = config.changed(company_size=1)
    runs = [
        ranks.measure(model, draw_batch(model, alone, data, prompts, names, draw), plan)
        for draw in DRAWS
    ]
    return {
        name: sum(
            value * LOSSES[loss].weight_in(config)
            for losses in runs
            for loss, value in losses_of(losses, name).items()
        )
        / len(runs)
        for name in names
    }
