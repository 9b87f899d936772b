"""Training a set of prompts in company, over one resident model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from softlore.decode.conditioning import Conditioning
from softlore.errors import ConfigError, DivergedError, LoreError
from softlore.lore import Entry
from softlore.model import FrozenModel, prompt_shape
from softlore.prompts import SoftPrompt
from softlore.settings import TrainingConfig
from softlore.tune.checkpoint import (
    nested,
    only_run,
    save_checkpoint,
    uninterrupted,
)
from softlore.tune.examples import passage_length, room_beside
from softlore.tune.initial import initial_value, scale_of
from softlore.tune.memory_plan import MemoryPlan, measure_memory_plan, run_in_parts
from softlore.tune.objective import Losses, TrainingBatch
from softlore.tune.ranks import Alone, Ranks
from softlore.tune.result import finished_prompt
from softlore.tune.signature import find_checkpoint, make_signature
from softlore.tune.sources import Blocks, source_of
from softlore.tune.teacher import bare_tree, run_teacher, unrelated_passages
from softlore.tune.trainable_prompt import TrainablePrompt, resolved
from softlore.tune.training_data import TrainingData, draw_batch

UNRELATED = 64  # passages for filler and guard


@dataclass(frozen=True)
class TrainingProgress:
    """Where training is, after an update."""

    step: int
    trainables: Mapping[str, TrainablePrompt]
    waiting: int

    @property
    def done(self) -> float:
        """Share of all updates that are behind, 0 to 1."""
        shares = [
            1.0 if one.stopped else one.steps / one.config.max_steps
            for one in self.trainables.values()
        ]
        return sum(shares) / (len(shares) + self.waiting)


@dataclass(frozen=True)
class TrainingEstimate:
    """What is ahead: updates, seconds if none stops early, and bytes of each prompt.

    `sight`: tokens of text after which a prefix is out of sight, where every layer of the model
    slides; None where one at least looks back without end.
    """

    updates: int
    seconds: float
    prompt_bytes: int
    sight: int | None = None


class WorldInfoTrainer:
    """Trains soft prompts for a model: one from `blocks`, or a set from `entries`.

    Args:
        model: the frozen model.
        blocks: `(call, [responses])` pairs of a single entry.
        entries: entries of a lorebook, trained together.
        corpus: a plain text whose manner a single prompt is to take on.
        corpora: such texts by name, for a set of prompts: learned control codes.
        heads: by name what is to be distilled into a prompt as it is: a hard prompt, a code, or
            several with a strength each.
        name: of the single prompt from `blocks` or `corpus`.
        company: finished prompts by name that stand beside the new ones and stay as they are.
        company_entries: what the company knows, so that newcomers do not make it forget.
        checkpoint: a file to keep progress in and to resume from.
        checkpoint_seconds: how often, besides at the start and the end; 0 is after each update.
        again: begin anew where the checkpoint is of another run or can't be read.
        on_step: called after each update; return True to stop there, with a checkpoint.
        time_budget: seconds; fewer updates are made where it would not do.
        memory: bytes that an update may count with, where it is not for this machine to say: the
            choice of what runs at once follows from it, and rounding from that.
        ranks: the processes that share out each update; the first of them keeps the checkpoint.
        settings: fields of `TrainingConfig`.

    Raises:
        ConfigError, LoreError: settings or lore that can't be trained.
    """

    def __init__(
        self,
        model: FrozenModel,
        blocks: Blocks | None = None,
        *,
        entries: Sequence[Entry] | None = None,
        corpus: str | None = None,
        corpora: Mapping[str, str] | None = None,
        conditionings: Mapping[str, Conditioning] | None = None,
        name: str = "prompt",
        company: Mapping[str, SoftPrompt] | None = None,
        company_entries: Sequence[Entry] = (),
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = 10.0,
        again: bool = False,
        on_step: Callable[[TrainingProgress], bool | None] | None = None,
        time_budget: float | None = None,
        memory: int | None = None,
        ranks: Ranks | None = None,
        **settings: Any,
    ) -> None:
        source = source_of(blocks, entries, corpus, corpora, conditionings, name)
        self.model = model
        self.config = TrainingConfig.of(settings)
        self._asked_steps = self.config.max_steps
        self._source = source
        self.entries = source.entries
        if not self.entries:
            raise LoreError("no entries to train; expected at least one; add one to the lorebook")
        self.company = dict(company or {})
        self.company_entries = [e for e in company_entries if e.name in self.company]
        self.checkpoint = Path(checkpoint) if checkpoint else None
        self.checkpoint_seconds = checkpoint_seconds
        self.again = again
        self.on_step = on_step
        self.time_budget = time_budget
        self.memory = memory
        self.ranks = ranks or Alone()
        self.step = 0
        self.trainables: dict[str, TrainablePrompt] = {}
        self.data: TrainingData | None = None
        self.plan: MemoryPlan | None = None
        self._prepared = False
        self._check()

    def _check(self) -> None:
        names = [entry.name for entry in self.entries]
        twice = {n for n in names if names.count(n) > 1 or n in self.company}
        if twice:
            raise LoreError(
                f"the name {sorted(twice)[0]!r} stands for two prompts; expected each once; "
                "rename one, or leave it out of the company"
            )
        for prompt in self.company.values():
            self.model.check_prompt(prompt)
            if prompt.kind != self.config.kind:
                raise ConfigError(
                    f"prompt {prompt.name!r} is of kind {prompt.kind!r}; expected "
                    f"{self.config.kind!r}, as those it is to keep company; train that kind"
                )
        room = room_beside(self.model, self.config.n_tokens)
        if room is not None and room < 2:
            raise ConfigError(
                f"n_tokens is {self.config.n_tokens}; expected fewer than the "
                f"{self.model.context_length} tokens that {self.model.name!r} reads, with room "
                "for a call and a response; ask for fewer"
            )
        budget = self.time_budget
        if budget is not None and not 0 < budget < math.inf:
            raise ConfigError(f"time_budget is {budget}; expected seconds above 0; give it some")

    # the verbs ---------------------------------------------------------------------------------

    def train(self) -> Any:
        """Trains to the end, or goes on from the checkpoint.

        Returns:
            A SoftPrompt (from `blocks`), or `{name: SoftPrompt}` (from `entries`).

        Raises:
            DivergedError: after keeping the last good state.
        """
        self.prepare()
        with only_run(self.checkpoint if self.ranks.first else None):
            try:
                with self.ranks.stopping_together():
                    self._run()
            except (KeyboardInterrupt, DivergedError):
                self.save()
                raise
            self.save()
        prompts = self.prompts()
        return next(iter(prompts.values())) if self._source.single else prompts

    def _run(self) -> None:
        saved = time.monotonic()
        while self.unfinished():
            self.update()
            if self.ranks.stopping:  # all processes are at the same update
                if self.ranks.interrupted:
                    raise KeyboardInterrupt
                return
            if self.checkpoint and time.monotonic() - saved >= self.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
            if self.on_step and self.on_step(self.progress()) and self.ranks.ask_to_stop():
                return

    def prepare(self) -> None:
        """Makes the examples, the passages and the trainables, and reads the checkpoint if any."""
        if self._prepared:
            return
        config, model = self.config, self.model
        # A checkpoint that does not fit is better met now than later.
        found = self.checkpoint and find_checkpoint(self.checkpoint, self._signature(), self.again)
        examples = {
            entry.name: self._source.make_examples(model, entry, config)
            for entry in [*self.entries, *self.company_entries]
        }
        passages: list[list[int]] = []
        if config.drift_guard > 0 or (config.max_spacing > 0 and config.filler == "story"):
            drawn = unrelated_passages(
                model, config.story, UNRELATED, passage_length(model, config), config.seed
            )
            passages = [ids for ids in drawn if len(ids) > 1]
        guard = run_teacher(model, bare_tree(model), passages) if config.drift_guard > 0 else []
        self.data = TrainingData(examples, guard, passages)
        self._admit()
        self.ranks.check_alike(self.data)
        if found:
            self._resume(*found)
        else:
            self.plan = self.plan or self._agreed(
                measure_memory_plan(model, self._batch(), self.memory)
            )
            self._keep_budget()
            self.save()  # a disk that refuses is better met now than at the end
        self._prepared = True

    def unfinished(self) -> bool:
        return self._waiting() > 0 or any(not one.stopped for one in self.trainables.values())

    def update(self) -> None:
        """One update of every trainable: draw a tree batch, run it, step each optimizer.

        Raises:
            DivergedError: NaN or infinity; then no entry has made this update.
        """
        assert self.plan is not None
        batch, learning = self._batch(), self._learning().values()
        losses = self.ranks.run(self.model, batch, self.plan, learning)
        own = {trainable: _own(losses, name) for name, trainable in self._learning().items()}
        with uninterrupted():
            faults = [one.step_back() for one in own if not one.sound(own[one])]
            if faults:
                raise faults[0]
            for trainable, its_losses in own.items():
                trainable.update(its_losses)
            self.step += 1
            self._admit()

    def prompts(self) -> dict[str, SoftPrompt]:
        """What has been learned so far."""
        by_name = {entry.name: entry for entry in self.entries}
        others = [*by_name, *self.company]
        return {
            name: finished_prompt(self.model, by_name[name], trainable, others)
            for name, trainable in self.trainables.items()
        }

    def progress(self) -> TrainingProgress:
        return TrainingProgress(self.step, self.trainables, self._waiting())

    # inside ------------------------------------------------------------------------------------

    def _learning(self) -> dict[str, TrainablePrompt]:
        return {name: one for name, one in self.trainables.items() if not one.stopped}

    def _waiting(self) -> int:
        return len(self.entries) - len(self.trainables)

    def _admit(self) -> None:
        """Waiting entries take the places of finished ones."""
        for entry in self.entries[len(self.trainables) :]:
            if len(self._learning()) >= self.config.max_active:
                return
            self._admit_one(entry)

    def _admit_one(self, entry: Entry) -> None:
        value = initial_value(self.model, entry, self.config)
        value = self.ranks.of_first(value)
        scale = scale_of(self.model, value, self.config.kind)
        paired = entry.blocks or self.config.style is not None or self._source.corpus
        config = resolved(self.config, text_alone=not paired)
        self.trainables[entry.name] = TrainablePrompt(entry.name, value, scale, config)

    def _batch(self) -> TrainingBatch:
        assert self.data is not None
        prompts: dict[str, Tensor] = {name: p.tensor for name, p in self.company.items()}
        for name, trainable in self.trainables.items():
            prompts[name] = trainable.value() if trainable.stopped else trainable.live()
        learning = list(self._learning())
        return draw_batch(self.model, self.config, self.data, prompts, learning, self.step)

    def seconds_per_update(self, updates: int = 2) -> float:
        """Measures an update without making one."""
        assert self.plan is not None
        run_in_parts(self.model, self.ranks.part(self._batch()), self.plan)
        start = time.perf_counter()
        for _ in range(updates):
            run_in_parts(self.model, self.ranks.part(self._batch()), self.plan)
        return (time.perf_counter() - start) / updates

    def estimate(self) -> TrainingEstimate:
        """What training will come to, measured on one update; call `prepare` first."""
        updates = self.config.max_steps * self._waves()
        left = max(0, updates - self.step) if self.unfinished() else 0
        seconds = left * self.seconds_per_update(1) if left else 0.0
        numel = prompt_shape(self.model, self.config.kind, self.config.n_tokens)
        family = self.model.family
        prefix = self.config.kind == "prefix"
        sight = family.sliding_window if prefix and family.all_layers_slide else None
        return TrainingEstimate(left, seconds, 4 * math.prod(numel), sight)

    def _waves(self) -> int:
        return -(-len(self.entries) // self.config.max_active)

    def _keep_budget(self) -> None:
        if self.time_budget is None:
            return
        affordable = int(self.time_budget / self.seconds_per_update() / self._waves())
        steps = max(1, min(self.config.max_steps, affordable))
        self._set_max_steps(self.ranks.agreed(steps)[0])

    def _agreed(self, plan: MemoryPlan) -> MemoryPlan:
        """The plan of the first process, where there are several."""
        return MemoryPlan(*self.ranks.agreed(*plan.to_dict().values()))

    def _set_max_steps(self, steps: int) -> None:
        if steps == self.config.max_steps:
            return
        self.config = self.config.changed(max_steps=steps)
        self.trainables = {}
        self._admit()

    # checkpoints -------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint, if one was asked for."""
        if self.checkpoint is None or self.plan is None or not self.ranks.first:
            return
        states = {name: trainable.state() for name, trainable in self.trainables.items()}
        whole = {
            "signature": self._signature(),
            "step": self.step,
            "max_steps": self.config.max_steps,
            "plan": self.plan.to_dict(),
            "trainables": {name: facts for name, (_, facts) in states.items()},
        }
        tensors = {f"{n}/{key}": t for n, (own, _) in states.items() for key, t in own.items()}
        save_checkpoint(self.checkpoint, tensors, whole)

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
            self.config.changed(max_steps=self._asked_steps),
            self.entries,
            self.company,
            self.company_entries,
            corpus=self._source.corpus,
            conditionings=self._source.conditionings,
        )


def _own(losses: Losses, name: str) -> dict[str, float]:
    """An entry's losses; the guard of a group is the drift of each in it."""
    return {
        kind: value
        for (owner, kind), value in losses.items()
        if owner == name or (kind == "guard" and name in owner.split("/"))
    }
