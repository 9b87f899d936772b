"""Sweeps training settings with Optuna: each trial trains a book, and the evaluation scores it.

Optuna saves the trials in an SQLite file, so that a sweep can be resumed.
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
from softlore.tune.checkpoint import exclusive_run, read_object
from softlore.tune.finished_prompt import entry_hash
from softlore.tune.search_space import Scores, SearchSpace
from softlore.tune.worker_pool import WorkerLost, WorkerPool, WorkerReply

STUDY = "softlore"
MAX_DEATHS = 3  # worker deaths on one trial, before it fails
SQLITE = b"SQLite format 3\0"
Running = tuple[optuna.Trial, dict[str, Any]]  # a trial and its settings


@dataclass(frozen=True)
class FinishedTrial:
    """A trial: its number from 0, settings and scores; `why` it failed, if it did."""

    number: int
    settings: dict[str, Any]
    scores: Scores | None
    score: float | None
    why: str = ""

    @classmethod
    def of(cls, trial: FrozenTrial) -> FinishedTrial:
        """From Optuna's trial."""
        saved = trial.user_attrs
        scores = Scores(**saved["scores"]) if "scores" in saved else None
        return cls(trial.number, dict(trial.params), scores, trial.value, saved.get("why", ""))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Sweep:
    """A search for the settings with which a book trains best.

    Args:
        pool: the workers; with several, trials depend on which ends first.
        book: the lorebook.
        space: which settings are swept.
        study: the SQLite file of the trials; made if it does not exist.
        model: its name: scores of different models are not compared.
        trials: in all, those of earlier runs included.
        seconds: after so many, no trial is started.
        drift_weight: nats of recall that a nat of drift counts as.
        distances: tokens of story between prompt and call, for the entry's own calls.
        seed: of Optuna's draws and of the evaluation; training's is among the settings.
        overwrite: start over if the study exists.
        on_trial: called after each trial.
        settings: fixed for all trials; they override the book's own.

    Raises:
        ConfigError: settings that can't be trained with, or a study of another sweep.
        StorageError: the study's file is not a study.
    """

    def __init__(
        self,
        pool: WorkerPool,
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
        overwrite: bool = False,
        on_trial: Callable[[FinishedTrial], None] | None = None,
        **settings: Any,
    ) -> None:
        self.pool, self.book, self.space = pool, book.resolved(), list(space)
        self.settings = {**book.training, **settings}
        TrainingConfig.of(self.settings)
        fixed = next((setting.name for setting in space if setting.name in settings), None)
        if fixed is not None:
            raise ConfigError(
                f"{fixed} is both swept and given; expected one of them; drop one of the options"
            )
        self.path, self.trials, self.seconds = study, trials, seconds
        self.drift_weight, self.distances, self.seed = drift_weight, list(distances), seed
        self.model, self.overwrite = model, overwrite
        self.on_trial = on_trial or (lambda trial: None)
        self._running: dict[int, Running | None] = {}  # by worker; None: it is loading its model
        self._deaths: dict[int, int] = {}

    def run(self) -> list[FinishedTrial]:
        """Runs trials until there are enough or the time is over; returns all, the best first.

        Raises:
            KeyboardInterrupt: trials that were running are the first when the sweep is resumed.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with exclusive_run(self.path):
            self._open()
            self._end = math.inf if self.seconds is None else time.monotonic() + self.seconds
            if self._remaining() > 0:
                for worker in range(self.pool.size):
                    self._running[worker] = None
                    self.pool.call(worker, "load")
            while self._running:
                if reply := self.pool.wait():
                    self._handle(reply)
        return self.finished()

    def finished(self) -> list[FinishedTrial]:
        """All trials that have ended, the best first and those that failed last."""
        states = (TrialState.COMPLETE, TrialState.FAIL)
        trials = self.study.get_trials(deepcopy=False, states=states)
        stopped = {key for key in self.study.user_attrs if key.startswith("stopped ")}
        ended = [FinishedTrial.of(t) for t in trials if f"stopped {t.number}" not in stopped]
        return sorted(ended, key=lambda t: (t.score is None, t.score or 0.0, t.number))

    # the study ---------------------------------------------------------------------------------

    def _open(self) -> None:
        if self.path.exists() and self.overwrite:
            self._remove()
        self._check_file()
        self._load()
        signature = self._signature()
        saved = self.study.user_attrs.get("softlore")
        if saved is None:
            self.study.set_user_attr("softlore", signature)
        elif saved != signature:
            try:
                then, now = read_object(str(saved)), json.loads(signature)
            except ValueError as error:
                raise self._unreadable(error) from error
            differ = [name for name in now if then.get(name) != now[name]]
            raise ConfigError(
                f"the study {str(self.path)!r} is of another sweep (other {', '.join(differ)}); "
                "expected the same; to resume it, run the command that made it; to start "
                "over, pass --overwrite, or name another file (--study)"
            )
        # Trials that a stopped run left running are closed, and queued to be run first.
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.set_user_attr(f"stopped {trial.number}", True)
            self.study.enqueue_trial(trial.params)

    def _check_file(self) -> None:
        """Makes the study's folder, and checks that its file is an SQLite database."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists() or not self.path.stat().st_size:
                return
            with self.path.open("rb") as file:
                magic = file.read(len(SQLITE))
        except OSError as error:
            raise storage_error("open", self.path, error) from error
        if magic != SQLITE:
            raise StorageError(
                f"{str(self.path)!r} is not the study of a sweep; expected an SQLite file that "
                "Optuna has written; name another (--study)"
            )

    def _load(self) -> None:
        """Opens the study, and reads all that it holds."""
        try:
            self.study = optuna.create_study(
                storage=f"sqlite:///{self.path.absolute()}",
                study_name=STUDY,
                direction="minimize",
                load_if_exists=True,
            )
            self.finished()
        except Exception as error:  # SQLAlchemy and Alembic have many types
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StorageError:
        return StorageError(
            f"the study {str(self.path)!r} can't be opened ({_first_line(error)}); expected "
            "one that this version of Optuna can read; start over with --overwrite, or name "
            "another (--study)"
        )

    def _remove(self) -> None:
        try:
            for ending in ("", "-journal", "-wal", "-shm"):
                self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        except OSError as error:
            raise storage_error("remove", self.path, error) from error

    def _signature(self) -> str:
        """What must be the same to resume a sweep, as JSON."""
        config = TrainingConfig.of(self.settings)
        facts = {
            "settings": config.to_dict() | {"given": sorted(self.settings)},
            "entries": {entry.name: entry_hash(entry) for entry in self.book},
            "model": self.model,
            "param": [setting.to_dict() for setting in self.space],
            "drift-weight": self.drift_weight,
            "distances": self.distances,
            "seed": self.seed,
        }
        return json.dumps(facts, sort_keys=True)

    # trials ------------------------------------------------------------------------------------

    def _remaining(self) -> int:
        """Number of trials that have not started."""
        running = sum(trial is not None for trial in self._running.values())
        return self.trials - len(self.finished()) - running

    def _handle(self, reply: WorkerReply) -> None:
        worker, running = reply.worker, self._running.get(reply.worker)
        if isinstance(reply.value, WorkerLost):
            self._replace(worker, running, reply.value)
            return
        if reply.method == "load":
            reply.get()
            if running is not None:  # a new worker in place of one that died
                self._call(worker, running[1])
                return
        elif running is not None:
            self._finish(running[0], reply)
        self._start_next(worker)

    def _start_next(self, worker: int) -> None:
        """Gives a worker the next trial, if there is one."""
        self._running.pop(worker, None)
        if self._remaining() < 1 or time.monotonic() >= self._end:
            return
        number = len(self.study.get_trials(deepcopy=False))
        # A new sampler for each trial: its draws then follow from the seed and the trials so far.
        seed = random.Random(f"sweep/{self.seed}/{number}").getrandbits(32)
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = self.study.ask()
        suggested = {setting.name: setting.suggest(trial) for setting in self.space}
        self._running[worker] = trial, suggested
        self._call(worker, suggested)

    def _call(self, worker: int, suggested: dict[str, Any]) -> None:
        settings = self.settings | suggested
        self.pool.call(worker, "trial", self.book, settings, self.distances, self.seed)

    def _finish(self, trial: optuna.Trial, reply: WorkerReply) -> None:
        if isinstance(reply.value, SoftloreError):
            self._fail(trial, str(reply.value))
            return
        scores = Scores(**reply.get())
        score = scores.score(self.drift_weight)
        if not math.isfinite(score):
            self._fail(trial, "recall or drift could not be measured")
            return
        trial.set_user_attr("scores", asdict(scores))
        self.study.tell(trial, score)
        self.on_trial(FinishedTrial.of(self.study.trials[trial.number]))

    def _fail(self, trial: optuna.Trial, why: str) -> None:
        trial.set_user_attr("why", why)
        self.study.tell(trial, state=TrialState.FAIL)
        self.on_trial(FinishedTrial.of(self.study.trials[trial.number]))

    def _replace(self, worker: int, running: Running | None, lost: WorkerLost) -> None:
        """Replaces a worker that died; the new one repeats its trial."""
        number = -1 if running is None else running[0].number
        self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._deaths[number] >= MAX_DEATHS:
            if running is None:
                raise TrainingError(
                    f"a worker loading its model has died {MAX_DEATHS} times ({lost.why}); "
                    "expected it to keep running; check that its machine has enough memory"
                )
            self._fail(running[0], f"it has lost its worker {MAX_DEATHS} times ({lost.why})")
            self._running[worker] = None
        self.pool.replace(worker)
        self.pool.call(worker, "load")


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines() if line.strip())
    return next(lines, "no reason given")
