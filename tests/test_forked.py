"""Copies of a process share the updates of a small model: to the prompts that one makes alone."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch

from running import save_tiny_model
from softlore import Entry, WorldInfoTrainer
from softlore.errors import TrainingError
from softlore.model.tiny import tiny_model
from softlore.tune import Checkpointing, Execution, forked
from trained import prompts_in
from waiting import WAIT_SECONDS, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes fork on Linux only")

TOLERANCE = 1e-4  # of the largest number of a prompt, after 20 updates in float32
ENTRIES = [
    Entry(name="Ada", text="Ada is a witch.", blocks=[("Ada wears", [" a hat", " a red coat"])]),
    Entry(name="Bo", blocks=[("Bo wears", [" a coat", " a green coat"])]),
    Entry(name="Cid", text="Cid keeps a shop."),
]
SETTINGS = {
    "n_tokens": 3,
    "max_steps": 20,
    "passage_tokens": 6,
    "distil_passages": 4,
    "max_spacing": 6,
}


def trainer(processes, entries=ENTRIES, **settings):
    execution = settings.pop("execution", None) or Execution(processes=processes)
    return WorldInfoTrainer(
        tiny_model("llama"), entries=entries, execution=execution, **SETTINGS | settings
    )


def assert_close(found, expected):
    assert list(found) == list(expected)
    for name, prompt in found.items():
        assert prompt.training == expected[name].training
        whole = expected[name].tensor
        atol = TOLERANCE * float(whole.abs().max())
        torch.testing.assert_close(prompt.tensor, whole, rtol=0, atol=atol)


def tensors(training):
    """What a trainer makes, number by number."""
    return {name: prompt.tensor.tolist() for name, prompt in training.train().items()}


@pytest.fixture
def copies(monkeypatch):
    """The processes that were started as copies."""
    fork, started = forked._fork, []

    def counting():
        if copy := fork():
            started.append(copy)
        return copy

    monkeypatch.setattr(forked, "_fork", counting)
    return started


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, {}),
        (3, {}),
        (2, {"kind": "embedding"}),
        (2, {"patience": 2, "max_steps": 30}),  # losses are measured together, and end the run
        (2, {"max_active": 1}),  # entries start, and passages are written, in the copies, too
    ],
)
def test_processes_make_the_prompts_of_one(processes, settings, copies):
    alone = trainer(1, **settings)
    expected = alone.train()
    assert not copies
    together = trainer(processes, **settings)
    assert_close(together.train(), expected)
    assert len(copies) == processes - 1
    assert together.step == alone.step
    for one, other in zip(alone.trainables.values(), together.trainables.values(), strict=True):
        assert other.history.keys() == one.history.keys()
        for name, losses in one.history.items():
            assert other.history[name] == pytest.approx(losses, rel=1e-3, abs=1e-4)


def test_a_single_entry_is_shared_by_its_branches(copies):
    expected = trainer(1, ENTRIES[:1]).train()
    assert_close(trainer(8, ENTRIES[:1]).train(), expected)
    assert len(copies) == 1, "more copies would all run the same trunk"


def test_the_same_processes_make_the_same_bits():
    assert tensors(trainer(2)) == tensors(trainer(2))


def test_no_process_is_left_and_threads_are_as_before(copies):
    threads = torch.get_num_threads()
    training = trainer(3)
    training.on_step = lambda progress: progress.step == 2
    training.train()
    assert training.step == 2
    assert torch.get_num_threads() == threads
    assert not any(psutil.pid_exists(copy) for copy in copies)
    training.update()  # alone
    assert training.step == 3


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path):
    whole = tensors(trainer(2))
    path = tmp_path / "run.checkpoint"

    def interrupt(progress):
        if progress.step == 7:
            raise KeyboardInterrupt

    training = trainer(2, checkpointing=Checkpointing(path), on_step=interrupt)
    with pytest.raises(KeyboardInterrupt):
        training.train()
    again = trainer(2, checkpointing=Checkpointing(path))
    again.prepare()
    assert again.step == 7
    assert tensors(again) == whole


def test_a_copy_that_is_killed_ends_the_run_with_words(copies):
    training = trainer(2, max_steps=1000)

    def kill(progress):
        if progress.step == 3:
            os.kill(copies[0], signal.SIGKILL)

    training.on_step = kill
    with pytest.raises(TrainingError, match="continues from the last checkpoint"):
        training.train()


def test_only_small_models_on_the_processor(monkeypatch):
    small, execution = tiny_model("llama"), Execution(processes=4)
    assert execution.processes_for(small, 9) == 4
    assert execution.processes_for(small, 3) == 3
    monkeypatch.setattr(forked, "SMALL", small.width - 1)
    assert execution.processes_for(small, 9) == 1


def test_a_time_budget_is_kept_by_all(copies):
    training = trainer(0, execution=Execution(8.0, processes=2), max_steps=100_000, patience=None)
    prompts = training.train()
    assert copies
    assert {prompt.training["stopped"] for prompt in prompts.values()} == {"time_budget"}


def test_the_command_shares_its_threads_and_stops_on_ctrl_c(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    lore = tmp_path / "lore.yaml"
    lore.write_text(
        "name: town\ntraining: {n_tokens: 3, max_spacing: 6, distil_weight: 0}\nentries:\n"
        '  - {name: Ada, blocks: [{call: Ada wears, responses: [" a hat", " red"]}]}\n'
        '  - {name: Bo, blocks: [{call: Bo wears, responses: [" a coat", " a green coat"]}]}\n',
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "softlore", "train", lore, "--model", model, "--out"]
    command += [tmp_path / "out", "--device", "cpu", "--threads", 2]
    few = subprocess.run(
        [str(part) for part in [*command, "--max-steps", 3]],
        capture_output=True, text=True, timeout=WAIT_SECONDS,
    )  # fmt: skip
    assert few.returncode == 0, few.stderr
    assert len(prompts_in(tmp_path / "out")) == few.stderr.count("wrote ") == 2

    more = [*command, "--overwrite", "--max-steps", 100_000, "--patience", 100_000]
    running = subprocess.Popen(
        [str(part) for part in [*more, "--checkpoint-seconds", 0.2]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    process, found = psutil.Process(running.pid), []

    def sharing():
        with contextlib.suppress(psutil.NoSuchProcess):
            found[:] = process.children()
        return bool(found)

    wait_until(sharing, alive=lambda: running.poll() is None)
    kept = tmp_path / "out" / ".training" / "town.checkpoint"
    first = kept.stat().st_mtime_ns
    wait_until(lambda: kept.stat().st_mtime_ns != first, alive=lambda: running.poll() is None)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    _, said = running.communicate(timeout=WAIT_SECONDS)
    assert running.returncode == 130, said
    assert "progress is saved" in said
    assert "Traceback" not in said
    wait_until(lambda: not any(child.is_running() for child in found))
