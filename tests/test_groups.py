"""Training in groups: the same bits whatever comes first, stops or dies; and what is refused."""

import json

import pytest
import torch

from running import save_tiny_model, softlore
from softlore import Lorebook, PromptLibrary, WorldInfoTrainer
from softlore.errors import (
    ConfigError,
    DivergedError,
    LoreError,
    SoftloreError,
    StorageError,
    TrainingError,
)
from softlore.model.tiny import tiny_model
from softlore.tune.group_run import GroupRun
from softlore.tune.groups import GroupRecord, group_name, record_path, split_book
from softlore.tune.lorebook_training import checkpoint_path
from softlore.tune.trainable_prompt import TrainablePrompt
from softlore.tune.worker_pool import LocalWorkerPool, Worker, WorkerLost, WorkerReply
from trained import assert_same, leftovers, prompts_in

SETTINGS = {
    "n_tokens": 3,
    "max_steps": 5,
    "passage_tokens": 6,
    "distil_passages": 4,
    "max_spacing": 6,
}
DOT = {"name": "Dot", "text": "Dot sings."}


def lorebook(*more):
    entries = [
        {"name": "Ada", "text": "Ada is a witch.", "blocks": [["Ada wears", [" a hat", " red"]]]},
        {"name": "Bo", "blocks": [["Bo wears", [" a coat"]]]},
        {"name": "Cid", "text": "Cid keeps a shop."},
        *more,
    ]
    for entry in entries:
        entry["blocks"] = [{"call": c, "responses": r} for c, r in entry.get("blocks", [])]
    return Lorebook.from_data({"name": "town", "training": SETTINGS, "entries": entries})


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


class Town:
    """A folder that a book is trained into, and its events."""

    def __init__(self, folder, model):
        self.library = PromptLibrary(folder)
        self.model = model
        self.events = []

    def train(self, book, stop_at=None, pool=None, **options):
        """`stop_at`: Ctrl-C at that piece of news, counted from 1."""
        self.events = []

        def record(event):
            self.events.append((event.event, event.report.number, event.report.step))
            if len(self.events) == stop_at:
                raise KeyboardInterrupt

        options = {"group_size": 2, "checkpoint_seconds": 0.0} | options
        pool = pool or LocalWorkerPool(self.model)
        try:
            return GroupRun(pool, book, self.library, on_event=record, **options).run()
        finally:
            pool.close()

    def prompts(self):
        return prompts_in(self.library.folder)

    def leftovers(self):
        return leftovers(self.library.folder)


@pytest.fixture
def town(model, tmp_path):
    return Town(tmp_path / "town", model)


@pytest.fixture(scope="module")
def unbroken(model, tmp_path_factory):
    """What a run makes that nothing disturbs."""
    town = Town(tmp_path_factory.mktemp("unbroken"), model)
    town.train(lorebook())
    assert town.leftovers() == []
    return town.prompts()


# groups ------------------------------------------------------------------------------------------


def test_entries_fall_into_groups_in_order():
    book = lorebook(DOT)
    parts = split_book(book, 3)
    assert [[entry.name for entry in part] for part in parts] == [["Ada", "Bo", "Cid"], ["Dot"]]
    assert [part.name for part in parts] == ["town.group-1", "town.group-2"]
    assert [len(part) for part in split_book(book, 9)] == [4]
    with pytest.raises(ConfigError, match="the group size is 0; expected at least 1"):
        split_book(book, 0)


def test_a_group_is_what_a_lorebook_of_its_own_would_be(model, unbroken):
    book = lorebook()
    for part in split_book(book, 2):
        alone = WorldInfoTrainer(model, entries=part.entries, **SETTINGS).train()
        for name, prompt in alone.items():
            assert torch.equal(prompt.tensor, unbroken[name].tensor)
            assert prompt.training == unbroken[name].training
    assert unbroken["Ada"].training["in_company"] == ["Bo"]
    assert unbroken["Cid"].training["alone"]
    assert unbroken["Ada"].metrics["recall"]["none"] > 0


def turn(call):
    """Models are loaded in order; then the second worker's calls come first."""
    worker, method, _ = call
    return (0, worker) if method == "load" else (1, -worker)


class Backwards(LocalWorkerPool):
    """Two workers of one process, of which the second always answers before the first."""

    size = 2

    def __init__(self, model):
        super().__init__(model)
        self.workers = [Worker(model, self.threads) for _ in range(2)]
        self.called = []

    def call(self, worker, method, *arguments):
        self.called.append((worker, method, arguments))

    def wait(self, seconds=None):
        if not self.called:
            return None
        self.called.sort(key=turn)
        worker, method, arguments = self.called.pop(0)
        try:
            return WorkerReply(worker, method, getattr(self.workers[worker], method)(*arguments))
        except SoftloreError as error:
            return WorkerReply(worker, method, error)


def test_neither_order_nor_number_of_workers_matters(town, unbroken):
    done = town.train(lorebook(), pool=Backwards(town.model))
    assert [number for event, number, _ in town.events if event == "done"] == [2, 1]
    assert [prompt.name for prompt in done.trained] == ["Ada", "Bo", "Cid"]
    assert [path.name for path in done.paths] == [f"{n}.safetensors" for n in ("ada", "bo", "cid")]
    assert_same(town.prompts(), unbroken)
    assert town.leftovers() == []


# stopped -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [1, 3, 6, 7, 8, 10, 14])
def test_a_stopped_run_goes_on(stop_at, town, unbroken):
    """Group 1: begun, five updates, done; then group 2."""
    with pytest.raises(KeyboardInterrupt):
        town.train(lorebook(), stop_at=stop_at)
    before = town.events[-1]
    town.train(lorebook())
    if before[0] == "update":
        assert town.events[0] == ("begun", before[1], before[2])
    assert_same(town.prompts(), unbroken)
    assert town.leftovers() == []


def test_what_again_has_trained_is_not_trained_once_more(town, unbroken):
    town.train(lorebook())
    with pytest.raises(KeyboardInterrupt):
        town.train(lorebook(), stop_at=9, overwrite=True)
    done = town.train(lorebook(), overwrite=True)
    assert [prompt.name for prompt in done.trained] == ["Cid"]
    assert town.events[0] == ("begun", 2, 1)
    assert_same(town.prompts(), unbroken)
    assert len(town.train(lorebook(), overwrite=True).trained) == 3


def test_a_finished_folder_has_nothing_new(town):
    town.train(lorebook())
    done = town.train(lorebook())
    assert (done.trained, done.retained, town.events) == ([], ["Ada", "Bo", "Cid"], [])
    assert town.leftovers() == []


def test_a_new_entry_is_trained_beside_those_of_its_group(town, unbroken):
    town.train(lorebook())
    done = town.train(lorebook(DOT))
    assert ([p.name for p in done.trained], done.retained) == (["Dot"], ["Ada", "Bo", "Cid"])
    assert done.trained[0].training["in_company"] == ["Cid"]
    assert_same({k: p for k, p in town.prompts().items() if k != "Dot"}, unbroken)


def test_only_some(town, unbroken):
    done = town.train(lorebook(), include=["Cid"])
    assert [prompt.name for prompt in done.trained] == ["Cid"]
    assert_same(town.prompts(), {"Cid": unbroken["Cid"]})


def test_leftovers_of_a_run_that_was_killed_as_it_ended(town, unbroken):
    """A group's prompts are saved, and its checkpoint is still there."""
    book = lorebook()
    with pytest.raises(KeyboardInterrupt):
        town.train(book, stop_at=3)
    checkpoint = checkpoint_path(town.library.folder, group_name("town", 1))
    kept = checkpoint.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        town.train(book, stop_at=6)
    assert not checkpoint.exists()
    checkpoint.write_bytes(kept)
    town.train(book)
    assert_same(town.prompts(), unbroken)
    assert town.leftovers() == []


# died --------------------------------------------------------------------------------------------


class Mortal(Backwards):
    """Workers that die instead of answering, at calls given by method and number."""

    def __init__(self, model, *deaths):
        super().__init__(model)
        self.deaths = list(deaths)
        self.counts = {}

    def wait(self, seconds=None):
        if self.called:
            self.called.sort(key=turn)
            worker, method, _ = self.called[0]
            self.counts[method] = self.counts.get(method, 0) + 1
            if (method, self.counts[method]) in self.deaths:
                self.called.pop(0)
                return WorkerReply(worker, method, WorkerLost("it was killed"))
        return super().wait(seconds)

    def replace(self, worker):
        self.workers[worker] = Worker(self.model, self.threads)

    @property
    def model(self):
        return self.workers[0].model


@pytest.mark.parametrize(
    "deaths",
    [
        [("load", 1)],
        [("load", 2), ("begin", 1)],
        [("advance", 3)],
        [("finish", 1)],
        [("advance", 2), ("advance", 5), ("advance", 8), ("finish", 2)],
    ],
)
def test_a_worker_that_dies_loses_nothing(deaths, town, unbroken):
    done = town.train(lorebook(), pool=Mortal(town.model, *deaths))
    assert done.lost == len(deaths)
    assert_same(town.prompts(), unbroken)
    assert town.leftovers() == []


def test_a_group_is_taken_up_again_from_its_checkpoint(town):
    town.train(lorebook(), pool=Mortal(town.model, ("advance", 3)))
    lost = next(i for i, events in enumerate(town.events) if events[0] == "lost")
    _, number, step = town.events[lost]
    again = [events for events in town.events[lost:] if events[:2] == ("begun", number)]
    assert again == [("begun", number, step)]
    assert step > 0


def test_a_group_that_kills_its_workers_is_given_up(town):
    pool = Mortal(town.model, ("begin", 1), ("begin", 2), ("begin", 3))
    with pytest.raises(TrainingError, match=r"group \d has lost its worker 3 times .*progress"):
        town.train(lorebook(), pool=pool)


def test_a_group_that_fails_does_not_stop_the_others(town, unbroken, monkeypatch):
    is_finite = TrainablePrompt.is_finite
    monkeypatch.setattr(
        TrainablePrompt,
        "is_finite",
        lambda self, losses: self.name != "Bo" and is_finite(self, losses),
    )
    with pytest.raises(DivergedError, match="'Bo' met a loss"):
        town.train(lorebook())
    assert_same(town.prompts(), {"Cid": unbroken["Cid"]})
    monkeypatch.undo()
    town.train(lorebook())
    assert_same(town.prompts(), unbroken)


# refused -----------------------------------------------------------------------------------------


def test_another_run_is_refused_and_again_begins_anew(town, unbroken):
    with pytest.raises(KeyboardInterrupt):
        town.train(lorebook(), stop_at=3)
    with pytest.raises(ConfigError, match=r"n_tokens was 3 and is 2.*--overwrite"):
        town.train(lorebook(), n_tokens=2)
    with pytest.raises(ConfigError, match="the entries fall into other groups"):
        town.train(lorebook(), group_size=3)
    with pytest.raises(ConfigError, match="threads were"):
        town.train(lorebook(), pool=LocalWorkerPool(town.model, 1 + torch.get_num_threads()))
    town.train(lorebook(), n_tokens=2, overwrite=True)
    assert {len(prompt) for prompt in town.prompts().values()} == {2}
    town.train(lorebook(), overwrite=True)
    assert_same(town.prompts(), unbroken)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"softlore_groups": 1}',
        b'{"softlore_groups": 2, "groups": [1]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_damaged_record_is_refused(content, town, unbroken):
    path = record_path(town.library.folder, "town")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"can't be read .*--overwrite"):
        town.train(lorebook())
    assert path.read_bytes() == content
    town.train(lorebook(), overwrite=True)
    assert_same(town.prompts(), unbroken)


def test_a_record_is_what_was_saved(tmp_path):
    record = GroupRecord([["a"], ["b"]], ["a"], True, {"seed": 0}, 2, 10**9, ["b"])
    path = tmp_path / "deep" / "record.json"
    record.save(path)
    assert GroupRecord.load(path) == record
    for name, wrong in [("threads", 0), ("pending", [1]), ("groups", ["a"]), ("overwrite", 1)]:
        changed = json.loads(path.read_text()) | {name: wrong}
        (tmp_path / "wrong.json").write_text(json.dumps(changed))
        with pytest.raises(StorageError):
            GroupRecord.load(tmp_path / "wrong.json")


def test_what_can_not_be_trained(town):
    with pytest.raises(LoreError, match="no entries"):
        town.train(Lorebook(name="none", entries=[]))
    with pytest.raises(LoreError, match="Eve"):
        town.train(lorebook(), include=["Eve"])
    with pytest.raises(ConfigError, match="n_token"):
        town.train(lorebook(), n_token=2)
    assert not town.library.folder.exists()


# the command -------------------------------------------------------------------------------------


def test_the_command(tmp_path, unbroken):
    folder = save_tiny_model(tmp_path / "model")
    lorebook().save(tmp_path / "lore.yaml")
    command = ["train", tmp_path / "lore.yaml", "--model", folder, "--out", tmp_path / "out"]

    ended = softlore(*command, "--group-size", 2, "--json", "-")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert [one["name"] for one in report["trained"]] == ["Ada", "Bo", "Cid"]
    assert "group 1 (Ada, Bo): done after 5 updates" in ended.err
    for name, prompt in PromptLibrary(tmp_path / "out").items():
        assert torch.equal(prompt.tensor, unbroken[name].tensor)

    ended = softlore(*command, "--group-size", 2)
    assert "nothing new to train" in ended.err
    for more, expected in [
        (["--group-size", 2, "--time-budget", 5], "use --max-steps instead"),
        (["--group-size", 0], "'--group-size'"),
        (["--group-size", 2, "--workers", 2], "expected --ray with it"),
        (["--workers", 2], "expected --ray with it"),
    ]:
        ended = softlore(*command, *more)
        assert ended.code == 2
        assert expected in ended.err
    (tmp_path / "sea.txt").write_text("The sea is wide.")
    ended = softlore("train", tmp_path / "sea.txt", "--model", folder, "--group-size", 2)
    assert (ended.code, "is a corpus" in ended.err) == (2, True)
