"""Several processes share out every update: what one process does up to rounding; all stop as one.

pip install -e '.[dev]' && pytest tests/engines/test_torchrun.py -m engines
"""

import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from torch import distributed

from running import save_tiny_model
from trained import prompts_in
from waiting import WAIT_SECONDS, wait_until

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo"),
]

TOLERANCE = 1e-4  # of the largest number of a prompt, after 20 updates in float32
LONG = 4000  # updates: a run that is to be disturbed in the middle
LORE = """
name: town
training: {n_tokens: 3, max_steps: 20, passage_tokens: 6, distil_passages: 4, max_spacing: 6}
entries:
  - {name: Ada, text: Ada is a witch., blocks: [{call: Ada wears, responses: [" a hat", " red"]}]}
  - {name: Bo, blocks: [{call: Bo wears, responses: [" a coat", " a green coat"]}]}
  - {name: Cid, text: Cid keeps a shop.}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def command(model, tmp_path):
    (tmp_path / "lore.yaml").write_text(LORE, encoding="utf-8")

    def make(folder, *more, processes=2, restarts=0):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        # On a busy machine gloo's processes may not find each other at once.
        torchrun += ["--max-restarts", str(restarts)]
        start = [*torchrun, "--nproc-per-node", str(processes), "-m"]
        if processes == 1:
            start = [sys.executable, "-m"]
        where = ["--model", model, "--device", "cpu", "--out", tmp_path / folder]
        told = ["softlore", "train", tmp_path / "lore.yaml", *where, *more]
        return [str(part) for part in [*start, *told]]

    return make


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run(command):
    return subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_SECONDS, env=ENVIRONMENT
    )


def begin(command):
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


def wait_for_checkpoint(running, folder):
    """Until a run is in the middle of its training."""
    kept = folder / ".training" / "town.checkpoint"
    wait_until(kept.exists, lambda: running.communicate(), lambda: running.poll() is None)
    first = kept.stat().st_mtime_ns
    wait_until(lambda: kept.stat().st_mtime_ns != first, alive=lambda: running.poll() is None)
    return kept


@pytest.mark.parametrize(
    "more",
    [
        (),  # trunks are dealt out, or leaves where there is one trunk
        ("--entry", "Ada", "--kind", "embedding"),  # one trunk: its leaves are
        ("--company-size", 1, "--distil-weight", 0.5),
    ],
)
def test_what_one_process_does(more, command, tmp_path):
    one, two = run(command("one", *more, processes=1)), run(command("two", *more, restarts=2))
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    expected, found = prompts_in(tmp_path / "one"), prompts_in(tmp_path / "two")
    assert list(found) == list(expected)
    for name, prompt in found.items():
        assert prompt.training == expected[name].training
        tensor = expected[name].tensor
        torch.testing.assert_close(
            prompt.tensor, tensor, rtol=0, atol=TOLERANCE * float(tensor.abs().max())
        )
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
    assert two.stderr.count("wrote ") == len(found), "the first process alone speaks"


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_all_stop_together(kind, command, tmp_path):
    more = ("--max-steps", LONG, "--checkpoint-seconds", 0.2)
    running = begin(command("out", *more))
    kept = wait_for_checkpoint(running, tmp_path / "out")
    running.send_signal(kind)  # torchrun passes it on, or another
    _, said = running.communicate(timeout=WAIT_SECONDS)
    assert "forcefully exiting" not in said, "torchrun did not have to kill anybody"
    assert running.returncode != 0
    assert kept.exists()
    assert "progress is saved" in said

    few = ("--max-steps", LONG, "--patience", 1)  # another run is refused, once
    done = run(command("out", *few))
    assert done.returncode != 0
    assert done.stderr.count("is of another run") == 1


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(command, tmp_path):
    more = ("--max-steps", 400, "--checkpoint-seconds", 0)
    whole = run(command("whole", *more, restarts=2))
    assert whole.returncode == 0, whole.stderr
    running = begin(command("out", *more))
    wait_for_checkpoint(running, tmp_path / "out")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=WAIT_SECONDS)
    done = run(command("out", *more, restarts=2))
    assert done.returncode == 0, done.stderr
    assert "continuing from update" in done.stderr
    assert prompts_in(tmp_path / "out") == prompts_in(tmp_path / "whole")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_dies_ends_the_run(rank, command, tmp_path):
    running = begin(command("out", "--max-steps", LONG, "--checkpoint-seconds", 0.2))
    kept = wait_for_checkpoint(running, tmp_path / "out")
    for process in psutil.Process(running.pid).children():
        if process.environ().get("RANK") == rank:
            process.kill()
    running.communicate(timeout=WAIT_SECONDS)
    assert running.returncode != 0
    assert kept.exists()


def test_what_does_not_go_together(command):
    done = run(command("out", "--group-size", 2))
    assert done.returncode != 0
    assert "leave torchrun out" in done.stderr
