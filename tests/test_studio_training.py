"""Training in the studio: watched live, paused, resumed, beside the writing, over restarts."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from softlore import Lorebook, SoftPrompt
from softlore.serve.studio import training_queue
from softlore.serve.studio.training_job import MAX_POINTS, Curve, TrainingJob
from softlore.serve.studio.training_queue import FOLDER
from softlore.tune import WorldInfoTrainer
from softlore.tune.lorebook_training import plan_book
from studio_calls import MODEL, studio
from waiting import wait_until

MARTA = {
    "name": "Marta",
    "keys": ["Marta"],
    "text": "Marta is the clockmaker of the town.",
    "blocks": [{"call": "Marta wore", "responses": [" a long red coat."]}],
}
OSWIN = {"name": "Oswin", "blocks": [{"call": "Oswin keeps", "responses": [" the lighthouse."]}]}
LORE = {
    "name": "harbour",
    "training": {"distil_passages": 8, "drift_guard": 0.5, "passage_tokens": 12},
    "entries": [MARTA, OSWIN],
}
SHORT = {"n_tokens": 3, "max_steps": 6}
LONG = {"n_tokens": 3, "max_steps": 60}
in_both = pytest.mark.parametrize(
    "apart",
    [
        pytest.param(False, id="thread"),
        pytest.param(True, id="process", marks=pytest.mark.skipif(
            sys.platform != "linux", reason="processes fork on Linux only")),
    ],
)  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What the library makes of the lore by itself, with nothing in between: digests by name."""
    from softlore.prompts import PromptLibrary

    made = {}
    for number, settings in enumerate((SHORT, LONG)):
        library = PromptLibrary(tmp_path_factory.mktemp(f"alone{number}"))
        plan = plan_book(MODEL, Lorebook.from_data(LORE), library, include=["Marta"], **settings)
        made[settings["max_steps"]] = plan.trainer.train()["Marta"].digest
    return made


@contextlib.contextmanager
def with_lore(folder, **given):
    with studio(folder, **given) as found:
        if "harbour" not in [row["name"] for row in found.get("books")]:
            found.upload("books", json.dumps(LORE).encode(), "harbour.json")
        yield found


def start(studio, *entries, **settings):
    return studio.post("trainings", book="harbour", entries=list(entries) or None, **settings)["id"]


def state_of(studio, number):
    return studio.get("trainings", number)["state"]


def ended(studio, number, state="done"):
    job = wait_until(lambda: (t := studio.get("trainings", number))["state"] not in ACTIVE and t)
    assert job["state"] == state, job
    return job


ACTIVE = ("waiting", "preparing", "running")


def under_way(studio, number):
    """Once some updates have been made, and not yet all."""
    wait_until(lambda: studio.get("trainings", number)["step"] >= 2)
    assert state_of(studio, number) == "running"


def test_the_preparation_says_how_far_it_is(tmp_path, monkeypatch):
    told, become = [], TrainingJob.become

    def remembered(job, state, message=""):
        told.append((state, message))
        become(job, state, message)

    monkeypatch.setattr(TrainingJob, "become", remembered)
    with with_lore(tmp_path) as found:
        ended(found, start(found, "Oswin", **SHORT))
    shares = [message for state, message in told if state == "preparing"]
    assert [one for one in shares if re.match(r"writing passages: \d+%", one)], told


@in_both
def test_an_entry_is_trained_and_the_curve_watched(apart, tmp_path, alone):
    with with_lore(tmp_path, apart=apart) as found:
        number = start(found, "Marta", **SHORT)
        with found.stream("GET", "trainings", number, "events") as events:
            seen = list(events)
        assert (seen[0][0], seen[-1][0], seen[-1][1]["state"]) == ("training", "training", "done")
        training = found.get("trainings", number)
        curve = training["curves"]["Marta"]
        assert curve["step"] == [1, 2, 3, 4, 5, 6]
        first = seen[0][1]["curves"].get("Marta", {"step": []})["step"]
        points = [data for name, data in seen if name == "point"]
        assert first + [point["step"] for point in points] == curve["step"]
        assert all(map(math.isfinite, curve["loss"] + curve["drift"]))
        assert all(recall > 0 for recall in curve["recall"] if recall is not None)
        assert curve["recall"][-1] is not None
        assert (training["done"], training["step"]) == (1, 6)

        assert found.state.prompts["Marta"].digest == alone[6]
        book = found.get("books", "harbour")
        assert book["prompts"]["Oswin"] is None
        assert book["prompts"]["Marta"]["n_tokens"] == 3
        # Measured with the held-out calls as training did on the way.
        assert book["prompts"]["Marta"]["recall"] == pytest.approx(curve["recall"][-1], abs=1e-3)
        assert found.get("books")[0]["trained"] == 1
        assert not (tmp_path / "prompts" / FOLDER).exists()  # nothing is left lying

        # A story that reads with the lorebook has it, as soon as it is mentioned.
        found.post("stories", name="quay", opening="There stood Marta.", book="harbour")
        plan = found.get("stories", "quay", "plan", tokens=8)
        assert {part["name"] for part in plan["parts"]} == {"Marta", "story"}
        assert "Marta" in found.get("stories", "quay")["soft"]
        found.put("stories", "quay", "settings", seed=1)
        assert found.write("quay", tokens=20)[0]


def test_what_is_trained_is_trained_again_only_when_asked(tmp_path):
    with with_lore(tmp_path) as found:
        ended(found, start(found, "Marta", **SHORT))
        asked = {"book": "harbour", "entries": ["Marta"], **SHORT}
        assert "already" in found.refused(400, "POST", "trainings", json=asked)["message"]
        ended(found, start(found, "Marta", **SHORT, overwrite=True, seed=5))
        number = start(found, **SHORT)  # the whole book: what is new of it
        assert ended(found, number)["entries"] == ["Oswin"]
        assert found.get("trainings")[0]["id"] == number
        for wrong, status in [
            ({"book": "none"}, 404),
            ({"entries": ["Nobody"]}, 400),
            ({"n_tokens": 0}, 400),
            ({"n_tokens": 10**6}, 400),
            ({"max_steps": 10**12}, 400),
            ({"max_steps": -1}, 400),
            ({"kind": "suffix"}, 400),
            ({"style": "loud"}, 400),
            ({"seed": -1}, 400),
            ({"minutes": 0}, 400),
            ({"minutes": 10**9}, 400),
        ]:
            found.refused(status, "POST", "trainings", json={**asked, "overwrite": True, **wrong})
        assert len(found.get("trainings")) == 3


@in_both
def test_it_ends_in_the_minutes_given(apart, tmp_path):
    with with_lore(tmp_path, apart=apart) as found:
        job = ended(found, start(found, "Marta", n_tokens=3, max_steps=100_000, minutes=0.05))
        assert (job["state"], job["minutes"]) == ("done", 0.05)
        assert job["step"] < 100_000
        assert found.state.prompts["Marta"].training["stopped"] == "time_budget"


def test_the_minutes_are_kept_after_a_restart(tmp_path):
    with with_lore(tmp_path) as found:
        number = start(found, "Marta", **LONG, minutes=600)
        under_way(found, number)
        found.post("trainings", number, "pause")
    with with_lore(tmp_path) as found:
        assert found.get("trainings", number)["minutes"] == 600
        found.post("trainings", number, "resume")
        assert ended(found, number)["step"] == 60


@in_both
def test_paused_and_resumed_it_is_the_same_to_the_bit(apart, tmp_path, alone):
    with with_lore(tmp_path, apart=apart) as found:
        number = start(found, "Marta", **LONG)
        under_way(found, number)
        paused = found.post("trainings", number, "pause")
        assert (paused["state"], 0 < paused["done"] < 1) == ("paused", True)
        # Meanwhile the lore changes and another entry is trained, which changes nothing.
        found.put("books", "harbour", "entries", "Marta", name="Marta", text="Another.")
        ended(found, start(found, "Oswin", **SHORT))
        assert state_of(found, number) == "paused"
        assert found.post("trainings", number, "pause")["state"] == "paused"
        assert found.post("trainings", number, "resume")["state"] in ACTIVE
        job = ended(found, number)
        assert job["curves"]["Marta"]["step"] == list(range(1, 61))
        assert found.state.prompts["Marta"].digest == alone[60]
        for what in ("pause", "resume"):
            found.refused(409, "POST", "trainings", number, what)


@in_both
@pytest.mark.parametrize("pause", [True, False])
def test_it_goes_on_after_the_server_was_started_anew(apart, tmp_path, alone, pause):
    with with_lore(tmp_path, apart=apart) as found:
        number = start(found, "Marta", **LONG)
        under_way(found, number)
        if pause:
            found.post("trainings", number, "pause")
    with with_lore(tmp_path, apart=apart) as found:
        job = found.get("trainings", number)
        assert (job["state"], job["entries"], job["book"]) == ("paused", ["Marta"], "harbour")
        assert 2 <= job["step"] < 60
        known = job["curves"]["Marta"]["step"]
        assert known == list(range(1, job["step"] + 1))
        with found.stream("GET", "trainings", number, "events") as events:
            assert next(events)[1]["curves"]["Marta"]["step"] == known
            found.post("trainings", number, "resume")
            rest = [data["step"] for name, data in events if name == "point"]
        assert known + rest == list(range(1, 61))
        assert ended(found, number)["seconds"] >= job["seconds"]
        assert found.state.prompts["Marta"].digest == alone[60]
    with with_lore(tmp_path, apart=apart) as found:
        assert found.get("trainings") == []


def test_the_model_writes_and_learns_at_once(tmp_path, alone):
    """Neither sees anything of the other."""
    with with_lore(tmp_path) as found:
        found.post("stories", name="calm", opening="Down the lane came a dog.")
        found.put("stories", "calm", "settings", seed=4)
        quiet = [found.write("calm", tokens=100)[0] for _ in range(1)]
        found.post("stories", "calm", "undo")
        # The undone try counts, so that a new one is drawn otherwise: a story of its own.
        number = start(found, "Marta", **LONG)
        under_way(found, number)
        texts = []
        while state_of(found, number) == "running":
            name = f"calm {len(texts)}"
            found.post("stories", name=name, opening="Down the lane came a dog.")
            found.put("stories", name, "settings", seed=4)
            texts.append(found.write(name, tokens=100)[0])
        ended(found, number)
        assert len(texts) >= 1
        assert set(texts) == set(quiet)
        assert found.state.prompts["Marta"].digest == alone[60]


@in_both
def test_one_is_trained_at_a_time_and_others_wait(apart, tmp_path):
    with with_lore(tmp_path, apart=apart) as found:
        first = start(found, "Marta", **LONG)
        second = start(found, "Oswin", **SHORT)
        assert state_of(found, second) == "waiting"
        assert found.post("trainings", second, "pause")["state"] == "paused"
        assert found.post("trainings", second, "resume")["state"] == "waiting"
        twice = {"book": "harbour", "entries": ["Oswin"]}
        found.refused(409, "POST", "trainings", json=twice)
        under_way(found, first)
        stopped = found.post("trainings", first, "stop")
        assert stopped["state"] == "stopped"
        assert "Marta" not in found.state.prompts
        ended(found, second)
        assert found.post("trainings", first, "stop")["state"] == "stopped"
        third = start(found, "Marta", **LONG)
        under_way(found, third)
        assert found.post("trainings", third, "stop", save=True)["state"] == "stopped"
        assert found.state.prompts["Marta"].training["stopped"] is None
        fourth = start(found, "Marta", **LONG)  # it had not come to its end, so it is new
        under_way(found, fourth)
        found.post("trainings", fourth, "pause")
        assert found.post("trainings", fourth, "stop")["state"] == "stopped"
        assert not (tmp_path / "prompts" / FOLDER).exists()


@in_both
def test_what_cannot_be_trained_fails_with_its_reason_and_the_next_goes_on(apart, tmp_path):
    with with_lore(tmp_path, apart=apart) as found:
        found.post(
            "books", "harbour", "entries", name="Long", blocks=[["Long is", [" a word" * 400]]]
        )
        failed = start(found, "Long", **SHORT)
        next_one = start(found, "Oswin", **SHORT)
        job = ended(found, failed, "failed")
        assert "'Long'" in job["message"]
        assert "Traceback" not in job["message"]
        ended(found, next_one)
        assert found.refused(409, "POST", "trainings", failed, "resume")
        with found.stream("GET", "trainings", failed, "events") as events:
            assert [data["state"] for _, data in events] == ["failed"]
        found.refused(404, "GET", "trainings", "nothing")
        found.refused(404, "GET", "trainings", "..", "events")


@pytest.mark.skipif(sys.platform != "linux", reason="processes fork on Linux only")
def test_a_process_that_is_killed_pauses_its_training_which_goes_on(tmp_path, alone):
    with with_lore(tmp_path, apart=True) as found:
        number = start(found, "Marta", **LONG)
        under_way(found, number)
        os.kill(found.state.run_training.__self__.pid, signal.SIGKILL)
        assert "want of memory" in ended(found, number, "paused")["message"]
        found.post("trainings", number, "resume")
        ended(found, number)
        assert found.state.prompts["Marta"].digest == alone[60]


def test_what_a_training_left_may_be_damaged(tmp_path):
    with with_lore(tmp_path) as found:
        number = start(found, "Marta", **LONG)
        under_way(found, number)
        found.post("trainings", number, "pause")
    folder = tmp_path / "prompts" / FOLDER
    for name, content in [("aaaaaaaa", "{"), ("bbbbbbbb", "[]"), ("cccccccc", '{"entries": 3}')]:
        (folder / name).mkdir()
        (folder / name / "training.json").write_text(content)
    (folder / "not one").mkdir()
    with with_lore(tmp_path) as found:
        assert [row["id"] for row in found.get("trainings")] == [number]
        shutil.rmtree(folder / number)  # by somebody else
        found.post("trainings", number, "resume")
        job = wait_until(lambda: (t := found.get("trainings", number))["message"] and t)
        assert job["state"] == "paused"
        assert found.post("trainings", number, "stop")["state"] == "stopped"


def test_a_prompt_that_is_trained_in_company_keeps_it(tmp_path):
    with with_lore(tmp_path) as found:
        found.state.prompts.save(SoftPrompt.from_text("a dog", MODEL, name="dog", kind="prefix"))
        ended(found, start(found, "Oswin", **SHORT))
        before = found.state.prompts["Oswin"].digest
        ended(found, start(found, "Marta", **SHORT))
        assert found.state.prompts["Marta"].training["in_company"] == ["Oswin"]
        assert found.state.prompts["Oswin"].digest == before


def test_many_watch_one_training(tmp_path):
    with with_lore(tmp_path) as found:
        number = start(found, "Marta", **SHORT)
        streams = [[] for _ in range(3)]

        def watch(seen):
            with found.stream("GET", "trainings", number, "events") as events:
                seen += events

        threads = [threading.Thread(target=watch, args=(seen,)) for seen in streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for seen in streams:
            assert seen[-1][1]["state"] == "done"
            steps = seen[0][1]["curves"].get("Marta", {"step": []})["step"]
            steps += [data["step"] for name, data in seen if name == "point"]
            assert steps == [1, 2, 3, 4, 5, 6]


def test_a_long_curve_stays_bounded():
    curve = Curve()
    for step in range(1, 20 * MAX_POINTS):
        curve.add(step, loss=1 / step, drift=math.nan, recall=0.5 if step % 5000 == 0 else None)
    found = curve.to_dict()
    assert len(found["step"]) <= MAX_POINTS
    assert found["step"] == sorted(set(found["step"]))
    assert curve.last_step == 20 * MAX_POINTS - 1
    recalls = zip(found["step"], found["recall"], strict=True)
    assert [step for step, recall in recalls if recall] == [5000, 10000, 15000]
    assert set(found["drift"]) == {None}
    assert Curve.from_dict(json.loads(json.dumps(found))) == curve
    for odd in (None, [], {"step": [1]}, {"step": ["x"], "loss": [1], "recall": [1], "drift": [1]}):
        assert Curve.from_dict(odd).points == []


@pytest.mark.parametrize("name", ["checkpoint", "again", "on_step", "company", "model", "self"])
def test_a_strangers_lorebook_sets_nothing_but_settings(tmp_path, name):
    lore = {"training": {name: str(tmp_path / "theirs")}, "entries": [OSWIN]}
    with studio(tmp_path / "ours") as found:
        found.upload("books", json.dumps(lore).encode(), "theirs.json")
        asked = {"book": "theirs", **SHORT}
        assert f"{name!r}" in found.refused(400, "POST", "trainings", json=asked)["message"]
        assert found.get("trainings") == []
    assert not (tmp_path / "theirs").exists()


def test_an_entry_that_is_asked_for_at_once_is_trained_once(tmp_path):
    with with_lore(tmp_path) as found:
        asked = {"book": "harbour", "entries": ["Marta"], **LONG, "max_steps": 600}
        with ThreadPoolExecutor(6) as pool:
            calls = [pool.submit(found.client.post, "trainings", json=asked) for _ in range(6)]
        codes = sorted(call.result().status_code for call in calls)
        assert codes == [200, *[409] * 5]
        (row,) = found.get("trainings")
        assert [one.name for one in (tmp_path / "prompts" / FOLDER).iterdir()] == [row["id"]]
        found.post("trainings", row["id"], "stop")


def test_what_is_being_stopped_is_not_paused_instead(tmp_path, monkeypatch):
    held, reading = threading.Event(), threading.Event()
    real = WorldInfoTrainer.prepare

    def prepare(trainer):
        reading.set()
        assert held.wait(30)
        real(trainer)

    monkeypatch.setattr(WorldInfoTrainer, "prepare", prepare)
    monkeypatch.setattr(training_queue, "PATIENCE", 0.1)
    with with_lore(tmp_path) as found:
        number = start(found, "Marta", **SHORT)
        assert reading.wait(30)
        assert found.post("trainings", number, "pause")["state"] == "preparing"
        assert found.post("trainings", number, "resume")["message"] == training_queue.PREPARING
        assert found.post("trainings", number, "stop")["state"] == "preparing"
        message = found.refused(409, "POST", "trainings", number, "pause")["message"]
        assert "being stopped" in message
        held.set()
        ended(found, number, "stopped")
        assert "Marta" not in found.state.prompts
