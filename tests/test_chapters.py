"""Memory that grows: what leaves the context becomes chapters, which are read in its place."""

import shutil
import threading

import pytest

from running import softlore
from softlore import Entry, FrozenModel, Lorebook
from softlore.errors import StoryError
from softlore.model.tiny import tiny_model
from softlore.story import StoryLibrary, condensing
from softlore.story.chapters import Chapters
from softlore.story.condensing import ChapterWriter, condense_next, extract, summarize
from softlore.story.session import StorySession
from waiting import WAIT_SECONDS

MODEL = FrozenModel.from_pretrained("storyteller")
SECRET = "The old key of the lighthouse is hidden under the third step."
USUAL = "Lily went to the park. She saw a big dog. The dog was happy. They played with a ball. "


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A few updates suffice here."""
    monkeypatch.setattr(condensing, "UPDATES", 2)
    monkeypatch.setattr(condensing, "PASSAGES", 16)


@pytest.fixture
def library(tmp_path):
    return StoryLibrary(tmp_path / "stories")


def begun(library):
    """A story whose beginning is out of its context of 256 tokens."""
    story = library.create("coast")
    story.set(seed=1, context_tokens=256, budget=120)
    story.add(USUAL + SECRET + " ")
    for _ in range(8):
        story.add(USUAL + USUAL)
    return story


@pytest.fixture
def story(library):
    with begun(library) as story:
        yield story


def session_of(story, **more):
    return StorySession(story, MODEL, **more)


def chapters_read(session):
    return {name: form for name, form in session.plan_turn(20).lore.items() if "Chapter" in name}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the story, condensed once for all tests."""
    library = StoryLibrary(tmp_path_factory.mktemp("condensed"))
    with pytest.MonkeyPatch.context() as patch, begun(library) as story:
        patch.setattr(condensing, "UPDATES", 2)
        patch.setattr(condensing, "PASSAGES", 16)
        session_of(story).condense(20)
    return library.folder


@pytest.fixture
def condensed(saved, library):
    shutil.copytree(saved, library.folder)
    with library.open("coast") as story:
        yield session_of(story)


def test_what_leaves_the_context_is_read_as_chapters(condensed):
    chapters = condensed.chapters.on_path(condensed.story.turns)
    plan = condensed.plan_turn(20)
    assert chapters[0].start == 0
    assert [a.end for a in chapters[:-1]] == [b.start for b in chapters[1:]]
    assert 0 < chapters[-1].end <= plan.omitted
    assert SECRET in chapters[0].entry.text  # what the model could have guessed least
    assert all(one.prompt is not None and one.place["trained"] for one in chapters)
    assert set(chapters_read(condensed)) <= {one.entry.name for one in chapters}
    assert chapters_read(condensed)
    assert not condense_next(condensed.story, condensed.chapters, plan.omitted)


def test_it_can_be_switched_off(condensed):
    condensed.story.set(chapters=False)
    assert not chapters_read(condensed)
    condensed.story.undo()
    assert chapters_read(condensed)


def test_a_chapter_is_not_read_while_its_text_is_in_the_context(condensed):
    condensed.story.set(context_tokens=0)
    assert not condensed.plan_turn(20).omitted
    assert not chapters_read(condensed)


def test_chapters_are_of_their_branch_and_stay_through_edits(condensed):
    story, read = condensed.story, chapters_read(condensed)
    story.edit(story.turns[1], "Then it was evening. " + USUAL + USUAL)
    assert chapters_read(condensed).keys() == read.keys()
    story.cut(story.turns[0])
    story.add("Something else. ")
    for _ in range(10):
        story.add(USUAL + USUAL)
    assert condensed.plan_turn(20).omitted
    assert not chapters_read(condensed)


def test_a_summary_that_the_writer_changed_is_pinned(condensed):
    chapters = condensed.chapters
    chapters.change("Chapter 1", "Remember: " + SECRET)
    condensed.story.set(budget=1)
    plan = condensed.plan_turn(20)
    assert plan.lore["Chapter 1"] == "text"
    assert "Remember: " + SECRET in plan.context.text
    condensed.condense(20)
    assert chapters.on_path(condensed.story.turns)[0].entry.text == "Remember: " + SECRET
    chapters.forget("Chapter 1")
    condensed.condense(20)
    assert "Chapter 1" not in condensed.plan_turn(20).lore
    for wrong in (lambda: chapters.change("Chapter 1", " "), lambda: chapters.forget("Chapter 9")):
        with pytest.raises(StoryError, match="expected"):
            wrong()


def test_the_budget_weighs_prompts_and_summaries(condensed):
    condensed.composer.gains.wait()
    condensed.plan_turn(20)
    condensed.composer.gains.wait()
    plan = condensed.plan_turn(20)
    assert sum(o.tokens for o in plan.choice.chosen) <= 120
    assert {"nats a token" in why for name, why in plan.why.items()} == {True}


def test_chapters_move_with_their_story_and_are_not_another_ones(library, condensed):
    condensed.story.close()
    library.rename("coast", "shore")
    with library.open("shore") as story:
        assert chapters_read(session_of(story))
    library.delete("shore")
    with library.create("shore") as story:
        story.set(context_tokens=256)
        for _ in range(10):
            story.add(USUAL + USUAL)
        assert not Chapters(story, MODEL).on_path(story.turns)
    assert (library.folder / "shore.chapters.deleted").is_dir()


def test_a_leftover_folder_is_not_read_as_another_storys(library, condensed):
    condensed.story.close()
    condensed.story.path.unlink()
    with library.create("coast") as story:
        story.add("x")
        chapters = Chapters(story, MODEL)
        for one in chapters._entries():
            one.extra["chapter"]["created"] = "2020-01-01T00:00:00Z"
        assert not chapters.on_path(story.turns)


def test_prompts_of_another_model_and_damaged_files_are_left_out(condensed):
    other = Chapters(condensed.story, tiny_model())
    assert {one.prompt for one in other.on_path(condensed.story.turns)} == {None}
    file = condensed.chapters.folder / "chapters.yaml"
    file.write_text("entries: 3")
    assert not chapters_read(condensed)


def test_chapters_end_with_sentences(condensed):
    text = condensed.story.text
    for one in condensed.chapters.on_path(condensed.story.turns)[:-1]:
        assert text[: one.end].rstrip()[-1] in ".!?"


# summaries ---------------------------------------------------------------------------------------


def test_a_model_with_a_chat_template_is_asked(monkeypatch):
    asked = []
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}\n"
    monkeypatch.setattr(MODEL.tokenizer, "chat_template", template)
    real = condensing.write

    def write(model, context, *given, **settings):
        asked.append(context)
        return real(model, context, *given, **settings)

    monkeypatch.setattr(condensing, "write", write)
    text = USUAL + SECRET
    summary = summarize(MODEL, text)
    assert asked[0].startswith("<user>Summarize this part of a story")
    assert SECRET in asked[0]
    assert len(MODEL.encode(summary)) <= 12
    assert summary != extract(MODEL, text, 12)


def test_a_plain_model_picks_the_sentences_it_could_not_guess():
    text = USUAL * 4 + SECRET + " The dog sat down on the cold stone. " + USUAL * 4
    picked = extract(MODEL, text, 2 * len(MODEL.encode(SECRET)))
    assert SECRET in picked
    assert len(MODEL.encode(picked)) <= 2 * len(MODEL.encode(SECRET))
    assert extract(MODEL, text, 999).count("big dog") == 1
    assert extract(MODEL, "x", 8)
    assert extract(MODEL, "no end " * 4000, 8)


# in the background -------------------------------------------------------------------------------


def test_nothing_is_condensed_while_something_is_written(story, monkeypatch):
    begun = threading.Event()
    real = condensing.summarize

    def summarize(*given):
        begun.set()
        return real(*given)

    monkeypatch.setattr(condensing, "summarize", summarize)
    writer = ChapterWriter()
    session = session_of(story, chapter_writer=writer)
    with writer.writing():
        assert "".join(session.continue_story(12))
        for _ in session.continue_story(12):
            assert not begun.is_set()
        assert not writer.wait(0.3)  # there is work
        assert not begun.is_set()
    assert writer.wait(WAIT_SECONDS)
    assert begun.is_set()
    assert chapters_read(session)
    writer.close()


def test_a_failure_is_not_tried_again_and_the_story_goes_on(story, monkeypatch):
    tried = []

    def fail(*given):
        tried.append(given)
        raise StoryError("it cannot be condensed; expected more; do not")

    monkeypatch.setattr(condensing, "summarize", fail)
    writer = ChapterWriter()
    session = session_of(story, chapter_writer=writer)
    for _ in range(2):
        assert "".join(session.continue_story(4))
        assert writer.wait(WAIT_SECONDS)
    assert len(tried) == 1
    writer.close()


def test_lore_with_a_chapters_name_is_not_replaced(condensed):
    book = Lorebook(name="b", entries=[Entry(name="Chapter 1", text="A book.", constant=True)])
    session = session_of(condensed.story, book=book)
    assert "A book." in session.plan_turn(20).context.text


# the command -------------------------------------------------------------------------------------


def test_chapters_are_shown_and_edited_in_the_terminal(library, condensed):
    condensed.story.close()
    script = (
        "/memory\n/chapters 1 = Marta hid the key.\n/chapters 1 =\n/chapters 99 = x\n"
        "/chapters x\n/chapters wait\n/set chapters=0\n"
    )
    ended = softlore(
        "story", "coast", "--stories", library.folder, "--prompts", library.folder, "--tokens", 4,
        "--model", "storyteller", stdin=script,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "Chapter 1 (summary and soft prompt of" in ended.out
    assert SECRET in ended.out
    assert "Chapter 1 (pinned and soft prompt of" in ended.out
    assert "Chapter 1 (forgotten)" in ended.out
    assert "has no chapter 'Chapter 99'" in ended.err
    assert "expected NUMBER = TEXT" in ended.err
    with library.open("coast") as story:
        assert not story.settings.chapters
