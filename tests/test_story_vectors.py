"""Control vectors that a story or an entry of its lorebook carries."""

import pytest
import torch
from click.testing import CliRunner

from softlore import ControlVector, Entry, FrozenModel, Lorebook
from softlore.cli.story import command
from softlore.errors import ConfigError, LoreError, UnknownPromptError, UnsupportedModelError
from softlore.model.tiny import tiny_model
from softlore.prompts.vector_folder import save_vector
from softlore.story import StoryLibrary, StorySettings
from softlore.story.session import StorySession

MODEL = tiny_model("llama")


def vector(name="dark", seed=0, model=MODEL):
    random = torch.Generator().manual_seed(seed)
    directions = torch.zeros(model.layers, model.width)
    directions[1] = 3 * torch.randn(model.width, generator=random)
    return ControlVector(name, directions)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTLORE_VECTORS", str(tmp_path / "vectors"))
    for seed, name in enumerate(("dark", "terse")):
        save_vector(vector(name, seed))
    return tmp_path


def written(folder, text, entries=(), **settings):
    """What the model writes after a text, greedily, and the session."""
    with StoryLibrary(folder / f"{len(list(folder.iterdir()))}").create("one") as story:
        story.set(sampling={"temperature": 0, "heal": False}, **settings)
        book = Lorebook(name="b", entries=list(entries)) if entries else None
        session = StorySession(story, MODEL, book)
        session.add(text)
        return "".join(session.continue_story(12)), session.plan


def test_a_story_is_steered_by_its_own(folder):
    plain, _ = written(folder, "The old house")
    dark, plan = written(folder, "The old house", vectors={"dark": 2})
    assert dark != plain
    assert [(v.name, strength) for v, strength in plan.vectors] == [("dark", 2.0)]
    assert written(folder, "The old house", vectors={"dark": 0})[0] == plain


def test_an_entry_steers_while_it_is_active(folder):
    house = Entry(name="House", text="An old house.", use="soft", vectors={"dark": 2})
    steered, _ = written(folder, "The old house", vectors={"dark": 2})
    assert written(folder, "The old house", [house])[0] == steered
    asleep, plan = written(folder, "The old barn", [house])
    assert asleep == written(folder, "The old barn")[0]
    assert not plan.vectors


def test_those_of_story_and_entries_add_up(folder):
    house = Entry(name="House", text="An old house.", use="soft", vectors={"terse": 1, "dark": 1})
    one, plan = written(folder, "The old house", [house], vectors={"dark": 1})
    assert len(plan.vectors) == 3
    assert one == written(folder, "The old house", vectors={"dark": 2, "terse": 1})[0]


def test_what_is_missing_or_does_not_fit_is_told_and_stops_nothing(folder):
    wide = ControlVector("wide", torch.ones(MODEL.layers, MODEL.width + 1))
    save_vector(wide)
    entry = Entry(name="House", text="x", use="soft", vectors={"nobody": 1, "wide": 1, "dark": 2})
    text, plan = written(folder, "The old house", [entry], vectors={"darc": 1})
    assert text == written(folder, "The old house", vectors={"dark": 2})[0]
    assert "did you mean 'dark'?" in plan.not_used["vector darc"]
    assert "there is no control vector" in plan.not_used["vector nobody, of House"]
    assert "has shape" in plan.not_used["vector wide, of House"]


def test_more_than_can_be_added_are_told(folder):
    entries = [
        Entry(name=f"House {i}", keys=["house"], text="x", use="soft", vectors={"dark": 0.1})
        for i in range(20)
    ]
    _, plan = written(folder, "The old house", entries)
    assert len(plan.vectors) == 12
    assert sum("12 vectors are active" in why for why in plan.not_used.values()) == 8


@pytest.mark.parametrize(
    "vectors",
    [{"dark": 101}, {"dark": float("nan")}, {"dark": True}, {"dark": "2"}, {"": 1}, {"a/b": 1}, 3],
)
def test_odd_ones_are_refused(vectors):
    with pytest.raises(LoreError, match="vectors"):
        Entry(name="House", text="x", vectors=vectors)
    with pytest.raises(ConfigError, match=r"vectors|nan"):
        StorySettings(vectors=vectors)


def test_what_the_engine_cannot_add_is_told_and_stops_nothing(folder, monkeypatch):
    def refuse(layers):
        raise UnsupportedModelError("not these layers; expected others; leave them out")

    entry = Entry(name="House", text="x", use="soft", vectors={"dark": 2})
    plain, _ = written(folder, "The old house")
    monkeypatch.setattr(MODEL, "check_steered", refuse)
    text, plan = written(folder, "The old house", [entry])
    assert text == plain
    assert "not these layers" in plan.not_used["vector dark, of House"]


def test_a_file_that_changed_is_read_again(folder):
    _, before = written(folder, "The old house", vectors={"dark": 2})
    save_vector(vector("dark", seed=9))
    _, after = written(folder, "The old house", vectors={"dark": 2})
    assert before.vectors[0][0].digest == vector("dark", seed=0).digest
    assert after.vectors[0][0].digest == vector("dark", seed=9).digest


def test_they_are_saved_with_the_book_in_any_format(tmp_path):
    book = Lorebook(name="b", entries=[Entry(name="House", text="x", vectors={"dark": 0.5})])
    book.save(tmp_path / "b.yaml")
    book.save(tmp_path / "b.json", "sillytavern")
    for name in ("b.yaml", "b.json"):
        assert Lorebook.load(tmp_path / name).entries[0].vectors == {"dark": 0.5}


def test_the_command_line_keeps_them_with_the_story(folder):
    model = FrozenModel.from_pretrained("storyteller")
    for seed, name in enumerate(("dark", "terse")):
        save_vector(vector(name, seed, model))
    file = folder / "own.safetensors"
    vector("own", 3, model).save(file)

    def story(*options, lines=""):
        given = ["one", "--stories", str(folder / "s"), *options]
        done = CliRunner().invoke(command, given, input=lines, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        with StoryLibrary(folder / "s").open("one") as opened:
            return done.output, opened.settings.vectors

    assert story("--vector", "dark=2", "--vector", f"{file}=1", lines="Hello\n")[1] == {"dark": 2}
    assert story("--vector", "terse")[1] == {"dark": 2, "terse": 1}
    told, left = story(lines="/vector dark=0 terse=0.5\n/vector\n")
    assert left == {"terse": 0.5}
    assert "terse=0.5" in told
    assert "there is no control vector 'darc'" in story(lines="/vector darc\n")[0]
    assert "has no vector of that name" in story(lines="/vector darc=0\n")[0]
    assert "a quotation mark too few" in story(lines='/vector "dark\n')[0]
    assert 'no control vector "Ada\'s"' in story(lines="/vector Ada's=1\n")[0]
    with pytest.raises(UnknownPromptError, match="did you mean 'dark'"):
        story("--vector", "darc")
    (folder / "vectors" / "terse.safetensors").unlink()
    assert "vector terse is not used" in story()[0]
    assert story(lines="/vector dark=1\n")[1] == {"terse": 0.5, "dark": 1}
    assert story(lines="/vector terse=0\n")[1] == {"dark": 1}
