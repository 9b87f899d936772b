"""Sweeps of training settings: what is tried, kept, gone on with and refused.

pip install -e '.[dev,sweep]' && pytest tests/engines/test_sweep.py -m engines
"""

import contextlib
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys

import pytest

optuna = pytest.importorskip("optuna")

from running import save_tiny_model, softlore  # noqa: E402
from softlore import Lorebook  # noqa: E402
from softlore.errors import ConfigError, DivergedError, StorageError, TrainingError  # noqa: E402
from softlore.model.tiny import tiny_model  # noqa: E402
from softlore.tune.search_space import parse_space  # noqa: E402
from softlore.tune.sweep import Sweep  # noqa: E402
from softlore.tune.worker_pool import (  # noqa: E402
    LocalWorkerPool,
    Worker,
    WorkerLost,
    WorkerReply,
)
from waiting import WAIT_SECONDS  # noqa: E402

pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore"),  # Optuna's own
]

SPACE = ("n_tokens=2..4", "learning_rate=0.02..1:log", "kind=prefix,embedding")
BOOK = Lorebook.from_data(
    {
        "name": "town",
        "training": {"max_steps": 4, "passage_tokens": 6, "distil_passages": 4, "max_spacing": 6},
        "entries": [
            {
                "name": "Ada",
                "blocks": [{"call": "Ada wears", "responses": [" a hat"]}],
                "held_out": [{"call": "On Ada's head is", "responses": [" a hat"]}],
            },
            {"name": "Bo", "text": "Bo keeps a shop."},
        ],
    }
)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def quick(monkeypatch):
    """Trials that train nothing: what they come to follows from the settings."""

    def trial(self, book, settings, distances, seed):
        recall = abs(settings["learning_rate"] - 0.2) + settings["n_tokens"] / 100
        return {"recall": recall, "drift": float(settings["kind"] == "prefix"), "seconds": 1.0}

    monkeypatch.setattr(Worker, "trial", trial)


@pytest.fixture
def sweep(model, tmp_path):
    def run(*, trials=4, space=SPACE, pool=None, study="study.db", **options):
        pool = pool or LocalWorkerPool(model)
        options = {"distances": (0, 4)} | options
        try:
            return Sweep(
                pool,
                options.pop("book", BOOK),
                parse_space(space),
                tmp_path / study,
                model="tiny",
                trials=trials,
                **options,
            ).run()
        finally:
            pool.close()

    return run


def without_times(tried):
    """What was tried and what it came to, but for how long it took."""
    return sorted((one.number, str(one.settings), one.score) for one in tried)


class Stopping(LocalWorkerPool):
    """Ctrl-C comes before a given trial is answered."""

    def __init__(self, model, at):
        super().__init__(model)
        self.at = at

    def wait(self, seconds=None):
        if self._calls and self._calls[0][0] == "trial":
            self.at -= 1
            if self.at == 0:
                raise KeyboardInterrupt
        return super().wait(seconds)


def test_trials_are_ordered_by_score(sweep):
    tried = sweep(drift_weight=2.0)
    assert len(tried) == 4
    scores = [one.score for one in tried]
    assert scores == sorted(scores)
    for one in tried:
        assert one.score == pytest.approx(one.scores.recall + 2 * one.scores.drift)
        assert 2 <= one.settings["n_tokens"] <= 4
        assert 0.02 <= one.settings["learning_rate"] <= 1
        assert one.settings["kind"] in ("prefix", "embedding")
    assert len({str(one.settings) for one in tried}) > 1


def test_stopped_and_gone_on_with(quick, sweep, model):
    """What was being tried is tried first, and all comes to the same as without a stop."""
    whole = sweep(study="whole.db")
    with pytest.raises(KeyboardInterrupt):
        sweep(pool=Stopping(model, at=3))
    tried = sweep()
    assert len(tried) == 4
    assert [one.score for one in tried[:2]] == sorted(one.score for one in tried)[:2]
    settings = {str(one.settings) for one in tried}
    assert {str(one.settings) for one in whole if one.number < 3} <= settings
    assert without_times(sweep()) == without_times(tried), "there are enough of them"
    assert len(sweep(trials=5)) == 5


def test_the_same_seed_tries_the_same(quick, sweep):
    assert without_times(sweep(study="a.db")) == without_times(sweep(study="b.db"))
    assert without_times(sweep(study="c.db", seed=1)) != without_times(sweep(study="a.db"))


def test_no_time(sweep):
    assert sweep(seconds=0.0) == []


def test_a_trial_that_fails_is_one_among_others(quick, sweep, monkeypatch):
    train, calls = Worker.trial, []

    def trial(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise DivergedError("it met a loss that is not a number")
        return train(self, *arguments)

    monkeypatch.setattr(Worker, "trial", trial)
    tried = sweep()
    assert [one.score is None for one in tried] == [False, False, False, True]
    assert "not a number" in tried[-1].why


class Mortal(LocalWorkerPool):
    """The worker dies at given calls."""

    def __init__(self, model, *deaths):
        super().__init__(model)
        self.deaths, self.count = deaths, 0

    def wait(self, seconds=None):
        self.count += 1
        if self._calls and self.count in self.deaths:
            method, _ = self._calls.popleft()
            return WorkerReply(0, method, WorkerLost("it was killed"))
        return super().wait(seconds)

    def replace(self, worker):
        pass


def test_a_worker_that_dies_tries_the_same_once_more(quick, sweep, model):
    """Calls: load, trial (lost), load, trial, …"""
    whole = without_times(sweep(study="whole.db"))
    assert without_times(sweep(pool=Mortal(model, 2, 5))) == whole
    tried = sweep(pool=Mortal(model, 2, 4, 6), study="thrice.db")
    assert [one.why for one in tried if one.score is None] == [
        "it has lost its worker 3 times (it was killed)"
    ]
    with pytest.raises(TrainingError, match="has died 3 times"):
        sweep(pool=Mortal(model, 1, 2, 3), study="never.db")


# refused -----------------------------------------------------------------------------------------


def test_another_sweep_is_refused_and_again_begins_anew(quick, sweep):
    sweep(trials=2)
    with pytest.raises(ConfigError, match=r"other param\); .*--overwrite"):
        sweep(space=("n_tokens=2..3",))
    with pytest.raises(ConfigError, match="other settings"):
        sweep(max_steps=5)
    changed = BOOK.model_copy(update={"entries": BOOK.entries[:1]})
    with pytest.raises(ConfigError, match="other entries"):
        sweep(book=changed)
    assert len(sweep(trials=1, space=("n_tokens=2..3", *SPACE[1:]), overwrite=True)) == 1
    with pytest.raises(ConfigError, match="both swept and given"):
        sweep(n_tokens=3)


def test_a_file_that_is_no_study(sweep, tmp_path):
    (tmp_path / "study.db").write_bytes(b"my notes")
    with pytest.raises(StorageError, match="is not the study of a sweep"):
        sweep()
    assert (tmp_path / "study.db").read_bytes() == b"my notes"
    (tmp_path / "study.db").write_bytes(b"SQLite format 3\0" + b"x" * 99)
    with pytest.raises(StorageError, match="can't be opened"):
        sweep()


# the command -------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    BOOK.save(tmp_path / "lore.yaml")
    start = ["sweep", tmp_path / "lore.yaml", "--model", folder, "--distances", "0,4"]
    return [*map(str, start), *(part for one in SPACE for part in ("--param", one))]


def test_the_command_and_the_line_that_it_ends_with(command, tmp_path):
    ended = softlore(*command, "--trials", 2, "--json", tmp_path / "report.json")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["trials"]) == 2
    line = ended.out.split("train with the best: ")[1].strip()
    assert line == report["command"]
    program, *arguments = shlex.split(line)
    assert program == "softlore"
    done = softlore(*arguments, "--out", tmp_path / "out", "--json", "-")
    assert done.code == 0, done.err
    best = report["trials"][0]["settings"]
    for one in json.loads(done.out)["trained"]:
        assert (one["kind"], one["n_tokens"]) == (best["kind"], best["n_tokens"])


def test_the_command_killed_and_gone_on_with(command, tmp_path):
    study = tmp_path / "lore.sweep.db"
    whole_command = [sys.executable, "-m", "softlore", *command, "--trials", "200"]
    running = subprocess.Popen(whole_command, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and "trial 1:" not in running.stderr.readline():
        pass
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=WAIT_SECONDS)
    ended = softlore(*command, "--trials", 4, "--json", "-")
    assert ended.code == 0, ended.err
    trials = json.loads(ended.out)["trials"]
    assert len(trials) >= 4
    assert all(one["score"] is not None for one in trials)
    assert study.exists()


def test_on_ray(command, tmp_path):
    pytest.importorskip("ray")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole_command = [sys.executable, "-m", "softlore", *command, "--trials", "3", "--json", "-"]
    done = subprocess.run(
        [*whole_command, "--ray", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)["trials"]
    assert len(trials) == 3
    assert "2 workers of 1 thread" in done.stderr


@pytest.mark.parametrize("text", ["[" * 100_000, '"[[["', '"7"', "null", "{", '{"a": 1}'])
def test_a_study_whose_signature_is_not_one(quick, sweep, tmp_path, text):
    """What Optuna saved as JSON was changed: an error in words, and --overwrite starts over."""
    sweep(trials=1)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as study, study:
        study.execute("UPDATE study_user_attributes SET value_json = ?", (text,))
    if text == "null":
        assert len(sweep(trials=1)) == 1  # as one without a signature
        return
    with pytest.raises((StorageError, ConfigError), match=r"; expected .+; .+"):
        sweep(trials=1)
    assert len(sweep(trials=1, overwrite=True)) == 1


def test_a_study_whose_scores_are_not_scores(quick, sweep, tmp_path):
    sweep(trials=1)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as study, study:
        study.execute("UPDATE trial_user_attributes SET value_json = ? ", ('{"x": 1}',))
    with pytest.raises(StorageError, match="can't be opened"):
        sweep(trials=1)
