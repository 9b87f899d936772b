"""Execution: the time, memory and processes that a training may use."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from softlore.errors import ConfigError
from softlore.model import FrozenModel
from softlore.tune import forked
from softlore.tune.distributed import Ranks
from softlore.tune.objective import MemoryPlan, TrainingBatch, measure_memory_plan

SAVING_SECONDS = 1.5  # for writing the prompts, and ending the program
SAVING_EACH = 0.01  # more for every prompt
MEASURING = 1 / 5  # of a time budget: measuring the prompts at the end, at most
RECENT = 16  # updates by which the time of the next ones is estimated
FEW = 2  # processes for a single entry: more would all run its trunk again
PREPARING = 0.4  # of a time budget; entries whose turn to start comes later start plainly


class Pace:
    """How long a training's updates take, in seconds on its clock."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._beside, self._updates = 0.0, 0

    def add(self, update: float, beside: float) -> None:
        """Adds an update, and what was done before the next one, such as writing passages."""
        self._recent.append(update)
        self._beside += beside
        self._updates += 1

    @property
    def seconds(self) -> float | None:
        """Seconds of an update and of what is done between two; None before the first."""
        if not self._recent:
            return None
        return sum(self._recent) / len(self._recent) + self._beside / max(1, self._updates)


@dataclass(frozen=True)
class Execution:
    """The time, memory and processes that a training may use.

    Attributes:
        time_budget: seconds that the training may take from `started` on, its preparation and the
            saving of its prompts included; fewer updates are made if they would take longer.
        clock: what the budget's seconds are of; `time.process_time` counts those of the processor
            alone, whatever else runs on the machine.
        started: the time on that clock from which the budget counts; by default now.
        memory: bytes that an update may use; None: those of the device. It decides the batch sizes,
            and so the rounding: give it to get the same bits elsewhere.
        ranks: the processes that share each update; the first of them writes the checkpoint.
        processes: how many of a thread each are to share the updates of a small model on the
            processor where there are no `ranks`; see `softlore.tune.forked`.
        checkpointed: whether layers are run again for the backward pass (gradient checkpointing);
            None: where one branch with its trunk needs too much memory otherwise.
    """

    time_budget: float | None = None
    memory: int | None = None
    ranks: Ranks | None = None
    processes: int = 1
    checkpointed: bool | None = None
    clock: Callable[[], float] = time.monotonic
    started: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.clock):
            raise ConfigError(
                f"clock is {self.clock!r:.60}; expected a function that gives seconds, such as "
                "time.monotonic; pass one"
            )
        if self.started is None:
            object.__setattr__(self, "started", self.clock())
        if not (isinstance(self.processes, int) and self.processes >= 1):
            raise ConfigError(
                f"processes is {self.processes!r:.60}; expected a whole number of at least 1, such "
                "as that of cores; raise it"
            )
        budget = self.time_budget
        if budget is not None and not (isinstance(budget, int | float) and 0 < budget < math.inf):
            raise ConfigError(f"time_budget is {budget!r:.60}; expected seconds above 0; raise it")

    @property
    def deadline(self) -> float | None:
        """The time on `clock` at which the training is to have ended; None: never."""
        if self.time_budget is None or self.started is None:
            return None
        return self.started + self.time_budget

    @property
    def has_time_for_closed_form(self) -> bool:
        """Whether entries may still start in closed form, which takes longer and is better.

        That is while less than `PREPARING` of the time budget is used, if there is one.
        """
        if self.time_budget is None or self.started is None:
            return True
        return self.clock() - self.started < PREPARING * self.time_budget

    def affordable_updates(self, pace: float, measuring: float, prompts: int) -> int:
        """How many updates of `pace` seconds end in time, with the prompts saved.

        Args:
            measuring: how many updates take as long as measuring the prompts at the end.
            prompts: how many are written.
        """
        assert self.time_budget is not None
        measuring = min(measuring * pace, MEASURING * self.time_budget)
        return max(0, int((self.seconds_left(prompts) - measuring) / pace))

    def seconds_left(self, prompts: int) -> float:
        """Seconds until the prompts must be written; without a time budget infinity."""
        if self.deadline is None:
            return math.inf
        return self.deadline - self.clock() - SAVING_SECONDS - SAVING_EACH * prompts

    def plan(self, model: FrozenModel, batch: TrainingBatch) -> MemoryPlan:
        """Measures how updates like this one are to be run; see `measure_memory_plan`."""
        sharing = self.processes_for(model, self.processes)
        return measure_memory_plan(model, batch, self.memory, self.checkpointed, sharing)

    def processes_for(self, model: FrozenModel, entries: int) -> int:
        """How many processes are to share updates of so many entries."""
        if self.ranks is not None or not forked.pays(model):
            return 1
        return min(self.processes, max(FEW, entries))
