"""Training on Ray: the bit-same prompts, with any number of workers, whatever dies meanwhile.

pip install -e '.[dev,ray]' && pytest tests/engines/test_ray.py -m engines
"""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

ray = pytest.importorskip("ray")

from running import save_tiny_model  # noqa: E402
from softlore import Entry, FrozenModel, Lorebook, PromptLibrary  # noqa: E402
from softlore.errors import LoreError, ModelError, TrainingError  # noqa: E402
from softlore.tune.group_run import GroupRun  # noqa: E402
from softlore.tune.worker_pool import LocalWorkerPool, ModelSpec  # noqa: E402
from softlore.tune.worker_pool_ray import RayWorkerPool  # noqa: E402
from trained import assert_same, leftovers, prompts_in  # noqa: E402
from waiting import WAIT_SECONDS, wait_until  # noqa: E402

pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

STEPS = 12
NAMES = ["Ada", "Bo", "Cid", "Dot", "Eve"]
SETTINGS = {
    "n_tokens": 3,
    "max_steps": STEPS,
    "passage_tokens": 6,
    "distil_passages": 4,
    "max_spacing": 6,
}
BOOK = Lorebook.from_data(
    {
        "name": "town",
        "training": SETTINGS,
        "entries": [
            {
                "name": name,
                "text": f"{name} lives by the sea.",
                "blocks": [{"call": f"{name} wears", "responses": [" a hat", " a red coat"]}],
            }
            for name in NAMES
        ],
    }
)
THREADS = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ModelSpec(str(save_tiny_model(tmp_path_factory.mktemp("model"))), device="cpu")


@pytest.fixture(scope="module")
def cluster():
    """One Ray for all tests that run in this process; crews join it and leave it as it is."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def unbroken(model, tmp_path_factory):
    """What the groups come to in one process, without Ray."""
    folder = tmp_path_factory.mktemp("unbroken")
    loaded = FrozenModel.from_pretrained(model.name, device="cpu")
    train(LocalWorkerPool(loaded, THREADS), folder)
    return prompts_in(folder)


def train(pool, folder, on_event=None, **options):
    options = {"group_size": 2, "checkpoint_seconds": 0.0} | options
    try:
        return GroupRun(pool, BOOK, PromptLibrary(folder), on_event=on_event, **options).run()
    finally:
        pool.close()


def processes_of_workers(root=None):
    """Processes of Ray's actors, whichever raylet has begun them."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process)
        except psutil.Error:
            continue
    return found


class Killer:
    """Kills the process of every worker, once, when a group is at an update; SIGKILL."""

    def __init__(self, number, step, times=1):
        self.number, self.step, self.times = number, step, times
        self.events = []

    def __call__(self, news):
        report = news.report
        self.events.append((news.event, report.number, report.step))
        here = report.number == self.number and report.step >= self.step
        if self.times and here and news.event in ("begun", "update"):
            self.times -= 1
            victims = processes_of_workers()
            assert victims
            for process in victims:
                process.kill()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_matter(workers, cluster, model, unbroken, tmp_path):
    done = train(RayWorkerPool(model, workers=workers, threads=THREADS), tmp_path)
    assert ([prompt.name for prompt in done.trained], done.lost) == (NAMES, 0)
    assert_same(prompts_in(tmp_path), unbroken)
    assert leftovers(tmp_path) == []


def test_workers_killed_in_the_middle_lose_nothing(cluster, model, unbroken, tmp_path):
    killer = Killer(number=1, step=STEPS // 2)
    done = train(RayWorkerPool(model, workers=2, threads=THREADS), tmp_path, killer)
    assert done.lost >= 1
    lost = killer.events.index(next(h for h in killer.events if h[0] == "lost" and h[1] == 1))
    taken_up = next(h for h in killer.events[lost:] if h[:2] == ("begun", 1))
    assert taken_up[2] >= STEPS // 2, "every update was kept: checkpoint_seconds is 0"
    assert_same(prompts_in(tmp_path), unbroken)
    assert leftovers(tmp_path) == []


def test_killed_between_checkpoints(cluster, model, unbroken, tmp_path):
    """There was none yet: the group begins anew, and comes to the same."""
    killer = Killer(number=1, step=1)
    done = train(
        RayWorkerPool(model, workers=1, threads=THREADS), tmp_path, killer, checkpoint_seconds=2.0
    )
    assert done.lost == 1
    assert_same(prompts_in(tmp_path), unbroken)


def test_a_group_whose_workers_always_die(cluster, model, tmp_path):
    killer = Killer(number=1, step=0, times=3)
    with pytest.raises(TrainingError, match="lost its worker 3 times in a row"):
        train(RayWorkerPool(model, workers=1, threads=THREADS), tmp_path, killer)


def test_errors_come_back_as_they_are(cluster, model, tmp_path):
    with pytest.raises(ModelError, match="no-such-model"):
        train(RayWorkerPool(ModelSpec(str(tmp_path / "no-such-model"))), tmp_path / "out")
    long = Lorebook(
        name="long", entries=[Entry(name="Ada", blocks=[("Ada is", [" a word" * 400])])]
    )
    pool = RayWorkerPool(model, workers=1)
    try:
        with pytest.raises(LoreError, match="'Ada'"):
            GroupRun(pool, long, PromptLibrary(tmp_path / "out"), group_size=1).run()
    finally:
        pool.close()


# the command -------------------------------------------------------------------------------------


@pytest.fixture
def command(model, tmp_path):
    lore = tmp_path / "lore.yaml"
    BOOK.save(lore)
    where = ["--model", model.name, "--device", "cpu", "--out", str(tmp_path / "out")]
    how = ["--group-size", "2", "--threads", str(THREADS), "--checkpoint-seconds", "0"]
    return [sys.executable, "-m", "softlore", "train", str(lore), *where, *how]


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, **options)


def test_the_command_stopped_and_gone_on_with(command, unbroken, tmp_path):
    """Ctrl-C in a terminal goes to every process of the group; Ray's are in groups of their own."""
    with_ray = [*command, "--ray", "--workers", "2", "--max-steps", "60"]
    running = subprocess.Popen(
        with_ray, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    kept = tmp_path / "out" / ".training" / "town.group-1.checkpoint"
    wait_until(lambda: kept.exists() or running.poll() is not None)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=WAIT_SECONDS)
    assert running.returncode == 130, said
    assert "stopped; progress is saved" in said
    assert "Traceback" not in said
    assert kept.exists()

    done = run([*with_ray, "--json", "-"])
    assert done.returncode == 0, done.stderr
    assert [one["steps"] for one in json.loads(done.stdout)["trained"]] == [60] * len(NAMES)
    assert "begins at update 0" not in done.stderr.split("group 2")[0].split("group 1")[-1]
    assert leftovers(tmp_path / "out") == []
    once = run([*command, "--max-steps", "60", "--overwrite", "--out", str(tmp_path / "plain")])
    assert once.returncode == 0, once.stderr
    assert_same(prompts_in(tmp_path / "out"), prompts_in(tmp_path / "plain"))


def test_no_cluster_there(command):
    done = run([*command, "--ray", "127.0.0.1:1"])
    assert done.returncode == 2
    assert "there is no Ray at '127.0.0.1:1'" in done.stderr
    assert "Traceback" not in done.stderr


# A cluster of two machines, which are processes of this one; one of them is lost in the middle.
TWO_MACHINES = """
import subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

kept, *command = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
running = subprocess.Popen([*command, "--ray", cluster.address])
end = time.monotonic() + 60
while not all(Path(kept.format(n)).exists() for n in (1, 2)) and time.monotonic() < end:
    time.sleep(0.05)
cluster.remove_node(second, allow_graceful=False)
code = running.wait(100)
cluster.shutdown()
sys.exit(code)
"""


def test_a_machine_is_lost(command, tmp_path):
    more = ["--max-steps", "300", "--checkpoint-seconds", "0.5"]
    kept = tmp_path / "out" / ".training" / "town.group-{}.checkpoint"
    started = [sys.executable, "-c", TWO_MACHINES, str(kept), *command, *more, "--workers", "2"]
    done = run(started)
    assert done.returncode == 0, done.stderr
    assert "has lost its worker; continues from its checkpoint" in done.stderr
    once = run([*command, *more, "--out", str(tmp_path / "plain")])
    assert once.returncode == 0, once.stderr
    assert_same(prompts_in(tmp_path / "out"), prompts_in(tmp_path / "plain"))
