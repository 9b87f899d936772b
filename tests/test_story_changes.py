"""Entries with a past and a present: from a turn on, branch by branch, with undo."""

import re

import pytest

from running import save_tiny_model, softlore
from softlore import Entry, Lorebook, SoftPrompt
from softlore.errors import ConfigError, LoreError
from softlore.model.tiny import tiny_model
from softlore.story import Story, StoryLibrary, StorySettings
from softlore.story.files import read_story, write_story
from softlore.story.session import StorySession

MODEL = tiny_model("llama")
PAST, PRESENT = "The lighthouse stands on the cliff.", "The lighthouse has burnt down."
LIT = SoftPrompt.from_text("a bright light", MODEL, name="Lighthouse", kind="prefix")
ASHES = SoftPrompt.from_text("black ashes", MODEL, name="Ashes", kind="prefix")
BOOK = Lorebook(name="coast", entries=[Entry(name="Lighthouse", keys=["lighthouse"], text=PAST)])


@pytest.fixture
def story(tmp_path):
    with StoryLibrary(tmp_path).create("coast") as story:
        story.set(seed=1, budget=99)
        for text in ("The lighthouse shone.", " A ship came to the lighthouse."):
            story.add(text)
        yield story


def told(story, prompts=None):
    """The lore that the model reads of the story as it is."""
    plan = StorySession(story, MODEL, BOOK, prompts).plan_turn(10)
    assert plan.lore.keys() <= {"Lighthouse"}
    return [text for text in (PAST, PRESENT) if text in plan.context.text], plan


def test_an_entry_is_another_from_a_turn_on(story):
    assert told(story)[0] == [PAST]
    story.change_entry("Lighthouse", PRESENT)
    assert told(story)[0] == [PRESENT]
    story.add(" The lighthouse was dark.")
    found, plan = told(story)
    assert found == [PRESENT]
    assert plan.why == {"Lighthouse": "it is so since turn 2"}


def test_branches_without_the_turn_keep_the_past_and_undo_brings_it_back(story):
    first, second = story.turns
    story.change_entry("Lighthouse", PRESENT)
    story.add(" Nobody knew how.")
    present = story.head
    story.go_to(first)
    story.add(" They painted the lighthouse.")
    assert told(story)[0] == [PAST]
    story.go_to(present)
    assert told(story)[0] == [PRESENT]
    story.cut(second)
    assert told(story)[0] == [PAST]
    for _ in range(5):  # cut, go, add, go, add
        story.undo()
    assert told(story)[0] == [PRESENT]
    assert story.undo() == "set"
    assert told(story)[0] == [PAST]
    story.redo()
    assert told(story)[0] == [PRESENT]


def test_a_change_outlives_edits_before_and_at_its_turn(story):
    story.change_entry("Lighthouse", PRESENT)
    story.add(" It rained on the lighthouse.")
    for number in range(3):
        story.edit(story.turns[number % 2], f"Day {number}: the lighthouse.")
        assert told(story)[0] == [PRESENT], number
    story.replace_text(story.text.replace("rained", "snowed"))
    assert told(story)[0] == [PRESENT]


def test_many_edits_are_followed(story):
    story.change_entry("Lighthouse", PRESENT)
    for number in range(1200):
        story.edit(story.turns[0], f"{number} lighthouses.")
    with Story(story.path) as again:
        assert [(place, c.text) for place, c in again.changes()] == [(2, PRESENT)]


def test_the_old_soft_prompt_is_not_used_for_the_new_text(story):
    prompts = {"Lighthouse": LIT, "Ashes": ASHES}
    assert told(story, prompts)[1].lore == {"Lighthouse": "soft"}
    story.change_entry("Lighthouse", PRESENT)
    assert told(story, prompts)[1].lore == {"Lighthouse": "text"}
    story.change_entry("Lighthouse", prompt="Ashes")
    plan = told(story, prompts)[1]
    assert plan.lore == {"Lighthouse": "soft"}
    assert plan.context.prompts == (ASHES,)


def test_an_entry_ends_and_another_begins(story):
    story.change_entry("Lighthouse")
    assert not told(story)[1].lore
    story.change_entry("Ruin", "Only a wall is left.")
    story.add(" At the ruin they met.")
    plan = StorySession(story, MODEL, BOOK).plan_turn(10)
    assert plan.lore == {"Ruin": "text"}
    assert story.restore_entry("Lighthouse") == 1
    assert story.restore_entry("Lighthouse") == 0
    plan = StorySession(story, MODEL, BOOK).plan_turn(10)
    assert plan.lore.keys() == {"Ruin", "Lighthouse"}


def test_changes_go_along_with_a_story_that_is_copied(story, tmp_path):
    story.add(" One.")
    story.edit(story.turns[0], "The lighthouse gleamed.")
    story.change_entry("Lighthouse", PRESENT)
    story.add(" Two.")
    with StoryLibrary(tmp_path).create("copy", story.draft()) as copy:
        assert [(c.turn, c.text) for _, c in copy.changes()] == [(3, PRESENT)]
        copy.cut(copy.turns[2])
        assert not copy.changes()


@pytest.mark.parametrize("suffix", [".md", ".json"])
def test_changes_go_along_with_an_export(story, tmp_path, suffix):
    story.change_entry("Lighthouse", PRESENT)
    story.add(" Two.", by="model")
    write_story(story, tmp_path / f"coast{suffix}")
    with StoryLibrary(tmp_path).create("again", read_story(tmp_path / f"coast{suffix}")) as again:
        ((place, change),) = again.changes()
        assert (place, change.text) == (2, PRESENT)


@pytest.mark.parametrize(
    "changes",
    [["x"], [{}], [{"entry": "Emma"}], [{"entry": "", "turn": 1}], [{"entry": "a", "turn": -1}],
     [{"entry": "a", "turn": 1, "txt": "b"}]],
)  # fmt: skip
def test_changes_that_are_none_are_refused(changes):
    with pytest.raises(ConfigError, match="expected"):
        StorySettings(changes=changes)


def test_a_name_that_no_entry_can_have_is_refused(story):
    with pytest.raises(LoreError, match="name"):
        story.change_entry("a/b", "x")
    assert not story.changes()


def test_an_entry_is_changed_in_the_terminal(tmp_path):
    BOOK.save(tmp_path / "coast.yaml")
    script = (
        "The lighthouse shone.\n/change Lighthouse = The lighthouse has burnt down.\n/lore\n"
        "/change Lighthouse\n/change Harbor =\n/change\n/undo\n/change\n"
    )
    ended = softlore(
        "story", "coast", "--stories", tmp_path, "--lorebook", tmp_path / "coast.yaml",
        "--prompts", tmp_path, "--model", save_tiny_model(tmp_path / "model"), "--tokens", 4,
        "--budget", 99, stdin=script,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert len(re.findall(rf"since turn \d, Lighthouse: {PRESENT}", ended.out)) == 2
    assert "it is so since" in ended.out
    assert "expected NAME = TEXT" in ended.err
    assert "expected one of Lighthouse" in ended.err
    with StoryLibrary(tmp_path).open("coast") as story:
        assert not story.changes()
