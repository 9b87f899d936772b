"""Trains a set of prompts together over one frozen model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast, overload

from torch import Tensor

from softlore.decode.conditioning import Conditioning
from softlore.errors import ConfigError, DivergedError, LoreError
from softlore.lore import Entry
from softlore.model import FrozenModel, prompt_shape
from softlore.prompts import SoftPrompt
from softlore.settings import TrainingConfig
from softlore.tune.checkpoint import (
    Checkpointing,
    exclusive_run,
    find_checkpoint,
    make_signature,
    nested,
    save_checkpoint,
    uninterrupted,
)
from softlore.tune.distributed import Execution, SingleProcess, share_of
from softlore.tune.examples import Blocks, room_beside, source_of
from softlore.tune.initial import initial_value, scale_of
from softlore.tune.losses import TrainingData
from softlore.tune.objective import (
    MemoryPlan,
    TrainingBatch,
    losses_of,
    run_in_parts,
)
from softlore.tune.trainable_prompt import (
    TrainablePrompt,
    TrainingEstimate,
    TrainingProgress,
    finished_prompt,
    resolved,
)
from softlore.tune.training_data import Company, draw_batch, make_training_data

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
        **settings: Any,
    ) -> None:
        self.model = model
        self.config = self._given = TrainingConfig.of(settings)
        self._source = source_of(blocks, entries, corpus, conditionings, name)
        self.entries: list[Entry] = self._source.entries
        company = company or Company()
        self.company = dict(company.prompts)
        self.company_entries = [e for e in company.entries if e.name in self.company]
        self.checkpointing = checkpointing or Checkpointing()
        self.execution = execution or Execution()
        self.ranks: SingleProcess = self.execution.ranks or SingleProcess()
        self.on_step = on_step
        self.step = 0
        self.trainables: dict[str, TrainablePrompt] = {}
        self.data: TrainingData | None = None
        self.plan: MemoryPlan | None = None
        self._prepared = False
        self._check()

    def _check(self) -> None:
        if not self.entries:
            raise LoreError("no entries to train; expected at least one; add one to the lorebook")
        names = [entry.name for entry in self.entries]
        repeated = sorted({n for n in names if names.count(n) > 1 or n in self.company})
        if repeated:
            raise LoreError(
                f"the name {repeated[0]!r} stands for two prompts; expected each once; "
                "rename one, or leave it out of the company"
            )
        for prompt in self.company.values():
            self.model.check_prompt(prompt)
            if prompt.kind != self.config.kind:
                raise ConfigError(
                    f"prompt {prompt.name!r} of the company is of kind {prompt.kind!r}; expected "
                    f"{self.config.kind!r}, as those in training; train that kind"
                )
        room = room_beside(self.model, self.config.n_tokens)
        if room is not None and room < 2:
            raise ConfigError(
                f"n_tokens is {self.config.n_tokens}; expected fewer than the "
                f"{self.model.context_length} tokens that {self.model.name!r} reads, with room "
                "for a call and a response; ask for fewer"
            )
        budget = self.execution.time_budget
        if budget is not None and not 0 < budget < math.inf:
            raise ConfigError(f"time_budget is {budget}; expected seconds above 0; raise it")

    # training ----------------------------------------------------------------------------------

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
                with self.ranks.joint_stop():
                    self._run()
            except (KeyboardInterrupt, DivergedError):
                self.save()
                raise
            self.save()
        prompts = self.prompts()
        result = next(iter(prompts.values())) if self._source.single else prompts
        return cast(Trained, result)

    def _run(self) -> None:
        saved = time.monotonic()
        while self.unfinished():
            self.update()
            if self.ranks.stopping:  # all processes are at the same update
                if self.ranks.interrupted:
                    raise KeyboardInterrupt
                return
            if time.monotonic() - saved >= self.checkpointing.seconds:
                self.save()
                saved = time.monotonic()
            if self.on_step and self.on_step(self.progress()) and self.ranks.request_stop():
                return

    def prepare(self) -> None:
        """Makes examples and trainables, and resumes from the checkpoint if there is one."""
        if self._prepared:
            return
        # Before the examples, which take long: a checkpoint that does not fit is an error.
        checkpoint = find_checkpoint(
            self.checkpointing.file, self._signature(), self.checkpointing.overwrite
        )
        self.data = make_training_data(
            self.model, self.config, self._source, [*self.entries, *self.company_entries]
        )
        self._admit()
        self.ranks.check_same_data(self.data)
        if checkpoint is not None:
            self._resume(*checkpoint)
        else:
            plan = self.plan or self.execution.plan(self.model, self._draw())
            self.plan = MemoryPlan(*self.ranks.broadcast_numbers(*plan.to_dict().values()))
            self._keep_to_budget()
            self.save()  # an unwritable disk is an error now, not at the end
        self._prepared = True

    def update(self) -> None:
        """One update of every trainable: draw a tree batch, run it, step each optimizer.

        Raises:
            DivergedError: NaN or infinity; then no entry has made this update.
        """
        assert self.plan is not None
        batch, learning = self._draw(), self._learning()
        losses = self.ranks.run(self.model, batch, self.plan, learning.values())
        by_name = {name: losses_of(losses, name) for name in learning}
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
            self._admit()

    def save(self) -> None:
        """Writes the checkpoint, if there is a file for it."""
        path = self.checkpointing.file
        if path is None or self.plan is None or not self.ranks.first:
            return
        states = {name: trainable.state() for name, trainable in self.trainables.items()}
        facts = {
            "signature": self._signature(),
            "step": self.step,
            "max_steps": self.config.max_steps,
            "plan": self.plan.to_dict(),
            "trainables": {name: facts for name, (_, facts) in states.items()},
        }
        tensors = {
            f"{name}/{key}": tensor
            for name, (state, _) in states.items()
            for key, tensor in state.items()
        }
        save_checkpoint(path, tensors, facts)

    def prompts(self) -> PromptSet:
        """The prompts as trained so far."""
        entries: dict[str, Entry] = {entry.name: entry for entry in self.entries}
        together = [*entries, *self.company]
        return {
            name: finished_prompt(self.model, entries[name], trainable, together)
            for name, trainable in self.trainables.items()
        }

    def unfinished(self) -> bool:
        return self._waiting() > 0 or bool(self._learning())

    def progress(self) -> TrainingProgress:
        return TrainingProgress(self.step, self.trainables, self._waiting())

    def estimate(self) -> TrainingEstimate:
        """What remains to do, measured on one update; call `prepare` first."""
        updates = self.config.max_steps * self._waves()
        remaining = max(0, updates - self.step) if self.unfinished() else 0
        seconds = remaining * self.seconds_per_update(1) if remaining else 0.0
        shape = prompt_shape(self.model, self.config.kind, self.config.n_tokens)
        family = self.model.family
        slides = self.config.kind == "prefix" and family.all_layers_slide
        sight = family.sliding_window if slides else None
        return TrainingEstimate(remaining, seconds, 4 * math.prod(shape), sight)

    def seconds_per_update(self, updates: int = 2) -> float:
        """Times forward and backward of an update, without a step."""
        assert self.plan is not None
        start = time.perf_counter()
        for i in range(updates + 1):
            if i == 1:  # the first run warms up
                start = time.perf_counter()
            run_in_parts(self.model, share_of(self._draw(), 0, self.ranks.size), self.plan)
        return (time.perf_counter() - start) / updates

    # internals ---------------------------------------------------------------------------------

    def _draw(self) -> TrainingBatch:
        """The tree batch of the next update."""
        assert self.data is not None
        prompts: dict[str, Tensor] = {name: p.tensor for name, p in self.company.items()}
        for name, trainable in self.trainables.items():
            prompts[name] = trainable.value() if trainable.stopped else trainable.live()
        learning = list(self._learning())
        return draw_batch(self.model, self.config, self.data, prompts, learning, self.step)

    def _learning(self) -> dict[str, TrainablePrompt]:
        return {name: t for name, t in self.trainables.items() if not t.stopped}

    def _waiting(self) -> int:
        return len(self.entries) - len(self.trainables)

    def _admit(self) -> None:
        """Starts waiting entries in the places of finished ones."""
        for entry in self.entries[len(self.trainables) :]:
            if len(self._learning()) >= self.config.max_active:
                return
            self._admit_one(entry)

    def _admit_one(self, entry: Entry) -> None:
        value = self.ranks.broadcast(initial_value(self.model, entry, self.config))
        scale = scale_of(self.model, value, self.config.kind)
        paired = entry.blocks or self.config.style is not None or self._source.corpus
        config = resolved(self.config, text_alone=not paired)
        self.trainables[entry.name] = TrainablePrompt(entry.name, value, scale, config)

    def _waves(self) -> int:
        return -(-len(self.entries) // self.config.max_active)

    def _keep_to_budget(self) -> None:
        budget = self.execution.time_budget
        if budget is not None:
            affordable = int(budget / self.seconds_per_update() / self._waves())
            steps = max(1, min(self.config.max_steps, affordable))
            self._set_max_steps(self.ranks.broadcast_numbers(steps)[0])

    def _set_max_steps(self, steps: int) -> None:
        if steps != self.config.max_steps:
            self.config = self.config.changed(max_steps=steps)
            self.trainables = {}  # their schedules depend on it
            self._admit()

    def _resume(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self._set_max_steps(facts["max_steps"])
        self.plan = MemoryPlan(**facts["plan"])
        self.step = facts["step"]
        for name, state in facts["trainables"].items():
            if name not in self.trainables:
                self._admit_one(next(e for e in self.entries if e.name == name))
            self.trainables[name].restore(nested(tensors, name), state)
        self._admit()

    def _signature(self) -> dict[str, Any]:
        return make_signature(
            self.model,
            self._given,
            self.entries,
            self.company,
            self.company_entries,
            corpus=self._source.corpus,
            conditionings=self._source.conditionings,
        )
