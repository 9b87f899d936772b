"""A run that is killed, stopped or refused goes on to the bit-same prompts; nothing is lost.

`SOFTLORE_KILLS=20 pytest tests/test_resume.py -k random` kills at 20 random moments.
"""

import os
import random
import re
import shutil
import signal
import threading
import time
from functools import partial

import pytest
import torch

from running import Running, save_tiny_model, softlore
from softlore import Entry, WorldInfoTrainer, disk
from softlore.errors import ConfigError, StorageError
from softlore.model.tiny import tiny_model
from softlore.tune import Checkpointing, Company, Execution
from softlore.tune.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint
from softlore.tune.lorebook_training import checkpoint_path
from softlore.tune.trainable_prompt import TrainablePrompt
from trained import assert_same, leftovers, prompts_in
from waiting import wait_until

KILLS = int(os.environ.get("SOFTLORE_KILLS", "6"))
LORE = """
name: harbour town
training:
  {n_tokens: 3, max_steps: 12, passage_tokens: 6, distil_passages: 4, max_spacing: 6, max_active: 2}
entries:
  - {name: Ada, text: Ada is a witch., blocks: [{call: Ada wears, responses: [" a hat", " red"]}]}
  - {name: Bo, blocks: [{call: Bo wears, responses: [" a coat"]}]}
  - {name: Cid, text: Cid keeps a shop.}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lore(tmp_path_factory):
    path = tmp_path_factory.mktemp("lore") / "town.yaml"
    path.write_text(LORE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def unbroken(model, lore, tmp_path_factory):
    """What a run makes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("unbroken")
    ended = Running(folder, *train(lore, model, folder)).end()
    assert ended.code == 0, ended.err
    return prompts_in(folder / "out")


def train(lore, model, folder, *more):
    where = ["--model", model, "--out", folder / "out", "--checkpoint-seconds", 0]
    return ["train", lore, *where, *more]


# killed ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_moment(number, model, lore, unbroken, tmp_path):
    """SIGKILL from outside; most come while it trains, some while it loads or saves."""
    draw = random.Random(f"kill/{number}")
    command = train(lore, model, tmp_path)
    running = Running(tmp_path, *command)
    if draw.random() < 0.8:
        running.wait_for(checkpoint_path(tmp_path / "out", "harbour town"))
    ended = running.end(after=draw.uniform(0, 0.5))
    assert ended.code in (0, -signal.SIGKILL)
    ended = Running(tmp_path, *command).end()
    assert ended.code == 0, ended.err
    assert_same(prompts_in(tmp_path / "out"), unbroken)


def kill_at(call, after):
    """From now on, this process kills itself at the given replacement of a file by another."""
    calls, replace = [0], os.replace

    def replace_or_die(source, target):
        calls[0] += 1
        if calls[0] == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)

    disk.os.replace = replace_or_die


# One replacement at the start, one an update (18: three entries make 12 each, two at a time), one
# at the end, and one a prompt.
PLACES = [(2, False), (14, True), (21, False), (22, False), (23, True)]


@pytest.mark.slow
@pytest.mark.parametrize(("call", "after"), PLACES)
def test_killed_while_a_file_is_written(call, after, model, lore, unbroken, tmp_path):
    command = train(lore, model, tmp_path)
    ended = Running(tmp_path, *command, at_start=partial(kill_at, call, after)).end()
    assert ended.code == -signal.SIGKILL, ended.err
    assert len(prompts_in(tmp_path / "out")) == max(0, call - 21 + after)
    ended = Running(tmp_path, *command).end()
    assert ended.code == 0, ended.err
    assert ("continuing from update" in ended.err) == (call > 2 or (call, after) == (2, True))
    assert_same(prompts_in(tmp_path / "out"), unbroken)
    if after:
        assert leftovers(tmp_path / "out") == []


@pytest.mark.slow
def test_killed_again_and_again(model, lore, unbroken, tmp_path):
    """Each run gets a little further."""
    command = train(lore, model, tmp_path)
    checkpoint = checkpoint_path(tmp_path / "out", "harbour town")
    updates = []
    for _ in range(3):
        Running(tmp_path, *command, at_start=partial(kill_at, 6, True)).end()
        updates.append(load_checkpoint(checkpoint)[1]["step"])
    assert updates == [5, 11, 17]  # a resumed run need not write what it has just read
    assert Running(tmp_path, *command).end().code == 0
    assert_same(prompts_in(tmp_path / "out"), unbroken)


@pytest.mark.slow
def test_ctrl_c(model, lore, unbroken, tmp_path):
    command = train(lore, model, tmp_path)
    running = Running(tmp_path, *command, at_start=slowly)
    kept = checkpoint_path(tmp_path / "out", "harbour town")
    running.wait_for(kept)
    first = kept.stat().st_mtime_ns
    wait_until(lambda: kept.stat().st_mtime_ns != first)
    os.kill(running.pid, signal.SIGINT)
    ended = running.end()
    assert ended.code == 130
    assert ended.out == ""
    said = [line for line in ended.lines if line.startswith("softlore:")]
    assert said == ["softlore: stopped; progress is saved: the same command continues from here"]
    assert ended.lines[-1] == said[0]
    assert "" not in ended.lines
    assert not prompts_in(tmp_path / "out")

    ended = Running(tmp_path, *command).end()
    assert ended.code == 0
    assert "continuing from update" in ended.err
    assert_same(prompts_in(tmp_path / "out"), unbroken)
    assert leftovers(tmp_path / "out") == []


def slowly():
    """An update takes a little longer, so that a signal finds one.

    Tests that run in a shell's background inherit that Ctrl-C is ignored; here it is not.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    update = WorldInfoTrainer.update

    def slow(self):
        time.sleep(0.4)
        update(self)

    WorldInfoTrainer.update = slow


# by the library ----------------------------------------------------------------------------------

ENTRIES = [
    Entry(name="Ada", text="Ada is a witch.", blocks=[("Ada wears", [" a hat", " red boots"])]),
    Entry(name="Bo", blocks=[("Bo wears", [" a coat"])]),
    Entry(name="Cid", blocks=[("Cid wears", [" a mask and a long grey cloak"])]),
]
TINY = tiny_model("llama")


def small(path=None, seconds=10.0, overwrite=False, **settings):
    usual = {"n_tokens": 3, "max_steps": 6, "passage_tokens": 6, "distil_passages": 4}
    usual |= {"entries": ENTRIES, "max_spacing": 6}
    usual |= {"checkpointing": Checkpointing(path, seconds, overwrite)}
    return WorldInfoTrainer(TINY, **(usual | settings))


def at_update(number):
    return lambda progress: progress.step >= number


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=7)


def in_sequence(optimizer):
    schedules = torch.optim.lr_scheduler
    parts = [
        schedules.LinearLR(optimizer, 0.1, total_iters=3),
        schedules.CosineAnnealingLR(optimizer, T_max=4),
    ]
    return schedules.SequentialLR(optimizer, parts, milestones=[3])


def momentum(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True)


def said(given):
    """What pytest calls a case: the same in every process."""
    return re.sub(r" at 0x\w+|, started=[\d.]+", "", str(given))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "embedding"},
        {"optimizer": "adafactor"},
        {"optimizer": "adagrad", "schedule": "linear"},
        {"optimizer": momentum, "schedule": "constant"},
        {"schedule": one_cycle},
        {"schedule": in_sequence},
        {"max_active": 1},
        {"max_active": 2, "patience": 2, "learning_rate": 1e-7},
        {"min_loss": 5.3, "max_spacing": 0},
        {"filler": "random", "drift_guard": 0},
        {"execution": Execution(time_budget=1e6)},
    ],
    ids=said,
)
def test_stopped_and_resumed(settings, tmp_path):
    whole = small(**settings)
    expected = whole.train()
    for stop in (1, whole.step // 2 + 1):
        path = tmp_path / f"{stop}.checkpoint"
        small(path, on_step=at_update(stop), **settings).train()
        resumed = small(path, **settings)
        found = resumed.train()
        for name, prompt in expected.items():
            assert torch.equal(found[name].tensor, prompt.tensor), (stop, name)
            assert found[name].uuid == prompt.uuid
            assert found[name].training == prompt.training
        assert resumed.trainables["Bo"].history == whole.trainables["Bo"].history
    again = small(path, **settings)  # what is finished stays so
    assert again.train()["Bo"].uuid == expected["Bo"].uuid
    assert again.step == whole.step


def test_a_resumed_run_keeps_the_updates_that_its_budget_left(tmp_path):
    path = tmp_path / "a.checkpoint"
    first = small(path, execution=Execution(time_budget=0.001), on_step=at_update(1))
    first.train()
    assert {trainable.stopped for trainable in first.trainables.values()} == {"time_budget"}
    resumed = small(path, execution=Execution(time_budget=1000.0))
    prompts = resumed.train()
    assert {prompt.training["steps"] for prompt in prompts.values()} == {1}


@pytest.fixture
def interruptible():
    """Ctrl-C raises, which it does not in what a shell has started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_finds_every_entry_at_the_same_update(tmp_path, monkeypatch):
    """Ctrl-C while optimizers step: all of them do, then it stops."""
    expected = small().train()
    update, calls = TrainablePrompt.update, []

    def interrupted(self, losses):
        update(self, losses)
        calls.append(self.name)
        if len(calls) == 5:  # of the second update, the second entry
            signal.raise_signal(signal.SIGINT)

    path = tmp_path / "a.checkpoint"
    with monkeypatch.context() as patched:
        patched.setattr(TrainablePrompt, "update", interrupted)
        training = small(path)
        with pytest.raises(KeyboardInterrupt):
            training.train()
    assert len(calls) == 6
    assert training.step == 2
    assert {trainable.steps for trainable in training.trainables.values()} == {2}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    found = small(path).train()
    assert all(torch.equal(found[name].tensor, p.tensor) for name, p in expected.items())


def test_in_a_thread(tmp_path):
    """Where no signal can be put off."""
    found = {}
    thread = threading.Thread(target=lambda: found.update(small(tmp_path / "a").train()))
    thread.start()
    thread.join()
    assert list(found) == ["Ada", "Bo", "Cid"]


def test_how_often_it_is_saved(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(WorldInfoTrainer, "save", lambda self: saved.append(self.step))
    small(tmp_path / "a", max_steps=4, seconds=0).train()
    assert saved == [0, 1, 2, 3, 4, 4]
    saved.clear()
    small(tmp_path / "a", max_steps=4).train()
    assert saved == [0, 4]


def test_two_runs_do_not_share_a_checkpoint(tmp_path):
    refusals = []

    def second(progress):
        with pytest.raises(ConfigError, match="another run is training into") as refused:
            small(tmp_path / "run.checkpoint").train()
        refusals.append(refused.value)
        return True

    small(tmp_path / "run.checkpoint", on_step=second).train()
    assert len(refusals) == 1
    small(tmp_path / "run.checkpoint").train()  # the first has ended
    assert [path.name for path in tmp_path.iterdir()] == ["run.checkpoint"]


def test_without_a_checkpoint_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small(max_steps=2).train()
    assert list(tmp_path.iterdir()) == []


# refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"n_tokens": 4}, "n_tokens was 3 and is 4"),
        ({"max_steps": 9}, "max_steps was 6 and is 9"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"kind": "embedding"}, "kind was 'prefix' and is 'embedding'"),
        ({"optimizer": momentum}, "optimizer was 'muon' and is 'momentum'"),
        ({"story": "Far away a bell rang, and rang."}, "story was False and is '"),
        ({"entries": ENTRIES[:2]}, "entry 'Cid' is gone"),
        ({"entries": [*ENTRIES, Entry(name="Dee", text="Dee.")]}, "entry 'Dee' is new"),
        (
            {"entries": [ENTRIES[0], Entry(name="Bo", text="Bo is old."), ENTRIES[2]]},
            "entry 'Bo' has changed",
        ),
        ({"entries": ENTRIES[::-1]}, "the entries stand in another order"),
    ],
    ids=said,
)
def test_a_checkpoint_of_another_run_is_refused(change, expected, tmp_path):
    path = tmp_path / "a.checkpoint"
    small(path, on_step=at_update(2)).train()
    before = path.read_bytes()
    with pytest.raises(ConfigError) as caught:
        small(path, **change).train()
    assert f"is of another run ({expected}" in str(caught.value)
    assert "to start over, pass overwrite=True (--overwrite)" in str(caught.value)
    assert path.read_bytes() == before
    anew = small(path, overwrite=True, **change)
    anew.prepare()
    assert anew.step == 0
    assert path.read_bytes() != before


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "a.checkpoint"
    small(path, on_step=at_update(1)).train()
    other = WorldInfoTrainer(
        tiny_model("llama", seed=1), entries=ENTRIES, checkpointing=Checkpointing(path)
    )
    with pytest.raises(ConfigError, match="of another run \\(it was on another model"):
        other.train()


def test_company_belongs_to_the_run(tmp_path):
    path = tmp_path / "a.checkpoint"
    company = Company({"Ada": small(entries=ENTRIES[:1]).train()["Ada"]})
    small(path, entries=ENTRIES[1:], company=company, on_step=at_update(1)).train()
    with pytest.raises(ConfigError, match="company's prompt 'Ada' is gone"):
        small(path, entries=ENTRIES[1:]).train()
    other = Company({"Ada": small(entries=ENTRIES[:1], seed=1).train()["Ada"]})
    with pytest.raises(ConfigError, match="company's prompt 'Ada' has changed"):
        small(path, entries=ENTRIES[1:], company=other).train()


def test_again_goes_on_from_its_own_checkpoint(tmp_path):
    """Beginning anew would come to the same bits, only later."""
    path = tmp_path / "a.checkpoint"
    small(path, on_step=at_update(3)).train()
    resumed = small(path, overwrite=True)
    resumed.prepare()
    assert resumed.step == 3


def spoilt(content, how):
    middle = len(content) // 2
    return {
        "empty": b"",
        "half": content[:middle],
        "one byte less": content[:-1],
        "one bit turned": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "facts changed": content.replace(b'\\"step\\": 2', b'\\"step\\": 3', 1),
        "other version": content.replace(b'_checkpoint":"6"', b'_checkpoint":"0"', 1),
        "text": b"what is this",
    }[how]


@pytest.mark.parametrize(
    "how",
    ["empty", "half", "one byte less", "one bit turned", "facts changed", "other version", "text"],
)
def test_a_damaged_checkpoint_is_refused(how, tmp_path):
    path = tmp_path / "a.checkpoint"
    small(path, on_step=at_update(2)).train()
    content = path.read_bytes()
    damaged = spoilt(content, how)
    assert damaged != content
    path.write_bytes(damaged)
    with pytest.raises(
        StorageError, match=r"checkpoint' can't be read \(.*--overwrite\), or delete"
    ):
        small(path).train()
    assert path.read_bytes() == damaged
    expected = small().train()
    found = small(path, overwrite=True).train()
    assert all(torch.equal(found[name].tensor, p.tensor) for name, p in expected.items())


def test_a_prompt_file_is_no_checkpoint(tmp_path):
    path = tmp_path / "a.safetensors"
    small(entries=ENTRIES[:1], max_steps=1).train()["Ada"].save(path)
    with pytest.raises(StorageError, match="not a checkpoint of this version"):
        load_checkpoint(path)
    with pytest.raises(StorageError, match="can't be read"):
        load_checkpoint(tmp_path)


def test_what_killed_runs_leave_is_removed(tmp_path):
    folder = tmp_path / "out" / ".training"
    path = folder / "lore.checkpoint"
    save_checkpoint(path, {"a/parameter": torch.ones(2)}, {})
    old, young, other = (folder / name for name in (".softlore-1.tmp", ".softlore-2.tmp", "b.txt"))
    for file in (old, young, other):
        file.write_text("x")
    os.utime(old, (1, 1))
    remove_checkpoint(path)
    assert sorted(folder.iterdir()) == sorted([young, other])  # somebody may be writing one
    young.unlink()
    other.unlink()
    remove_checkpoint(path)
    assert not folder.exists()


# by the command ----------------------------------------------------------------------------------


@pytest.fixture
def begun(model, lore, tmp_path):
    """A folder with a run in it that was killed at its eighth update."""
    command = train(lore, model, tmp_path)
    Running(tmp_path, *command, at_start=partial(kill_at, 9, True)).end()
    checkpoint = checkpoint_path(tmp_path / "out", "harbour town")
    assert load_checkpoint(checkpoint)[1]["step"] == 8
    return command, checkpoint


@pytest.mark.slow
def test_the_command_says_in_what_a_run_differs(begun, unbroken, tmp_path):
    command, checkpoint = begun
    before = checkpoint.read_bytes()
    ended = softlore(*command, "--n-tokens", 5)
    assert ended.code == 2
    assert ended.out == ""
    (line,) = ended.lines_after_loading
    assert line.startswith("softlore: checkpoint ")
    assert "is of another run (n_tokens was 3 and is 5)" in line
    assert "--overwrite" in line
    assert checkpoint.read_bytes() == before
    assert softlore(*command).code == 0
    assert_same(prompts_in(tmp_path / "out"), unbroken)


@pytest.mark.slow
def test_the_command_begins_anew_when_told_so(begun, tmp_path):
    command, checkpoint = begun
    ended = softlore(*command, "--n-tokens", 5, "--overwrite")
    assert ended.code == 0, ended.err
    assert {len(prompt) for prompt in prompts_in(tmp_path / "out").values()} == {5}
    assert not checkpoint.exists()


@pytest.mark.slow
def test_the_command_refuses_a_damaged_checkpoint(begun, unbroken, tmp_path):
    command, checkpoint = begun
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-1])
    ended = softlore(*command)
    assert ended.code == 2
    (line,) = ended.lines_after_loading
    assert "harbour-town.checkpoint' can't be read" in line
    assert "or delete it" in line
    assert checkpoint.read_bytes() == content[:-1]
    assert not prompts_in(tmp_path / "out")
    shutil.copy(checkpoint, tmp_path / "aside")
    assert softlore(*command, "--overwrite").code == 0
    assert_same(prompts_in(tmp_path / "out"), unbroken)
