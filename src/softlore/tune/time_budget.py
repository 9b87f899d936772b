"""What a time budget has room for: whether texts are distilled, and what the end takes.

Where there are calls and little time, the passages of the teacher cost more than they teach: they
are written first, and make updates longer. Three entries of SmolLM2-135M in 107 seconds on two
cores, in nats a token right behind the prompt:

    in an update of an entry      updates    recall
    11 calls and 4 passages          16       0.50
    4 calls and a passage            33       0.40
    4 calls                          75       0.17
    11 calls                         50       0.11
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from softlore.lore import Entry
from softlore.model import FrozenModel
from softlore.model.processor import one_thread
from softlore.settings import TrainingConfig
from softlore.tune.distributed import SingleProcess
from softlore.tune.examples import EntryExamples
from softlore.tune.execution import Execution
from softlore.tune.initial import initial_value
from softlore.tune.lengths import passage_length
from softlore.tune.losses import GUARDS
from softlore.tune.objective import run_in_parts
from softlore.tune.training_data import draw_batch
from softlore.tune.trunk import TrainingData

ENOUGH = 40  # updates of an entry with passages
WRITING = 1 / 3  # of the time that a token takes in an update: writing it, and reading it once
READING = 0.5  # of that time: reading it, without a gradient, in smaller batches
BESIDE = 1.3  # whole time by that of updates alone: passages are written, held-out losses measured
GROUP = 2.5  # prompts in a trunk, on average


def fit_to_time(
    model: FrozenModel,
    config: TrainingConfig,
    entries: Sequence[Entry],
    data: TrainingData,
    execution: Execution,
) -> TrainingConfig:
    """The settings without distillation, if a time budget has no room for `ENOUGH` updates with it.

    Where an entry has no calls, or another weight of distillation than the default was asked for,
    the settings stay as they are.

    Args:
        entries: those to train.
        data: their examples; no passage need be written yet.
    """
    examples = {entry.name: data.examples[entry.name] for entry in entries}
    distilled = any(one.source is not None for one in examples.values())
    asked_for = config.distil_weight != TrainingConfig().distil_weight
    has_pairs = all(one.pairs for one in examples.values())
    if execution.deadline is None or asked_for or not has_pairs or not distilled:
        return config
    sharing = execution.processes_for(model, len(entries))
    seconds = _seconds_a_token(model, config, entries[0], examples, execution, sharing)
    writing = [source for one in examples.values() for source in one.sources]
    first = sum(source.wanted(0) * source.length for source in writing)
    left = execution.deadline - execution.clock() - WRITING * seconds * first
    turns = -(-len(examples) // config.max_active)
    updates = left / (BESIDE * seconds * turns * _tokens(model, config, examples))
    fits = int(updates >= min(ENOUGH, config.max_steps))
    (fits,) = (execution.ranks or SingleProcess()).broadcast_numbers(fits)
    return config if fits else config.changed(distil_weight=0)


def final_updates(model: FrozenModel, config: TrainingConfig, data: TrainingData) -> float:
    """How many updates take as long as the final measuring of the prompts.

    That is their held-out loss, and what they gain over nothing and the text on all calls.
    """
    examples = data.examples.values()
    calls = sum(len(pair.ids) for one in examples for pair in [*one.pairs, *one.held_out])
    return 1.5 + 3 * READING * calls / max(1.0, _tokens(model, config, data.examples))


def _tokens(
    model: FrozenModel, config: TrainingConfig, examples: Mapping[str, EntryExamples]
) -> float:
    """Tokens of an update's branches, about."""
    length, total = passage_length(model, config), 0.0
    for one in list(examples.values())[: config.max_active]:
        if one.pairs:
            mean = sum(len(pair.ids) for pair in one.pairs) / len(one.pairs)
            total += min(config.pairs_per_step, len(one.pairs)) * mean
        total += sum(source.drawn * source.length for source in one.sources)
        if config.drift_guard:
            total += GUARDS[config.kind] * length / min(GROUP, config.company_size)
    return total


def _seconds_a_token(
    model: FrozenModel,
    config: TrainingConfig,
    entry: Entry,
    examples: Mapping[str, EntryExamples],
    execution: Execution,
    sharing: int,
) -> float:
    """Seconds that an update takes for each token of its branches: of one entry's calls alone.

    Args:
        sharing: processes that are to share the updates.
    """
    plain = config.changed(placement="classic", max_spacing=0, drift_guard=0, company_size=1)
    prompts = {entry.name: initial_value(model, entry, plain).requires_grad_()}
    pairs = examples[entry.name].pairs
    data = TrainingData({entry.name: EntryExamples(entry.name, pairs)}, [], [])
    batch = draw_batch(model, plain, data, prompts, [entry.name], 0)
    with one_thread() if sharing > 1 else nullcontext():
        plan = execution.plan(model, batch)  # runs it for the first time, which takes longer
        started = execution.clock()
        run_in_parts(model, batch, plan)
        return max(execution.clock() - started, 1e-6) / batch.tokens / sharing
