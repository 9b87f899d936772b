"""How large updates are where a time budget has room for few of them.

Many small updates teach more than a few large ones in the same time. On SmolLM2-135M, three entries
in 107 seconds, recall right behind the prompt:

    calls, passages of an entry in an update    updates    nats a token
    12 and 4                                       16          0.50
    4 and 1                                        33          0.40
    4 and none                                     75          0.17

Passages keep the story as the text would have it, so they are left out last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from softlore.lore import Entry
from softlore.model import FrozenModel
from softlore.settings import TrainingConfig
from softlore.tune.distributed import SingleProcess
from softlore.tune.examples import CallResponse, EntryExamples, passages_per_step
from softlore.tune.execution import Execution
from softlore.tune.initial import initial_value
from softlore.tune.lengths import passage_length
from softlore.tune.losses import GUARDS
from softlore.tune.objective import run_in_parts
from softlore.tune.passages import FIRST
from softlore.tune.training_data import draw_batch
from softlore.tune.trunk import TrainingData

ENOUGH = 40  # updates of an entry
SMALL = 4  # calls of an entry in a small update
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
    """The settings of the largest updates of which a time budget has room for `ENOUGH`.

    Settings that differ from their defaults were asked for, and stay as they are.

    Args:
        entries: those to train.
        data: their examples; no passage need be written yet.
    """
    examples = {entry.name: data.examples[entry.name] for entry in entries}
    sizes = _sizes(config, examples)
    if len(sizes) == 1 or execution.deadline is None:
        return config
    seconds = _seconds_a_token(model, config, entries, examples, execution)
    left = execution.deadline - execution.clock()
    waves = -(-len(examples) // config.max_active)
    chosen = 0
    for size in sizes[:-1]:
        rest = left - seconds * WRITING * _tokens_first(model, size, examples)
        updates = rest / (BESIDE * seconds * waves * _tokens(model, size, examples))
        if updates >= min(ENOUGH, config.max_steps):
            break
        chosen += 1
    (chosen,) = (execution.ranks or SingleProcess()).broadcast_numbers(chosen)
    return sizes[chosen]


def saving_updates(model: FrozenModel, config: TrainingConfig, data: TrainingData) -> float:
    """How many updates take as long as measuring the prompts at the end.

    That is their held-out loss, and what they gain over nothing and the text on all calls.
    """
    examples = data.examples.values()
    calls = sum(len(pair.ids) for one in examples for pair in [*one.pairs, *one.held_out])
    return 1.5 + 3 * READING * calls / max(1.0, _tokens(model, config, data.examples))


def _sizes(config: TrainingConfig, examples: Mapping[str, EntryExamples]) -> list[TrainingConfig]:
    """Settings of ever smaller updates, the given ones first."""
    usual = TrainingConfig()
    measurable = any(one.pairs or one.lore for one in examples.values())
    if config.pairs_per_step != usual.pairs_per_step or not measurable:
        return [config]
    small = config.changed(pairs_per_step=SMALL)
    if config.distil_weight != usual.distil_weight or not all(e.pairs for e in examples.values()):
        return [config, small]
    return [config, small, small.changed(distil_weight=0)]


def _tokens(
    model: FrozenModel, config: TrainingConfig, examples: Mapping[str, EntryExamples]
) -> float:
    """Tokens of an update's branches, about."""
    length, total = passage_length(model, config), 0.0
    for one in list(examples.values())[: config.max_active]:
        if one.pairs:
            mean = sum(len(pair.ids) for pair in one.pairs) / len(one.pairs)
            total += min(config.pairs_per_step, len(one.pairs)) * mean
        if one.source is not None and config.distil_weight:
            total += passages_per_step(config, bool(one.pairs)) * length
        if config.drift_guard:
            total += GUARDS[config.kind] * length / min(GROUP, config.company_size)
    return total


def _tokens_first(
    model: FrozenModel, config: TrainingConfig, examples: Mapping[str, EntryExamples]
) -> float:
    """Tokens of the passages that are written before the first update, about."""
    if not config.distil_weight:
        return 0.0
    sources = [(one, one.source) for one in examples.values() if one.source is not None]
    passages = sum(
        source.n_held_out + FIRST * passages_per_step(config, bool(one.pairs))
        for one, source in sources
    )
    return passages * passage_length(model, config)


def _seconds_a_token(
    model: FrozenModel,
    config: TrainingConfig,
    entries: Sequence[Entry],
    examples: Mapping[str, EntryExamples],
    execution: Execution,
) -> float:
    """Seconds that an update takes for each token of its branches, of a small one that is run."""
    entry = next(e for e in entries if examples[e.name].pairs or examples[e.name].lore)
    name, one = entry.name, examples[entry.name]
    pairs = one.pairs or [CallResponse(list(one.lore[: config.passage_tokens]), 1)]
    plain = config.changed(
        placement="classic", max_spacing=0, drift_guard=0, pairs_per_step=SMALL, company_size=1
    )
    prompts = {name: initial_value(model, entry, plain).requires_grad_()}
    data = TrainingData({name: EntryExamples(name, pairs)}, [], [])
    batch = draw_batch(model, plain, data, prompts, [name], 0)
    plan = execution.plan(model, batch)  # runs it for the first time, which takes longer
    started = execution.clock()
    run_in_parts(model, batch, plan)
    return max(execution.clock() - started, 1e-6) / batch.tokens
