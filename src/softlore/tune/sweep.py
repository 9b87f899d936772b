"""A sweep: training settings tried one after another by Optuna, each judged by the evaluation.

Optuna keeps what was tried in an SQLite file, so that a sweep goes on where it was stopped.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from softlore.disk import storage_error
from softlore.errors import ConfigError, SoftloreError, StorageError, TrainingError
from softlore.lore import Lorebook
from softlore.settings import TrainingConfig
from softlore.tune.checkpoint import only_run
from softlore.tune.result import entry_hash
from softlore.tune.search_space import SearchSpace
from softlore.tune.trial import Scores
from softlore.tune.worker_pool import WorkerLost, WorkerPool, WorkerReply

STUDY = "softlore"
DEATHS = 3  # of workers over one trial, before it counts as failed
SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True)
class FinishedTrial:
    """One trial: its number from 0, what was tried, and what it came to, unless it failed."""

    number: int
    settings: dict[str, Any]
    scores: Scores | None
    score: float | None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Sweep:
    """A search for the settings under which a book trains best.

    Args:
        crew: who trains; with several workers what is tried depends on who is done first.
        book: the lorebook.
        space: which settings are swept.
        model: its name: scores of different models are not compared.
        study: the SQLite file that what was tried is kept in; it is made if need be.
        trials: in all, those of earlier runs included.
        seconds: no trial is begun after so many.
        drift_weight: how many nats of recall a nat of drift is worth.
        distances: tokens of story between prompt and call, where an entry's own calls count.
        seed: of what Optuna draws and of the evaluation; training's is among the settings.
        again: begin anew where the study is another one.
        on_trial: called after each trial.
        settings: what is fixed for all trials; they win over the book's own.

    Raises:
        ConfigError: settings that can't be, or a study of another sweep.
        StorageError: the study's file is none.
    """

    def __init__(
        self,
        crew: WorkerPool,
        book: Lorebook,
        space: Sequence[SearchSpace],
        study: Path,
        *,
        model: str,
        trials: int = 20,
        seconds: float | None = None,
        drift_weight: float = 1.0,
        distances: Sequence[int] = (0, 64),
        seed: int = 0,
        again: bool = False,
        on_trial: Callable[[FinishedTrial], None] | None = None,
        **settings: Any,
    ) -> None:
        self.crew, self.book, self.space = crew, book, list(space)
        self.settings = {**book.training, **settings}
        TrainingConfig.of(self.settings)
        fixed = next((one.name for one in space if one.name in settings), None)
        if fixed is not None:
            raise ConfigError(
                f"{fixed} is both swept and given; expected one of them; drop one of the options"
            )
        self.path, self.trials, self.seconds = study, trials, seconds
        self.drift_weight, self.distances, self.seed = drift_weight, list(distances), seed
        self.model, self.again = model, again
        self.on_trial = on_trial or (lambda tried: None)
        self._deaths: dict[int, int] = {}

    def run(self) -> list[FinishedTrial]:
        """Tries settings until there are enough, or the time is over; all trials, the best first.

        Raises:
            KeyboardInterrupt: what was being tried is tried first when the sweep goes on.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with only_run(self.path):
            self._open()
            self._begin()
            while self._busy:
                if answer := self.crew.wait():
                    self._heard(answer)
        return self.tried()

    # the study ---------------------------------------------------------------------------------

    def _open(self) -> None:
        if self.path.exists() and self.again:
            self._begin_anew()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size:
                with self.path.open("rb") as file:
                    if file.read(len(SQLITE)) != SQLITE:
                        raise StorageError(
                            f"{str(self.path)!r} is no study of a sweep; expected an SQLite file "
                            "that Optuna has written; name another (--study)"
                        )
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error("open", self.path, error) from error
        self.study = self._load()
        told = self.study.user_attrs.get("softlore")
        if told is None:
            self.study.set_user_attr("softlore", self._signature())
        elif told != self._signature():
            then, now = json.loads(told), json.loads(self._signature())
            differ = [name for name in now if then.get(name) != now[name]]
            raise ConfigError(
                f"the study {str(self.path)!r} is of another sweep (other {', '.join(differ)}); "
                "expected the same; to go on with it, run the command that made it; to begin "
                "anew, say so with --again, or name another file (--study)"
            )
        self._settle()

    def _load(self) -> optuna.Study:
        try:
            return optuna.create_study(
                storage=f"sqlite:///{self.path.absolute()}",
                study_name=STUDY,
                direction="minimize",
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy's and Alembic's are many
            raise StorageError(
                f"the study {str(self.path)!r} can't be opened ({_first_line(error)}); expected "
                "one that this version of Optuna can read; begin anew with --again, or name "
                "another (--study)"
            ) from error

    def _begin_anew(self) -> None:
        try:
            for path in self.path.parent.glob(f"{self.path.name}*"):
                if path.name in {self.path.name + end for end in ("", "-journal", "-wal", "-shm")}:
                    path.unlink()
        except OSError as error:
            raise storage_error("remove", self.path, error) from error

    def _signature(self) -> str:
        """What must be the same for a sweep to go on, as JSON."""
        config = TrainingConfig.of(self.settings)
        told = {
            "settings": config.to_dict() | {"given": sorted(self.settings)},
            "entries": {entry.name: entry_hash(entry) for entry in self.book},
            "model": self.model,
            "param": [one.to_dict() for one in self.space],
            "drift-weight": self.drift_weight,
            "distances": self.distances,
            "seed": self.seed,
        }
        return json.dumps(told, sort_keys=True)

    def _settle(self) -> None:
        """Trials that a stopped run has left are closed, and queued to be tried first."""
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.set_user_attr(f"stopped {trial.number}", True)
            self.study.enqueue_trial(trial.params)

    # trials ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._end = math.inf if self.seconds is None else time.monotonic() + self.seconds
        self._busy: dict[int, tuple[optuna.Trial, dict[str, Any]] | None] = {}
        if self._left() < 1:
            return
        for worker in range(self.crew.size):
            self._busy[worker] = None
            self.crew.call(worker, "load")

    def _left(self) -> int:
        """Trials that are still to begin."""
        begun = sum(one is not None for one in self._busy.values())
        return self.trials - len(self.tried()) - begun

    def _next(self, worker: int) -> None:
        """Gives a worker the next trial, or lets it go."""
        self._busy.pop(worker, None)
        if self._left() < 1 or time.monotonic() >= self._end:
            return
        number = len(self.study.get_trials(deepcopy=False))
        # A fresh sampler each time: what it draws then follows from the seed and what was tried.
        drawn = random.Random(f"sweep/{self.seed}/{number}").getrandbits(32)
        self.study.sampler = optuna.samplers.TPESampler(seed=drawn)
        trial = self.study.ask()
        chosen = {one.name: one.suggest(trial) for one in self.space}
        self._busy[worker] = trial, chosen
        self._call(worker, chosen)

    def _call(self, worker: int, chosen: dict[str, Any]) -> None:
        whole = self.settings | chosen
        self.crew.call(worker, "trial", self.book, whole, self.distances, self.seed)

    def _heard(self, answer: WorkerReply) -> None:
        worker, busy = answer.worker, self._busy.get(answer.worker)
        if isinstance(answer.value, WorkerLost):
            self._bury(worker, busy, answer.value)
            return
        if answer.method == "load":
            answer.get()
            if busy is not None:
                self._call(worker, busy[1])
                return
        elif busy is not None:
            self._tell(busy[0], answer)
        self._next(worker)

    def _tell(self, trial: optuna.Trial, answer: WorkerReply) -> None:
        if isinstance(answer.value, SoftloreError):
            self._failed(trial, str(answer.value))
            return
        scores = Scores(**answer.get())
        score = scores.score(self.drift_weight)
        if not math.isfinite(score):
            self._failed(trial, "recall or drift could not be measured")
            return
        trial.set_user_attr("scores", asdict(scores))
        self.study.tell(trial, score)
        self.on_trial(_as_tried(self.study.trials[trial.number]))

    def _failed(self, trial: optuna.Trial, why: str) -> None:
        trial.set_user_attr("why", why)
        self.study.tell(trial, state=TrialState.FAIL)
        self.on_trial(_as_tried(self.study.trials[trial.number]))

    def _bury(
        self, worker: int, busy: tuple[optuna.Trial, dict[str, Any]] | None, lost: WorkerLost
    ) -> None:
        """A new worker for one that died, which tries the same once more."""
        number = -1 if busy is None else busy[0].number
        self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._deaths[number] >= DEATHS:
            if busy is None:
                raise TrainingError(
                    f"a worker that was loading its model has died {DEATHS} times ({lost.why}); "
                    "expected one that lives; see whether its machine has memory enough"
                )
            self._failed(busy[0], f"it has lost its worker {DEATHS} times ({lost.why})")
            self._busy[worker] = None
        self.crew.replace(worker)
        self.crew.call(worker, "load")

    # results -----------------------------------------------------------------------------------

    def tried(self) -> list[FinishedTrial]:
        """All trials that have come to an end, the best first, those that failed last."""
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        stopped = {key for key in self.study.user_attrs if key.startswith("stopped ")}
        found = [_as_tried(one) for one in ended if f"stopped {one.number}" not in stopped]
        return sorted(found, key=lambda one: (one.score is None, one.score or 0.0, one.number))


def _as_tried(trial: FrozenTrial) -> FinishedTrial:
    told = trial.user_attrs
    scores = Scores(**told["scores"]) if "scores" in told else None
    return FinishedTrial(trial.number, dict(trial.params), scores, trial.value, told.get("why", ""))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no word why")
