"""Trains a set of prompts together over one frozen model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar, cast, overload

import torch
from torch import Tensor

from softlore.decode.conditioning import Conditioning
from softlore.errors import DivergedError
from softlore.lore import Entry
from softlore.model import FrozenModel, prompt_shape
from softlore.prompts import SoftPrompt
from softlore.settings import TrainingConfig, arguments
from softlore.tune.checkpoint import (
    Checkpointing,
    CheckpointTimer,
    exclusive_run,
    find_checkpoint,
    flat,
    make_signature,
    nested,
    save_checkpoint,
    uninterrupted,
)
from softlore.tune.distributed import Ranks, SingleProcess
from softlore.tune.examples import Blocks, source_of
from softlore.tune.execution import Execution, Pace
from softlore.tune.finished_prompt import finished_prompt
from softlore.tune.forked import forked
from softlore.tune.held_out import measure_held_out
from softlore.tune.initial import initial_value, kept_part, scale_of
from softlore.tune.lengths import check_room
from softlore.tune.objective import MemoryPlan, TrainingBatch, losses_of
from softlore.tune.optimizer import resolved
from softlore.tune.passages import is_writing_due
from softlore.tune.time_budget import final_updates, fit_to_time
from softlore.tune.trainable_prompt import TrainablePrompt, TrainingEstimate, TrainingProgress
from softlore.tune.training_data import Company, draw_batch, make_training_data, write_ahead
from softlore.tune.trunk import TrainingData
from softlore.tune.turns import TensorsOnDemand, Turns

FITTED = ("distil_weight",)  # settings that a time budget decides
PromptSet = dict[str, SoftPrompt]
Trained = TypeVar("Trained", SoftPrompt, PromptSet)


class WorldInfoTrainer(Generic[Trained]):
    """Trains soft prompts for a model: one, or a set by name.

    Args:
        model: the frozen model.
        blocks: `(call, [responses])` pairs of a single entry; trains one prompt.
        entries: entries of a lorebook; trains a set.
        corpus: a plain text, whose style one prompt learns; or texts by name, for a set.
        conditionings: by name, what is distilled as it is into a set: a hard prompt, a control
            code, or several with a strength each.
        name: of the one prompt from `blocks` or `corpus`.
        company: finished prompts beside those in training.
        checkpointing: where and how often progress is saved.
        execution: time budget, memory and processes.
        on_step: called after each update; return True to stop there, with a checkpoint.
        on_phase: called while something else is done, such as writing passages, with its name and
            the share that is done, 0 to 1.
        settings: fields of `TrainingConfig`.

    Raises:
        ConfigError, LoreError: settings or lore that can't be trained.
    """

    @overload
    def __init__(
        self: WorldInfoTrainer[SoftPrompt], model: FrozenModel, blocks: Blocks, **options: Any
    ) -> None: ...
    @overload
    def __init__(
        self: WorldInfoTrainer[SoftPrompt], model: FrozenModel, *, corpus: str, **options: Any
    ) -> None: ...
    @overload
    def __init__(
        self: WorldInfoTrainer[PromptSet], model: FrozenModel, blocks: None = None, **options: Any
    ) -> None: ...
    @arguments.expecting(**arguments.TRAINED)
    def __init__(
        self,
        model: FrozenModel,
        blocks: Blocks | None = None,
        *,
        entries: Sequence[Entry] | None = None,
        corpus: str | Mapping[str, str] | None = None,
        conditionings: Mapping[str, Conditioning] | None = None,
        name: str = "prompt",
        company: Company | None = None,
        checkpointing: Checkpointing | None = None,
        execution: Execution | None = None,
        on_step: Callable[[TrainingProgress], bool | None] | None = None,
        on_phase: Callable[[str, float], None] | None = None,
        **settings: Any,
    ) -> None:
        self.model = model
        self._source = source_of(blocks, entries, corpus, conditionings, name)
        self.config = self.given = self._source.adapt(TrainingConfig.of(settings))
        self.entries: list[Entry] = self._source.entries
        self._by_name = {entry.name: entry for entry in self.entries}
        company = company or Company()
        self.company = dict(company.prompts)
        self.company_entries = [e for e in company.entries if e.name in self.company]
        self.checkpointing = checkpointing or Checkpointing()
        self.execution = execution or Execution()
        self.ranks: SingleProcess = self.execution.ranks or SingleProcess()
        self.on_step = on_step
        self.on_phase = on_phase or (lambda name, done: None)
        self.step = 0
        self.trainables: dict[str, TrainablePrompt] = {}
        self.data = TrainingData({}, [], [])  # until `prepare`
        self.plan: MemoryPlan | None = None
        self.pace = Pace()
        self._turns = Turns(list(self._by_name), self.config)
        self._prepared = False
        company.check(self.model, self.config.kind, self.entries)
        check_room(self.model, self.config)
        self._shape = prompt_shape(self.model, self.config.kind, self.config.n_tokens)

    def train(self) -> Trained:
        """Trains to the end, resuming from the checkpoint if there is one.

        Returns:
            A SoftPrompt (from `blocks`, or a single `corpus`), else `{name: SoftPrompt}`.

        Raises:
            DivergedError: after saving the last good state.
        """
        self.prepare()
        with exclusive_run(self.checkpointing.file if self.ranks.first else None):
            try:
                processes = self.execution.processes_for(self.model, len(self.entries))
                with forked(processes, self.ranks, self._run_copy) as self.ranks:
                    self._run()
            except (KeyboardInterrupt, DivergedError):
                self.save()
                raise
            self.save()
        prompts = self.prompts()
        return cast(Trained, next(iter(prompts.values())) if self._source.single else prompts)

    def _run_copy(self, ranks: Ranks) -> None:
        """In a copy of this process: makes the same updates, in silence."""
        self.ranks, self.on_step, self.on_phase = ranks, None, lambda name, done: None
        self._run()

    def _run(self) -> None:
        timer = CheckpointTimer(self.checkpointing.seconds)
        with self.ranks.joint_stop():
            while self.unfinished() and not self.ranks.stopping:  # all are at the same update
                self.update()
                timer.run_when_due(self.save)
                if self.on_step and self.on_step(self.progress()) and self.ranks.request_stop():
                    return
        if self.ranks.interrupted:
            raise KeyboardInterrupt

    def prepare(self) -> None:
        """Makes examples and trainables, and resumes from the checkpoint if there is one."""
        if self._prepared:
            return
        # Before the examples: a checkpoint that does not fit is an error at once.
        saving = self.checkpointing
        checkpoint = find_checkpoint(saving.file, self._signature(), saving.overwrite)
        if checkpoint is not None:
            self._resume(*checkpoint)
        else:
            self.data = self._make_data()
            entries, execution = self.entries, self.execution
            self.config = fit_to_time(self.model, self.config, entries, self.data, execution)
            if self.config != self.given:
                self.data = self._make_data()
            self._admit()
            if self.unfinished():
                self.on_phase("timing an update", 0.0)
                plan = self.plan or self.execution.plan(self.model, self.draw())
                self.plan = MemoryPlan(*self.ranks.broadcast_numbers(*plan.to_dict().values()))
            self.save()  # an unwritable disk is an error now, not at the end
        self._prepared = True

    def update(self) -> None:
        """One update of those whose turn it is: draw a tree batch, run it, step each optimizer.

        Raises DivergedError for NaN or infinity; then no entry has made this update.
        """
        assert self.plan is not None
        started = self.execution.clock()
        batch, learning = self.draw(), self._learning()
        losses = self.ranks.run(self.model, batch, self.plan, learning.values())
        by_name = {name: losses_of(losses, name) for name in learning}
        seconds, unlimited = self.execution.clock() - started, self.execution.deadline is None
        in_time = unlimited or self._keep_to_budget(self.pace.seconds or seconds)
        with uninterrupted():
            faults = [
                trainable.step_back()
                for name, trainable in learning.items()
                if not trainable.is_finite(by_name[name])
            ]
            if faults:
                raise faults[0]
            for name, trainable in learning.items():
                trainable.update(by_name[name])
            self.step += 1
            measure_held_out(
                self.model, self.config, self.data, learning, self.plan, self.ranks, self.on_phase
            )
            still = {name: t for name, t in learning.items() if not t.stopped}
            self._write_passages(
                {n: t.steps for n, t in still.items() if is_writing_due(t.steps, t.end)}
            )
            self._admit(in_time)
        self.pace.add(seconds, self.execution.clock() - started - seconds)

    def save(self) -> None:
        """Writes the checkpoint, if there is a file for it."""
        path = self.checkpointing.file
        if path is None or self.plan is None or not self.ranks.first:
            return
        states = {name: trainable.state() for name, trainable in self.trainables.items()}
        facts = {
            "signature": self._signature(),
            "step": self.step,
            "config": {name: getattr(self.config, name) for name in FITTED},
            "share": self._turns.share,
            "plan": self.plan.to_dict(),
            "trainables": {name: facts for name, (_, facts) in states.items()},
            "passages": {source.name: source.batches for source in self.data.sources},
            "filler": self.data.filler_store and self.data.filler_store.state(),
        }
        tensors: dict[str, Tensor] = {}
        for name, (state, _) in states.items():
            tensors |= flat(state, f"trainables/{name}")
        for source in self.data.sources:
            tensors |= flat(source.state(), f"passages/{source.name}")
        save_checkpoint(path, tensors, facts)

    def prompts(self) -> PromptSet:
        """The prompts as trained so far."""
        together = [*self._by_name, *self.company]
        return {
            name: finished_prompt(self.model, entry, self.trainables[name], together)
            for name, entry in self._by_name.items()
            if name in self.trainables
        }

    def unfinished(self) -> bool:
        return bool(self._learning())

    def progress(self) -> TrainingProgress:
        left = self.pace.seconds and self.pace.seconds * self._turns.updates_left(self.trainables)
        waiting = len(self.entries) - len(self.trainables)
        return TrainingProgress(self.step, self.trainables, waiting, left)

    def estimate(self) -> TrainingEstimate:
        """What remains to do; call `prepare` first."""
        sight = self.model.family.sight if self.config.kind == "prefix" else None
        updates, size = self._turns.updates_left(self.trainables), 4 * math.prod(self._shape)
        return TrainingEstimate(updates, self.progress().seconds_left, size, sight)

    def draw(self) -> TrainingBatch:
        """The tree batch of the next update; call `prepare` first."""
        learning = self._learning()
        of_company = {name: partial(getattr, p, "tensor") for name, p in self.company.items()}
        of_trainables: dict[str, Callable[[], Tensor]] = {
            name: trainable.live if name in learning else trainable.value
            for name, trainable in self.trainables.items()
        }
        prompts = TensorsOnDemand(of_company | of_trainables)
        return draw_batch(self.model, self.config, self.data, prompts, list(learning), self.step)

    # internals ---------------------------------------------------------------------------------

    def _make_data(self) -> TrainingData:
        entries = [*self.entries, *self.company_entries]
        return make_training_data(self.model, self.config, self._source, entries, self.company)

    def _learning(self) -> dict[str, TrainablePrompt]:
        """Those of the next update."""
        return {n: t for n, t in self.trainables.items() if n in self._turns.current}

    def _admit(self, in_time: bool = True) -> None:
        """Chooses the entries of the next update, and starts those that are new.

        If there is no time for another update, the rest start, and make none.
        """
        new = self._turns.choose(self.trainables, in_time)
        self._write_passages(dict.fromkeys(new, 0) if in_time else {})
        compacted = in_time and (self.step > 0 or self.execution.has_time_for_closed_form)
        examples = self.data.examples if compacted else {}

        def start(place: int, name: str) -> Tensor:
            self.on_phase("computing starts", place / len(new))
            return initial_value(self.model, self._by_name[name], self.config, examples.get(name))

        starts = [partial(start, *each) for each in enumerate(new)]
        for name, value in zip(new, self.ranks.compute(starts, self._shape), strict=True):
            self._admit_one(name, value)
        if not self._turns.current:
            for trainable in self.trainables.values():
                trainable.stopped = trainable.stopped or "time_budget"

    def _admit_one(self, name: str, value: Tensor) -> None:
        config = resolved(self.config, self.model.layers, bool(self.data.examples[name].pairs))
        scale, kept = scale_of(self.model, value, config.kind), kept_part(self.model, config)
        self.trainables[name] = TrainablePrompt(name, value, scale, config, kept)
        self._turns.start(self.trainables[name])

    def _write_passages(self, updates: Mapping[str, int]) -> None:
        """`updates`: of each entry that passages are written for, how many it has made."""
        if updates:
            write_ahead(self.model, self.config, self.data, updates, self.step, self.on_phase)
            self.ranks.check_same_data(self.data)

    def _keep_to_budget(self, pace: float) -> bool:
        """Shares the time among the entries; says whether there is any for another update."""
        final = final_updates(self.model, self.config, self.data)
        affordable = self.execution.affordable_updates(pace, final, len(self.entries))
        (affordable,) = self.ranks.broadcast_numbers(affordable)
        self._turns.share_time(self.trainables, affordable)
        return affordable > 0

    def _resume(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.config = self.config.changed(**facts["config"])
        self.data = self._make_data()
        self.plan = MemoryPlan(**facts["plan"])
        self.step, self._turns.share = facts["step"], facts["share"]
        for name, state in facts["trainables"].items():
            self._admit_one(name, torch.ones(self._shape, device=self.model.device))
            self.trainables[name].restore(nested(tensors, f"trainables/{name}"), state)
        for source in self.data.sources:
            written = nested(tensors, f"passages/{source.name}")
            source.restore(self.model, written, facts["passages"][source.name])
        if self.data.filler_store is not None:
            self.data.filler_store.restore(self.model, facts["filler"])
        self._admit()

    def _signature(self) -> dict[str, Any]:
        return make_signature(
            self.model, self.given, self.entries, self.company, self.company_entries,
            corpus=self._source.corpus, conditionings=self._source.conditionings,
        )  # fmt: skip
