"""The studio's API: what a writer does, one call after another, on a real server."""

import contextlib
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
import torch

from lore_samples import SILLYTAVERN
from softlore import ControlVector, Entry, Lorebook, SoftPrompt
from softlore.decode.samplers import build_steps
from softlore.lore.formats.registry import EXPORTERS
from softlore.model.tiny import tiny_model
from softlore.prompts import load_prompt
from softlore.prompts.vector_folder import save_vector
from softlore.serve.studio.book_folder import BookFolder
from softlore.settings import SamplingParams
from softlore.story import StoryLibrary, condensing
from softlore.story.session import StorySession
from softlore.story.settings import STORY_SAMPLING
from studio_calls import MODEL, studio
from waiting import wait_until

LIMIT = MODEL.context_length
OPENING = "Down the lane came a dog."


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for all tests that do not stop it; each uses names of its own."""
    with studio(tmp_path_factory.mktemp("studio")) as found:
        yield found


def begun(studio, name, **more):
    return studio.post("stories", name=name, opening=OPENING, **more)


# stories -----------------------------------------------------------------------------------------


def test_a_story_without_a_name_is_named_by_its_words(shared):
    named = [shared.post("stories", opening="One “dark” night, it’s said …") for _ in range(2)]
    assert [story["name"] for story in named] == ["One dark night it's", "One dark night it's 2"]
    assert shared.post("stories")["name"] == "Story"
    assert shared.post("stories", opening="[[soft:x]] ../..")["name"] == "Story 2"


def test_the_example_is_a_story_with_lore(shared):
    first, second = (shared.post("stories", "example") for _ in range(2))
    assert first["settings"]["book"] == second["settings"]["book"] == "harbour town"
    assert first["name"] != second["name"]
    assert first["turns"][0]["text"].endswith("Marta wore")
    assert [book["name"] for book in shared.get("books")].count("harbour town") == 1


def test_a_story_is_written_edited_undone_and_branched(shared):
    story = begun(shared, "lane")
    assert [turn["by"] for turn in story["turns"]] == ["writer"]
    assert story["undoable"] == ""
    shared.put("stories", "lane", "settings", seed=1)  # with another it may end before any text
    written, done = shared.write("lane", text=" It ran", tokens=6)
    story = done["story"]
    assert shared.texts("lane") == [OPENING, " It ran", written]
    assert done["finish"] == story["turns"][-1]["finish"] == "length"
    assert done["reading"]["read"] > 0
    first = story["turns"][-1]["id"]

    again, done = shared.write("lane", retry=True, tokens=6)
    last = done["story"]["turns"][-1]
    assert last["tries"] == [first, last["id"]]
    assert shared.texts("lane") == [OPENING, " It ran", again]

    story = shared.post("stories", "lane", "go", turn=first)
    assert story["turns"][-1]["text"] == written
    assert {branch["turn"]: branch["here"] for branch in story["branches"]} == {
        first: True,
        last["id"]: False,
    }
    assert shared.post("stories", "lane", "undo")["turns"][-1]["text"] == again
    assert shared.post("stories", "lane", "redo")["turns"][-1]["text"] == written

    edited = shared.put("stories", "lane", "turns", first, text=" home.")
    assert shared.texts("lane") == [OPENING, " It ran", " home."]
    assert edited["undoable"] == "edit"
    new = edited["turns"][-1]["id"]
    marked = shared.post("stories", "lane", "mark", turn=new, kept=True)
    assert [turn["marked"] for turn in marked["turns"]] == [False, False, True]
    assert len(shared.post("stories", "lane", "cut", turn=new)["turns"]) == 2
    story = shared.put("stories", "lane", "text", text=OPENING + " It slept.")
    assert "".join(turn["text"] for turn in story["turns"]) == OPENING + " It slept."
    for _ in range(10):
        story = shared.post("stories", "lane", "undo")
    assert (shared.texts("lane"), story["undoable"]) == ([OPENING], "")


def test_going_to_another_branch_goes_to_its_end(shared):
    begun(shared, "fork")
    first = shared.post("stories", "fork", "turns", text=" One.")["turns"][-1]["id"]
    end = shared.post("stories", "fork", "turns", text=" Two.")["turns"][-1]["id"]
    shared.post("stories", "fork", "cut", turn=first)
    shared.post("stories", "fork", "turns", text=" Other.")
    story = shared.post("stories", "fork", "go", turn=first)
    assert story["turns"][-1]["id"] == end
    assert len(shared.post("stories", "fork", "go", turn=first)["turns"]) == 2
    assert shared.post("stories", "fork", "go", turn=0)["turns"] == []


ENDLESS = {"banned": sorted(MODEL.eos_ids)}  # a text that does not end by itself


def test_what_was_told_is_kept_when_the_connection_drops(shared):
    begun(shared, "dropped")
    heard = ""
    with shared.stream(
        "POST", "stories", "dropped", "write", tokens=200, sampling=ENDLESS
    ) as events:
        for name, data in events:
            heard += data["text"] if name == "token" else ""
            if len(heard) > 20:
                break
    texts = wait_until(lambda: len(found := shared.texts("dropped")) == 2 and found)
    assert texts[1].startswith(heard)
    assert shared.get("stories", "dropped")["turns"][1]["finish"] == "cancelled"
    wait_until(lambda: not shared.state.engine.load().running)
    shared.write("dropped", tokens=2)


def test_stop_ends_the_stream_with_the_story(shared):
    begun(shared, "stopped")
    with shared.stream(
        "POST", "stories", "stopped", "write", tokens=200, sampling=ENDLESS
    ) as events:
        seen = [next(events), next(events)]
        shared.post("stories", "stopped", "stop")
        seen += events
    name, data = seen[-1]
    assert name == "done"
    assert (data["finish"], len(data["story"]["turns"])) == ("cancelled", 2)
    assert shared.post("stories", "stopped", "stop") == {}


def test_two_cannot_write_one_story_at_once_nor_move_it(shared):
    begun(shared, "busy")
    with contextlib.ExitStack() as ended:
        with shared.held():
            stream = shared.stream("POST", "stories", "busy", "write", tokens=100, sampling=ENDLESS)
            events = ended.enter_context(stream)
            next(events)
            shared.refused(409, "POST", "stories", "busy", "write", json={})
            shared.refused(409, "PATCH", "stories", "busy", json={"name": "moved"})
            shared.refused(409, "DELETE", "stories", "busy")
        begun(shared, "beside")
        shared.write("beside", tokens=3)  # another story goes on meanwhile
        assert [name for name, _ in events][-1] == "done"
    wait_until(lambda: len(shared.texts("busy")) == 2)


def test_a_turn_that_cannot_begin_adds_nothing(shared):
    begun(shared, "refused")
    for wrong in (
        {"tokens": LIMIT + 1},
        {"sampling": {"temperature": -1}},
        {"sampling": {"warmth": 1}},
        {"sampling": {"tokens": 3}},
        {"sampling": {"banned": 5}},
        {"retry": True, "text": ""},
    ):
        shared.refused(400, "POST", "stories", "refused", "write", json={"text": "Then", **wrong})
    unknown = {"text": "Then", "codes": [{"name": "nobody"}]}
    shared.refused(404, "POST", "stories", "refused", "write", json=unknown)
    assert shared.texts("refused") == [OPENING]


def test_a_full_server_says_so_and_adds_nothing(tmp_path):
    with studio(tmp_path, slots=1, queue=0) as small:
        begun(small, "one")
        begun(small, "two")
        with (
            small.held(),
            small.stream("POST", "stories", "one", "write", tokens=200) as events,
        ):
            next(events)
            small.refused(503, "POST", "stories", "two", "write", json={"text": "Then"})
            assert small.texts("two") == [OPENING]


def test_settings_are_the_storys_and_shape_what_is_read(shared):
    begun(shared, "set")
    story = shared.put("stories", "set", "settings", memory="A tale.", note="Slow", seed=7)
    assert (story["settings"]["memory"], story["settings"]["seed"]) == ("A tale.", 7)
    plan = shared.get("stories", "set", "plan", tokens=9)
    assert [part["kind"] for part in plan["parts"]] == ["memory", "note", "story"]
    assert plan["tokens"] == sum(part["tokens"] for part in plan["parts"])
    assert (plan["limit"], plan["reserved"], plan["omitted"]) == (LIMIT, 9, 0)
    one, _ = shared.write("set", tokens=8)
    shared.post("stories", "set", "undo")
    shared.post("stories", "set", "undo")  # the settings, too
    assert shared.get("stories", "set")["settings"]["seed"] is None
    shared.put("stories", "set", "settings", memory="A tale.", note="Slow", seed=7)
    assert shared.put("stories", "set", "settings", sampling={"temperature": 0.5, "no_copy": 4})
    shared.refused(400, "PUT", "stories", "set", "settings", json={"sampling": {"heat": 1}})
    shared.refused(400, "PUT", "stories", "set", "settings", json={"seed": -1})
    shared.refused(404, "PUT", "stories", "set", "settings", json={"book": "none"})
    assert one


def test_the_same_seed_writes_what_the_terminal_writes(shared, tmp_path):
    begun(shared, "seeded")
    shared.put("stories", "seeded", "settings", seed=3)
    written, _ = shared.write("seeded", tokens=12)
    with StoryLibrary(tmp_path).create("seeded") as story:
        story.add(OPENING)
        story.set(seed=3)
        assert "".join(StorySession(story, MODEL).continue_story(12)) == written


def test_stories_are_listed_renamed_put_aside(shared):
    begun(shared, "listed")
    shared.post("stories", name="listed last", opening="Rain.")
    rows = shared.get("stories")
    assert rows[0]["name"] == "listed last"
    (row,) = [row for row in rows if row["name"] == "listed"]
    assert (row["turns"], row["words"], row["ending"]) == (1, 6, OPENING)
    shared.post("stories", "listed", "turns", text=" And rain.")
    (row,) = [row for row in shared.get("stories") if row["name"] == "listed"]
    assert (row["turns"], row["words"]) == (2, 8)
    shared.refused(409, "POST", "stories", json={"name": "Listed"})
    shared.refused(409, "PATCH", "stories", "listed", json={"name": "listed last"})
    story = shared.call("PATCH", "stories", "listed", json={"name": "Mary's tale"}).json()
    assert (story["name"], len(story["turns"])) == ("Mary's tale", 2)
    shared.refused(404, "GET", "stories", "listed")
    shared.delete("stories", "Mary's tale")
    shared.refused(404, "GET", "stories", "Mary's tale")
    assert list(shared.state.stories.folder.glob("Mary's tale.story.deleted"))


def test_another_process_may_write_the_same_story(shared):
    begun(shared, "ours")
    with shared.state.stories.open("ours") as theirs:
        theirs.add(" They wrote.")
    assert shared.texts("ours") == [OPENING, " They wrote."]
    with shared.state.stories.create("theirs") as theirs:
        theirs.add("Theirs.")
    assert shared.texts("theirs") == ["Theirs."]
    path = shared.state.stories.folder / "ours.story"
    path.rename(path.with_name("taken.story"))
    shared.refused(404, "GET", "stories", "ours")
    path.write_bytes(b"no story")
    shared.refused(400, "GET", "stories", "ours")
    (row,) = [row for row in shared.get("stories") if row["name"] == "ours"]
    assert row["error"]


@pytest.mark.parametrize("format", ["md", "json"])
def test_a_story_survives_export_and_import(shared, format):
    name = f"out {format}"
    begun(shared, name)
    shared.post("stories", name, "turns", text=" It ran — home.\n\nThen it slept.")
    shared.put("stories", name, "settings", memory="A tale.", note="Slow")
    reply = shared.export("stories", name, format=format)
    assert f"filename*=UTF-8''out%20{format}.{format}" in reply.headers["content-disposition"]
    story = shared.upload("stories", reply.content, f"out {format}.{format}")
    assert story["name"] == f"out {format} 2"  # nothing is written over
    assert [turn["text"] for turn in story["turns"]] == shared.texts(name)
    assert story["settings"]["memory"] == "A tale."


def test_a_koboldai_save_brings_its_lore(shared):
    save = {
        "prompt": "The bell rang.",
        "actions": [" Marta woke."],
        "memory": "A town.",
        "worldinfo": [{"key": "Marta", "content": "Marta mends clocks.", "comment": "Marta"}],
    }
    story = shared.upload("stories", json.dumps(save).encode(), "bell.json")
    assert story["settings"]["book"] == "bell"
    assert shared.get("books", "bell")["entries"][0]["text"] == "Marta mends clocks."
    plan = shared.get("stories", "bell", "plan", tokens=8)
    assert ("lore", "Marta") in [(part["kind"], part["name"]) for part in plan["parts"]]
    out = json.loads(shared.export("stories", "bell", format="json").content)
    assert out["worldinfo"][0]["content"] == "Marta mends clocks."
    assert str(shared.state.books) not in json.dumps(out)


@pytest.mark.parametrize(
    ("content", "filename"),
    [
        (b"", "x.json"),
        (b"\x89PNG", "x.png"),
        (b'{"actions": 3, "prompt": 2}', "x.json"),
        (b"\xff\xfe", ""),
    ],
)
def test_bad_story_files_are_refused(shared, content, filename):
    before = shared.get("stories")
    if content:
        error = shared.upload("stories", content, filename, status=400)["error"]
        assert "/tmp" not in error["message"]
        assert shared.get("stories") == before


# lorebooks ---------------------------------------------------------------------------------------


def test_a_lorebook_is_imported_edited_and_exported(shared):
    book = shared.upload("books", json.dumps(SILLYTAVERN).encode(), "world.json")
    assert book["name"] == "world"
    names = [entry["name"] for entry in book["entries"]]
    first = book["entries"][0] | {"keys": ["Marta"], "name": "Clockmaker"}
    book = shared.put("books", "world", "entries", names[0], **first)
    assert [entry["name"] for entry in book["entries"]] == ["Clockmaker", *names[1:]]
    book = shared.post("books", "world", "entries", name="Oswin", text="He knows {{time}}.")
    assert book["entries"][-1] == {"name": "Oswin", "text": "He knows {{time}}."}
    assert any("'Oswin'" in warning for warning in book["warnings"])
    book = shared.delete("books", "world", "entries", "Oswin")
    assert len(book["entries"]) == len(names)
    back = json.loads(shared.export("books", "world", format="sillytavern").content)
    assert back["entries"]["0"]["from a later version"] == {"a": [1, 2.5, None, True]}
    for format in ("yaml", "json", *EXPORTERS):
        if format == "mkultra":  # it has a place for pairs only, and these have none
            shared.refused(400, "GET", "books", "world", "export", params={"format": format})
            continue
        reply = shared.export("books", "world", format=format)
        again = shared.upload("books", reply.content, "again" + _suffix(reply))
        assert len(again["entries"]) >= len(names) - 1, format
        shared.delete("books", again["name"])
    shared.refused(400, "GET", "books", "world", "export", params={"format": "pickle"})
    assert Lorebook.load(shared.state.books / "world.yaml").name == "world"


def _suffix(reply):
    return "." + reply.headers["content-disposition"].rpartition(".")[2].strip('"')


def test_what_is_wrong_with_an_entry_is_told_where_it_is(shared):
    shared.post("books", name="faults")
    for entry, field in [
        ({"name": "a/b", "text": "x"}, "name"),
        ({"name": "Emma", "blocks": [{"call": "Emma wore"}]}, "blocks"),
        (
            {"name": "Emma", "text": "x", "held_out": [{"call": "", "responses": [" x"]}]},
            "held_out",
        ),
        ({"name": "Emma", "text": "x", "depth": -1}, "depth"),
    ]:
        error = shared.refused(400, "POST", "books", "faults", "entries", json=entry)
        assert (error["entry"], error["field"]) == (entry["name"], field)
    shared.post("books", "faults", "entries", name="Emma", text="x")
    error = shared.refused(
        400, "POST", "books", "faults", "entries", json={"name": "emma", "text": "y"}
    )
    assert "two entries" in error["message"]
    shared.refused(
        404, "PUT", "books", "faults", "entries", "Bram", json={"name": "B", "text": "y"}
    )
    shared.refused(409, "POST", "books", json={"name": "Faults"})
    assert shared.put("books", "faults", entries=[{"name": "Only", "text": "z{{time}}"}])[
        "warnings"
    ]
    assert shared.delete("books", "faults") == {}
    shared.refused(404, "GET", "books", "faults")


def test_a_change_of_the_lore_is_read_at_the_next_turn(shared):
    shared.post("books", name="town")
    shared.post("books", "town", "entries", name="Dog", text="It is old.", keys=["dog"])
    begun(shared, "with lore", book="town")

    def lore():
        plan = shared.get("stories", "with lore", "plan", tokens=8)
        return [part["name"] for part in plan["parts"] if part["kind"] == "lore"]

    assert lore() == ["Dog"]
    shared.put("books", "town", "entries", "Dog", name="Lane", text="It is long.", keys=["lane"])
    assert lore() == ["Lane"]
    shared.delete("books", "town")
    assert lore() == []
    assert "not one of the studio's" in shared.get("stories", "with lore")["notes"][0]


def test_a_strangers_story_makes_the_server_read_nothing(shared, tmp_path):
    secret = tmp_path / "secret.yaml"
    Lorebook(name="secret", entries=[Entry(name="Dog", text="A secret.", constant=True)]).save(
        secret
    )
    outside = [str(secret), f"{shared.state.books}/../{secret.name}", "/etc/passwd", "a\0b"]
    for number, path in enumerate(outside):
        with shared.state.stories.create(f"strange {number}") as story:
            story.add(OPENING)
            story.set(lorebook=path, model="some/model", prompts=str(tmp_path))
        data = shared.get("stories", f"strange {number}")
        assert (data["settings"]["book"], len(data["notes"])) == ("", 3)
        plan = shared.get("stories", f"strange {number}", "plan", tokens=8)
        assert [part["kind"] for part in plan["parts"]] == ["story"]
    save = {"prompt": "A.", "actions": [], "softlore": {"settings": {"lorebook": str(secret)}}}
    assert shared.upload("stories", json.dumps(save).encode(), "evil.json")["notes"] == []


# soft prompts ------------------------------------------------------------------------------------


def test_prompts_go_out_and_come_in_in_every_format(shared):
    library = shared.state.prompts
    rows = SoftPrompt.from_text("a black suit", MODEL, name="Emma")
    conditioning = SoftPrompt.from_text("an old inn", MODEL, name="Bram", kind="prefix")
    for prompt in (rows, conditioning):
        library.save(prompt)
    listed = {row["name"]: row for row in shared.get("prompts")["prompts"]}
    assert (listed["Emma"]["kind"], listed["Bram"]["kind"]) == ("embedding", "prefix")
    assert listed["Emma"]["fits"]
    for prompt, format in [
        (rows, "safetensors"), (rows, "kobold"), (rows, "mkultra"), (rows, "peft"),
        (conditioning, "safetensors"), (conditioning, "peft"),
    ]:  # fmt: skip
        reply = shared.export("prompts", prompt.name, format=format)
        library.remove(prompt.name)
        back = shared.upload("prompts", reply.content, "file" + _suffix(reply), prompt.name)
        assert (back["kind"], back["n_tokens"], back["fits"]) == (prompt.kind, len(prompt), True)
        assert (library[back["name"]].tensor - prompt.tensor).abs().max() < 1e-2
        library.remove(back["name"])
        library.save(prompt)
    assert b"embeds" in shared.export("prompts", "Emma", format="vllm").content
    assert shared.export("prompts", "Bram", format="vllm").content
    shared.refused(400, "GET", "prompts", "Bram", "export", params={"format": "kobold"})
    shared.refused(400, "GET", "prompts", "Bram", "export", params={"format": "pickle"})
    facts = shared.get("prompts", "Emma")
    assert (facts["shape"], facts["model"]) == (list(rows.tensor.shape), MODEL.name)


def test_an_import_never_writes_over_a_prompt(shared, tmp_path):
    old = SoftPrompt.from_text("a red coat", MODEL, name="twice")
    shared.state.prompts.save(old)
    new = SoftPrompt.from_text("a blue coat", MODEL, name="twice")
    new.save(tmp_path / "new.safetensors")
    content = (tmp_path / "new.safetensors").read_bytes()
    assert shared.upload("prompts", content, "new.safetensors", "new")["name"] == "twice 2"
    old.save(tmp_path / "old.safetensors")
    same = shared.upload("prompts", (tmp_path / "old.safetensors").read_bytes(), "x")
    assert same["name"] == "twice"
    assert load_prompt(shared.state.prompts.header("twice").path).digest == old.digest
    for name in ("twice", "twice 2"):
        shared.delete("prompts", name)
    shared.refused(404, "DELETE", "prompts", "twice")


def test_bad_and_foreign_prompts_are_told_of(shared, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../adapter_config.json", "{}")
        archive.writestr("/etc/adapter_model.safetensors", b"x")
    for content in (b"", b"x", b"PK\x03\x04 no zip", b"\x80\x04 pickle", packed.getvalue(), b"{}"):
        error = shared.upload("prompts", content, "../../evil.json", "evil", status=400)["error"]
        assert "evil.json" in error["message"]
    other = SoftPrompt.from_text("a dog", tiny_model("gpt2"), name="other")
    other.save(tmp_path / "other.safetensors")
    shared.upload("prompts", (tmp_path / "other.safetensors").read_bytes(), "other.safetensors")
    bad = shared.state.prompts.folder / "bad.safetensors"
    bad.write_bytes(b"nothing")
    listed = shared.get("prompts")
    assert [one["file"] for one in listed["bad"]] == ["bad.safetensors"]
    assert [row["fits"] for row in listed["prompts"] if row["name"] == "other"] == [False]
    begun(shared, "foreign")
    assert "other" not in shared.get("stories", "foreign")["soft"]
    bad.unlink()


def test_a_chip_in_the_text_is_read_as_its_prompt(shared):
    shared.state.prompts.save(SoftPrompt.from_text("a black suit", MODEL, name="Suit"))
    shared.post("stories", name="chip", opening="She wore [[soft:Suit]] and")
    assert "Suit" in shared.get("stories", "chip")["soft"]
    shared.post("stories", name="spelled", opening="She wore a black suit and")
    counts = [shared.get("stories", n, "plan", tokens=8)["tokens"] for n in ("chip", "spelled")]
    assert abs(counts[0] - counts[1]) < 3
    shared.put("stories", "chip", "settings", seed=1)  # some bytes of this model's give no text
    assert shared.write("chip", tokens=4)[0]


def test_a_code_steers_by_its_strength(shared):
    shared.state.prompts.save(SoftPrompt.from_text("Grim!", MODEL, name="Grim", kind="prefix"))
    begun(shared, "coded")
    shared.put("stories", "coded", "settings", sampling={"temperature": 0})
    texts = {}
    for strength in (0, 1, -2):
        code = {"name": "Grim", "strength": strength}
        texts[strength], _ = shared.write("coded", codes=[code], tokens=10)
        shared.post("stories", "coded", "undo")
    plain, _ = shared.write("coded", tokens=10)
    assert texts[0] == plain
    assert len(set(texts.values())) > 1


def test_a_control_vector_steers_by_its_strength(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTLORE_VECTORS", str(tmp_path))
    directions = torch.zeros(MODEL.layers, MODEL.width)
    directions[1] = 3 * torch.randn(MODEL.width, generator=torch.Generator().manual_seed(0))
    save_vector(ControlVector("dark", directions, training={"positive": ["Dark."]}))
    save_vector(ControlVector("wide", torch.ones(MODEL.layers, MODEL.width + 1)))
    assert shared.get("info")["vectors"] == [{"name": "dark", "description": "Dark."}]
    begun(shared, "steered")
    shared.put("stories", "steered", "settings", sampling={"temperature": 0})
    texts = {}
    for strength in (0, 1, -1):
        vector = {"name": "dark", "strength": strength}
        texts[strength], _ = shared.write("steered", vectors=[vector], tokens=10)
        shared.post("stories", "steered", "undo")
    plain, _ = shared.write("steered", tokens=10)
    assert texts[0] == plain
    assert len(set(texts.values())) == 3
    for name, status in (("nobody", 404), ("../dark", 404), ("wide", 400)):
        told = {"text": "Then", "vectors": [{"name": name}]}
        shared.refused(status, "POST", "stories", "steered", "write", json=told)


# the writer's tools ------------------------------------------------------------------------------


def test_another_token_is_taken_and_the_first_text_stays(shared):
    begun(shared, "forks")
    shared.put("stories", "forks", "settings", seed=3, trim=False)
    places = []
    while not places:  # this tiny model writes halves of characters, which have no alternatives
        written, done = shared.write("forks", tokens=10)
        turn = done["story"]["turns"][-1]["id"]
        tokens = shared.get("stories", "forks", "turns", turn, "tokens")
        assert "".join(token["text"] for token in tokens) == written
        assert all(0 <= token["chance"] <= 1 for token in tokens)
        places = [n for n, token in enumerate(tokens) if n and token["others"]]
    place = places[0]
    chances = [other["chance"] for other in tokens[place]["others"]]
    assert chances == sorted(chances, reverse=True)
    other = tokens[place]["others"][0]["text"]
    before = "".join(token["text"] for token in tokens[:place])
    story = shared.post("stories", "forks", "turns", turn, "take", token=place, text=other)
    assert story["turns"][-1]["text"] == before + other
    assert story["turns"][-1]["tries"][0] == turn
    assert shared.post("stories", "forks", "undo")["turns"][-1]["text"] == written
    for form in ({"token": place, "text": "nothing like it"}, {"token": 10**6, "text": other}):
        shared.refused(400, "POST", "stories", "forks", "turns", turn, "take", json=form)
    story = shared.put("stories", "forks", "turns", turn, text="It was typed.")
    typed = story["turns"][-1]["id"]
    assert shared.get("stories", "forks", "turns", typed, "tokens") == []


def test_several_continuations_are_written_and_all_kept(shared):
    begun(shared, "ways")
    shared.put("stories", "ways", "settings", seed=5, trim=False)
    with shared.stream(
        "POST", "stories", "ways", "write", tokens=8, samples=3, text=" It ran"
    ) as events:
        seen = list(events)
    texts = [
        "".join(d["text"] for n, d in seen if n == "token" and d["sample"] == i) for i in range(3)
    ]
    done = seen[-1][1]
    assert len(set(texts)) == 3
    for turn, text in zip(done["turns"], texts, strict=True):
        story = shared.post("stories", "ways", "go", turn=turn)
        assert [one["text"] for one in story["turns"]] == [OPENING, " It ran", text]
        assert story["turns"][-1]["tries"] == done["turns"]
    shared.refused(400, "POST", "stories", "ways", "write", json={"samples": 99})


def test_several_continuations_are_stopped_together(shared):
    begun(shared, "stopped ways")
    with shared.stream("POST", "stories", "stopped ways", "write", tokens=150, samples=2) as events:
        next(event for event in events if event[0] == "token")
        shared.post("stories", "stopped ways", "stop")
        name, done = list(events)[-1]
    assert name == "done"
    assert len(done["turns"]) == 2
    assert not shared.state.engine.load().running


def test_a_sentence_is_written_anew_from_what_is_before_it(shared):
    begun(shared, "anew")
    turn = shared.get("stories", "anew")["turns"][0]["id"]
    before = shared.texts("anew")
    found = shared.post("stories", "anew", "turns", turn, "rewrite", start=14, samples=2)
    assert found
    assert all(sentence == sentence.strip() != "" for sentence in found)
    assert shared.texts("anew") == before
    for start in (10**6, -1):
        shared.refused(
            400, "POST", "stories", "anew", "turns", turn, "rewrite", json={"start": start}
        )
    shared.refused(400, "POST", "stories", "anew", "turns", 999, "rewrite", json={"start": 0})


def test_the_exact_context_is_what_the_model_reads(shared):
    shared.state.prompts.save(SoftPrompt.from_text("A lamp.", MODEL, name="Lamp"))
    begun(shared, "exact")
    shared.put("stories", "exact", "settings", memory="It is winter.")
    shared.post("stories", "exact", "turns", text=" By the [[soft:Lamp]] stood")
    pieces = shared.get("stories", "exact", "context")
    assert {"soft": "Lamp"} in pieces
    text = "".join(piece.get("text", "|") for piece in pieces)
    assert text == f"It is winter.\n{OPENING} By the | stood"


# comparing, the page, the rest -------------------------------------------------------------------


def test_compare_writes_by_each_method_with_one_seed(shared):
    shared.post("books", name="contest")
    shared.post("books", "contest", "entries", name="Coat", text="The coat is scarlet.")
    shared.state.prompts.save(SoftPrompt.from_text("The coat is red.", MODEL, name="Coat"))
    asked = {"text": "She put on", "names": ["Coat"], "book": "contest", "tokens": 6, "seed": 2}
    with shared.stream("POST", "compare", **asked) as events:
        first = list(events)
    methods = {row["method"]: row["tokens"] for row in first[0][1]["methods"]}
    assert list(methods) == ["nothing", "text", "soft"]
    assert methods["text"] > methods["nothing"] < methods["soft"]
    assert [row["without"] for row in first[0][1]["methods"]] == [{}, {}, {}]
    assert "scarlet" in first[0][1]["words"]
    assert first[-1] == ("end", {})
    assert {data["method"] for name, data in first if name == "done"} == set(methods)
    with shared.stream("POST", "compare", **asked) as events:
        assert _by_method(list(events)) == _by_method(first)
    with shared.stream("POST", "compare", **asked, samples=2) as events:
        assert sum(name == "done" for name, _ in events) == 6
    greedy = [{"temperature": 0, **more} for more in ({}, STORY_SAMPLING, {"dry_multiplier": 0})]
    usual, same, looping = (_compared(shared, asked, tokens=60, sampling=one) for one in greedy)
    assert usual == same != looping  # a story's samplers are those of a comparison
    shared.refused(400, "POST", "compare", json={**asked, "names": ["nobody"]})
    shared.refused(400, "POST", "compare", json={**asked, "tokens": LIMIT})
    shared.refused(404, "POST", "compare", json={**asked, "book": "none"})
    with shared.stream("POST", "compare", **{**asked, "tokens": 150}) as events:
        next(events)
    wait_until(lambda: not shared.state.engine.load().running)


def test_compare_says_which_entries_a_column_lacks(shared):
    shared.post("books", name="half")
    shared.post("books", "half", "entries", name="Told", text="The lamp is green.")
    shared.post(
        "books", "half", "entries", name="Empty", blocks=[{"call": "It", "responses": [" is."]}]
    )
    asked = {"text": "She saw", "names": ["Told", "Empty"], "book": "half", "tokens": 4}
    with shared.stream("POST", "compare", **asked) as events:
        seen = list(events)
    rows = {row["method"]: row for row in seen[0][1]["methods"]}
    assert rows["text"]["without"] == {"Empty": "it has no text"}
    assert rows["soft"]["without"] == dict.fromkeys(["Told", "Empty"], "it is not trained yet")
    assert {name for name, row in rows.items() if row["written"]} == {"nothing", "text"}
    assert {data["method"] for name, data in seen if name == "done"} == {"nothing", "text"}
    long = "a lamp of glass " * LIMIT
    shared.put("books", "half", "entries", "Told", name="Told", text=long)
    with shared.stream("POST", "compare", **asked) as events:
        rows = {row["method"]: row for row in next(events)[1]["methods"]}
    assert "do not fit" in rows["text"]["without"]["Told"]


def _compared(shared, asked, **more):
    with shared.stream("POST", "compare", **{**asked, **more}) as events:
        return _by_method(list(events))


def _by_method(events):
    texts = {}
    for name, data in events:
        if name == "token":
            texts[data["method"]] = texts.get(data["method"], "") + data["text"]
    return texts


def test_info_says_whether_the_model_has_a_chat_template(shared, monkeypatch):
    assert shared.get("info")["chat_template"] is False
    monkeypatch.setattr(MODEL.tokenizer, "chat_template", "{{ messages }}")
    assert shared.get("info")["chat_template"] is True


def test_info_tells_what_the_page_needs(shared):
    wait_until(lambda: shared.get("info")["load"]["running"] == 0)  # of the tests before
    info = shared.get("info")
    assert info["context_length"] == LIMIT
    assert {"safetensors", "peft"} <= set(info["formats"]["prompts"])
    assert {"yaml", "sillytavern"} <= set(info["formats"]["lorebooks"])
    assert info["formats"]["stories"] == ["md", "txt", "json"]
    begun(shared, "presets")
    for preset in info["presets"]:
        assert preset["help"].endswith(".")
        shared.put("stories", "presets", "settings", sampling=preset["sampling"])
    (trained,) = (one["sampling"] for one in info["presets"] if one["name"] == "As trained")
    assert build_steps(SamplingParams.of({**STORY_SAMPLING, **trained})) == []  # all are off
    for one in info["samplers"]:
        assert one["min"] <= one["default"] <= one["max"]
        begun(shared, f"edge {one['name']}")
        for edge in (one["min"], one["max"]):
            sampling = {one["name"]: edge}
            shared.put("stories", f"edge {one['name']}", "settings", sampling=sampling)


def test_the_page_and_its_files_are_served_and_nothing_else(shared):
    def fetch(path, **headers):
        return shared.client.get(shared.url + path, headers=headers)

    index = fetch("/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    assert index.headers["cache-control"] == "no-cache"
    assert fetch("/", **{"If-None-Match": index.headers["etag"]}).status_code == 304
    assert fetch("/studio/static/main.js").headers["content-type"].startswith("text/javascript")
    assert fetch("/studio/static/base.css").headers["content-type"].startswith("text/css")
    assert fetch("/favicon.ico").headers["content-type"] == "image/svg+xml"
    for path in (
        "..%2Fpage.py",
        "%2e%2e/page.py",
        "..\\page.py",
        "",
        "no.js",
        "%00",
        "/etc/passwd",
    ):
        assert fetch(f"/studio/static/{path}").status_code == 404


ODD_NAMES = [
    "..", "../up", "a/b", "a\\b", "", " ", ".hidden", "con", "a\0b", "\ud800", "x" * 500, "é" * 120,
    "\u202e", "/etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_no_name_leads_out_of_the_folders(shared, name):
    before = sorted(shared.state.stories.folder.parent.rglob("*"))
    content = json.dumps({"name": name}, ensure_ascii=True).encode()
    headers = {"Content-Type": "application/json"}
    for what in ("stories", "books"):
        if name or what == "books":  # a story without a name is given one
            shared.refused(400, "POST", what, content=content, headers=headers)
    if name not in ("", "\ud800"):
        for what in ("stories", "books", "prompts", "trainings"):
            path = (what, quote(name))
            reply = shared.client.get("/".join(path))
            assert reply.status_code in (200, 400, 404, 405), reply.text
            for method, rest in (("DELETE", ()), ("GET", ("export",))):
                assert shared.client.request(method, "/".join([*path, *rest])).status_code < 500
    assert sorted(shared.state.stories.folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"name": NaN}',
        '{"name": ' + "9" * 5000 + "}",
        '{"name": {"a": 1}}',
        '{"name": "\\ud800", "opening": "\\udfff"}',
        '{"name": "odd", "opening": "a\\u0000b"}',
        "null",
        "\x00",
        '{"entries": [{"name": "x", "text": "\\ud800"}]}',
        '{"entries": [{"name": "x", "text": "y", "order": ' + "9" * 30 + "}]}",
        '{"entries": [{"name": "x", "text": "y", "odd": ' + "[" * 200 + "]" * 200 + "}]}",
        '{"turn": 1e400, "text": 3, "sampling": {"a": {}}, "seed": 1e99}',
        '{"sampling": {"\\ud800": NaN}, "tokens": 5}',
        '{"sampling": {"temperature": Infinity}}',
        '{"sampling": {"logit_bias": {"x": []}}, "tokens": 2}',
        '{"sampling": {"order": [[]]}}',
    ],
)
def test_odd_bodies_are_refused_not_failed_on(shared, body):
    if "odd" not in [row["name"] for row in shared.get("stories")]:
        begun(shared, "odd")
        shared.post("books", name="odd")
    for method, *path in [
        ("POST", "stories"),
        ("PUT", "stories", "odd", "settings"),
        ("POST", "stories", "odd", "turns"),
        ("POST", "stories", "odd", "go"),
        ("POST", "stories", "odd", "write"),
        ("PUT", "books", "odd"),
        ("POST", "books", "odd", "entries"),
        ("POST", "trainings"),
        ("POST", "compare"),
    ]:
        headers = {"Content-Type": "application/json"}
        reply = shared.client.request(
            method, "/".join(path), content=body.encode(), headers=headers
        )
        assert reply.status_code < 500, (path, reply.text)
        assert reply.status_code == 200 or reply.json()["error"]["message"]


def test_a_turn_is_kept_when_the_server_stops(tmp_path):
    with studio(tmp_path, close_seconds=0.2) as small:
        begun(small, "kept")
        with small.stream("POST", "stories", "kept", "write", tokens=200) as events:
            assert [name for name, _ in (next(events), next(events))] == ["plan", "token"]
            small.stop()
            done = [data for name, data in events if name == "done"]
    assert done
    with StoryLibrary(tmp_path / "stories").open("kept") as story:
        assert story.turns[-1].by == "model"
        assert story.turns[-1].text == done[0]["story"]["turns"][-1]["text"]


def test_many_stories_may_be_open(shared):
    for number in range(20):
        begun(shared, f"many {number}")
    for number in range(20):
        shared.post("stories", f"many {number}", "turns", text=f" {number}")
        assert shared.texts(f"many {number}") == [OPENING, f" {number}"]


def test_a_turn_that_cannot_begin_takes_back_nothing_of_anothers(shared, monkeypatch):
    begun(shared, "two hands")
    real = StorySession.draft

    def begin(session, *args, **more):
        with shared.state.stories.open("two hands") as theirs:
            theirs.add(" Theirs.")
        return real(session, *args, **more)

    monkeypatch.setattr(StorySession, "draft", begin)
    asked = {"text": " Mine.", "tokens": LIMIT + 1}
    shared.refused(400, "POST", "stories", "two hands", "write", json=asked)
    assert shared.texts("two hands") == [OPENING, " Mine.", " Theirs."]


def test_prompts_that_come_in_at_once_all_stay(shared):
    library = shared.state.prompts
    made = []
    for number in range(4):
        prompt = SoftPrompt.from_text(f"the {number} coats", MODEL, name="at once")
        library.save(prompt)
        made.append((prompt.digest, library.header("at once").path.read_bytes()))
    library.remove("at once")
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda one: shared.upload("prompts", one[1], "x"), made))
    names = [one["name"] for one in rows]
    assert sorted(names) == ["at once", "at once 2", "at once 3", "at once 4"]
    for name, (digest, _) in zip(names, made, strict=True):
        assert library[name].digest == digest
        shared.delete("prompts", name)


def test_a_book_that_is_not_yaml_is_opened_as_a_copy(tmp_path):
    file = tmp_path / "card lore.json"
    given = {"entries": {"0": {"uid": 0, "key": ["Emma"], "content": "Emma is a cook."}}}
    file.write_text(json.dumps(given))
    for _ in range(2):  # started again, it is the same copy
        books = BookFolder(tmp_path / "books", (file, Lorebook.load(file)))
        assert books.opened == "card lore"
        assert books.names() == ["card lore"]
    books.change("card lore", lambda data: {**data, "entries": []})
    assert json.loads(file.read_text()) == given
    assert books.get("card lore").entries == []


def test_a_story_suggests_entries_and_those_of_its_book_are_not_among_them(tmp_path):
    text = "They met Marta. So Marta went to Odrin. Nobody in Odrin knew Marta. Then Odrin slept. "
    with studio(tmp_path) as server:
        server.post("stories", name="town", opening=text)
        found = server.get("stories", "town", "suggestions")
        names = [one["entry"]["name"] for one in found["suggestions"]]
        assert names == ["Marta", "Odrin"]
        assert found["suggestions"][0]["mentions"] == 3
        surprised = server.get("stories", "town", "suggestions", surprise=True)
        assert all(one["surprise"] > 0 for one in surprised["suggestions"])
        server.post("books", name="lore")
        server.post("books", "lore", "entries", **found["suggestions"][0]["entry"])
        server.put("stories", "town", "settings", book="lore", dropped=["Odrin"])
        assert server.get("stories", "town", "suggestions")["suggestions"] == []


def test_an_entry_is_changed_from_the_last_turn_on(tmp_path):
    with studio(tmp_path) as server:
        server.post("books", name="lore")
        server.post("books", "lore", "entries", name="Marta", text="Marta is ten.")
        server.post("stories", name="town", opening="Marta came.", book="lore")
        changed = server.post("stories", "town", "changes", entry="Marta", text="Marta is old.")
        assert [(c["turn"], c["text"]) for c in changed["changes"]] == [(1, "Marta is old.")]
        assert changed["undoable"] == "set"
        pieces = server.get("stories", "town", "context")
        assert "Marta is old." in "".join(piece["text"] for piece in pieces)
        restored = server.delete("stories", "town", "changes", "Marta")
        assert restored["changes"] == []
        server.refused(400, "POST", "stories", "town", "changes", json={"entry": "a/b"})
        for wrong in ({"entry": "Marta", "prompt": "Nothing"}, {"text": "x"}):
            server.refused(400, "POST", "stories", "town", "changes", json=wrong)
        for wrong in ("x", [3], [{"entry": "Marta"}]):
            server.refused(400, "PUT", "stories", "town", "settings", json={"changes": wrong})


def test_what_leaves_the_context_becomes_chapters_to_edit(tmp_path, monkeypatch):
    monkeypatch.setattr(condensing, "UPDATES", 1)
    with studio(tmp_path) as server:
        server.post("stories", name="long", opening="Marta went to the gate and came back. " * 12)
        server.write("long", tokens=4)
        wait_until(lambda: any(c["trained"] for c in server.get("stories", "long")["chapters"]))
        (first, *_) = server.get("stories", "long")["chapters"]
        assert first["text"]
        path = ("stories", "long", "chapters", "Chapter 1")
        changed = server.put(*path, text="Marta went often.")
        assert changed["chapters"][0] == first | {"text": "Marta went often.", "pinned": True}
        parts = server.get("stories", "long", "plan", tokens=4)["parts"]
        assert ("lore", "Chapter 1") in {(part["kind"], part["name"]) for part in parts}
        assert not server.delete(*path)["chapters"][0]["used"]
        parts = server.get("stories", "long", "plan", tokens=4)["parts"]
        assert "Chapter 1" not in {part["name"] for part in parts}
        server.refused(400, "PUT", *path[:-1], "Chapter 99", json={"text": "x"})
        server.refused(400, "PUT", *path, json={"text": "  "})
        server.put("stories", "long", "settings", chapters=False)
        server.refused(400, "PUT", "stories", "long", "settings", json={"chapters": "maybe so"})
