"""Stories: a tree of turns, undo over operations, settings; nothing is ever lost.

`SOFTLORE_KILLS=500 pytest tests/test_story_store.py -k killed` kills at 500 random moments.
"""

import contextlib
import dataclasses
import gc
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import story_processes
from softlore.errors import (
    ConfigError,
    StorageError,
    StoryError,
    StoryFileError,
    StoryNotFoundError,
)
from softlore.story import (
    ROOT,
    Story,
    StoryDraft,
    StoryLibrary,
    StorySettings,
    Turn,
    database,
    library,
)
from softlore.story.rewriting import segments_of
from story_processes import Model, differs, draw_operation
from waiting import WAIT_SECONDS, cost

TURN = Turn(1, ROOT, "model", "", "2026-01-01T00:00:00Z")
KILLS = int(os.environ.get("SOFTLORE_KILLS", "50"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.story"


@pytest.fixture
def story(path):
    with Story.create(path) as story:
        yield story


def texts(story):
    return [turn.text for turn in story.turns]


def tell(story, *parts):
    return [story.add(part, "model" if n % 2 else "writer") for n, part in enumerate(parts)]


# turns -------------------------------------------------------------------------------------------


def test_a_new_story_is_empty(story):
    assert (story.text, len(story), story.turns, story.head) == ("", 0, [], None)
    assert story.settings == StorySettings()
    assert (story.undoable, story.redoable, story.branches(), story.kept()) == ("", "", [], [])
    assert bool(story)
    assert not story.moved_by_other
    assert story.name == "a"


def test_turns_follow_one_another_and_are_still_there_when_opened_anew(story, path):
    data = {"seed": 7, "lore": {"Marta": [1, 2.5, None, True, "é"]}}
    first = story.add("The door ", data=data)
    second = story.add("opened.", "model")
    assert (first.id, first.parent, first.by, first.text) == (1, ROOT, "writer", "The door ")
    assert (second.id, second.parent, second.by, second.data) == (2, 1, "model", {})
    assert first.created.endswith("Z")
    story.close()
    with Story(path) as again:
        assert again.turns == [first, second]
        assert again.text == "The door opened."
        assert again.head == second
        assert again.turns[0].data == data


def test_what_data_gives_is_a_copy(story):
    turn = story.add("a", data={"list": [1]})
    turn.data["list"].append(2)
    assert story.head.data == {"list": [1]}


@pytest.mark.parametrize(
    "text", ["", "\r\n", "\0", "a\0b", "😀", "'; DROP TABLE turns; --", "a" * 10**6]
)
def test_any_text_is_kept_as_it_is(text, story, path):
    story.add(text)
    story.close()
    with Story(path) as again:
        assert again.text == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("half \ud83d",), "half a character"),
        ((b"bytes",), "text is bytes"),
        (("a" * (2**24 + 1),), "expected at most 16,777,216"),
        (("a", "nobody"), "author 'nobody'; expected 'writer' or 'model'"),
        (("a", "model", {"a": {1, 2}}), "not plain JSON"),
        (("a", "model", {"a": float("nan")}), "not plain JSON"),
        (("a", "model", {1: "a"}), "not plain JSON"),
        (("a", "model", 7), "not plain JSON"),
        (("a", "model", {"a": "b" * 2**20}), "expected at most 1,048,576"),
        (("a", "model", None, 9), "has no turn 9"),
        (("a", "model", None, -1), "-1 is not a turn's number"),
        (("a", "model", None, True), "True is not a turn's number"),
        (("a", "model", None, "1"), "'1' is not a turn's number"),
    ],
    ids=lambda value: None if isinstance(value, str) else "arguments",
)
def test_what_cannot_be_a_turn_is_refused(arguments, message, story):
    story.add("before")
    with pytest.raises(StoryError, match=message):
        story.add(*arguments)
    assert texts(story) == ["before"]
    story.add("after")
    assert texts(story) == ["before", "after"]


def test_a_retry_stands_beside_the_last_turn(story):
    tell(story, "Once ", "there was")
    turn = story.retry_from()
    assert turn.text == "there was"
    other = story.add("upon a time", "model", after=turn.parent)
    assert story.text == "Once upon a time"
    assert story.alternatives(turn) == story.alternatives(other.id) == [turn, other]
    assert story.continuations(turn.parent) == [turn, other]
    assert [found.id for found in story.continuations(ROOT)] == [1]
    assert story.continuations(other) == []
    story.undo()
    assert story.text == "Once there was"


def test_there_is_nothing_to_retry(story):
    with pytest.raises(StoryError, match="it has no turns yet"):
        story.retry_from()
    story.add("a")
    with pytest.raises(StoryError, match="the writer wrote its last turn"):
        story.retry_from()


def test_a_turn_at_the_root_begins_another_story(story):
    tell(story, "a", "b")
    story.add("c", after=ROOT)
    assert texts(story) == ["c"]
    assert [turn.text for turn in story.alternatives(story.head)] == ["a", "c"]


def test_an_edit_makes_a_version_and_copies_what_follows(story):
    one, two, three = tell(story, "one ", "two ", "three ")
    story.add("four", data={"seed": 3})
    new = story.edit(two, "TWO ")
    assert story.text == "one TWO three four"
    found = story.turns
    assert found[0] == one
    assert found[1] == new
    assert new.by == "model"
    assert [turn.data for turn in found] == [
        {},
        {"edited_from": two.id},
        {"copied_from": three.id},
        {"seed": 3, "copied_from": 4},
    ]
    assert story.turn(two.id) == two
    story.undo()
    assert story.text == "one two three four"


def test_an_edit_that_changes_nothing_is_no_operation(story):
    (turn,) = tell(story, "one ")
    assert story.edit(turn, "one ") == turn
    story.replace_text("one ")
    story.go_to(turn)
    story.set(memory="")
    story.undo()
    assert (story.text, story.undoable) == ("", "")


def test_only_turns_of_the_story_as_it_stands_are_edited(story):
    one, two = tell(story, "one ", "two ")
    story.cut(two)
    for operation in (lambda: story.edit(two, "x"), lambda: story.cut(two)):
        with pytest.raises(StoryError, match="turn 2 is not in the story 'a' as it is now"):
            operation()
    assert story.turns == [one]
    with pytest.raises(StoryError, match="has no turn 77"):
        story.go_to(77)
    with pytest.raises(StoryError, match="has no turn 0"):
        story.mark(ROOT)
    with pytest.raises(StoryError, match="has no turn 77"):
        story.alternatives(77)


def test_cut_and_go_to(story):
    tell(story, "a", "b", "c")
    story.cut(2)
    assert texts(story) == ["a"]
    story.add("d")
    story.go_to(3)
    assert texts(story) == ["a", "b", "c"]
    story.go_to(ROOT)
    assert texts(story) == []
    for expected in (["a", "b", "c"], ["a", "d"], ["a"], ["a", "b", "c"]):
        story.undo()
        assert texts(story) == expected


def test_branches(story):
    tell(story, "Once ", "there was a cat.", " It slept.")
    story.add("there was a dog that barked.", "model", after=1)
    found = story.branches()
    assert [(b.id, b.turns, b.shared, b.words, b.current) for b in found] == [
        (4, 2, 2, "there was a dog that barked.", True),
        (3, 3, 1, "cat.", False),
    ]
    story.go_to(2)
    found = story.branches()
    assert [(b.id, b.turns, b.shared, b.words, b.current) for b in found] == [
        (4, 2, 1, "dog that barked.", False),
        (3, 3, 2, "It slept.", False),
    ]


def test_a_branch_that_only_goes_further_still_has_words(story):
    tell(story, "One.")
    story.edit(1, "One. Two.")
    found = {branch.id: branch.words for branch in story.branches()}
    assert found == {2: "One. Two.", 1: "One."}


# a text that was edited as a whole ---------------------------------------------------------------


LONG = [f"This is sentence {number}, and it is a long one. " for number in range(9)]


def replaced(story, text):
    story.replace_text(text)
    assert story.text == text
    return [next(iter(turn.data.items()), None) for turn in story.turns]


@pytest.mark.parametrize(
    ("new", "came_from"),
    [
        ("a+bcdef", [("edited_from", 1), ("copied_from", 2), ("copied_from", 3)]),
        ("abcd+ef", [None, None, None, ("copied_from", 3)]),
        ("abef", [None, ("copied_from", 3)]),
        ("abcdefg", [None, None, None, None]),
        ("abcde", [None, None, ("edited_from", 3)]),
        ("abcd", [None, None]),
        ("", []),
        ("xyz", [("edited_from", 1)]),
        ("abXef", [None, ("edited_from", 2), ("copied_from", 3)]),
        ("cdef", [("copied_from", 2), ("copied_from", 3)]),
    ],
)
def test_a_text_edited_in_one_place(new, came_from, story):
    tell(story, "ab", "cd", "ef")
    found = replaced(story, new)
    assert found == came_from
    story.undo()
    assert story.text == "abcdef"


def test_a_text_edited_in_many_places(story):
    tell(story, *LONG)
    new = LONG.copy()
    new[2] = new[2].replace("long", "short")
    new[6] = new[6] + "Indeed. "
    del new[4]
    found = replaced(story, "".join(new))
    assert found == [
        None,
        None,
        ("edited_from", 3),
        ("copied_from", 4),
        ("copied_from", 6),
        ("copied_from", 7),
        None,
        ("copied_from", 8),
        ("copied_from", 9),
    ]
    added = story.turns[6]
    assert (added.text, added.by) == ("Indeed. ", "writer")


def test_several_turns_made_one(story):
    tell(story, "aa", "bb", "cc", "dd")
    replaced(story, "aaXdd")
    assert [(turn.text, turn.by) for turn in story.turns] == [
        ("aa", "writer"),
        ("X", "writer"),
        ("dd", "model"),
    ]


def test_quite_another_text_of_a_long_story_is_found_out_fast():
    turns = [
        dataclasses.replace(TURN, id=n + 1, text=f"turn number {n} of many ") for n in range(9999)
    ]
    pieces = []
    assert (
        cost(lambda: pieces.append(segments_of(turns, "something else altogether " * 10000))) < 100
    )
    assert [len(found) for found in pieces] == [1, 1, 1]


def test_replacing_by_what_is_no_text(story):
    story.add("a")
    with pytest.raises(StoryError, match="half a character"):
        story.replace_text("a\ud83d")
    assert story.text == "a"


# undo --------------------------------------------------------------------------------------------


def test_undo_is_over_operations(story):
    story.add("a")
    story.set(memory="It rains.", note="Be brief.")
    story.add("b")
    assert story.undoable == "add"
    assert [story.undo(), story.undo()] == ["add", "set"]
    assert (story.text, story.settings.memory) == ("a", "")
    assert (story.undoable, story.redoable) == ("add", "set")
    assert [story.redo(), story.settings.note] == ["set", "Be brief."]
    assert [story.undo(), story.undo(), story.undo(), story.undo()] == ["set", "add", "", ""]
    assert story.text == ""
    assert [story.redo(), story.redo(), story.redo(), story.redo()] == ["add", "set", "add", ""]
    assert (story.text, story.settings.memory) == ("ab", "It rains.")


def test_a_new_operation_drops_what_could_be_redone_but_no_turn(story):
    tell(story, "a", "b")
    story.undo()
    story.add("c")
    assert story.redo() == ""
    assert [branch.id for branch in story.branches()] == [3, 2]
    story.go_to(2)
    assert story.text == "ab"


def test_undo_outlives_the_process(story, path):
    tell(story, "a", "b")
    story.undo()
    story.close()
    with Story(path) as again:
        assert (again.undoable, again.redoable, again.text) == ("add", "add", "a")
        again.redo()
        assert again.text == "ab"


def test_marks_are_said_of_turns(story):
    one, two, three = tell(story, "a", "b", "c")
    story.mark(one)
    story.mark(three)
    story.mark(three)
    assert story.kept() == [one, three]
    story.mark(one, kept=False)
    story.edit(two, "B")
    assert [turn.text for turn in story.kept()] == ["c"]  # the copy of it
    story.edit(story.head, "C")
    assert story.kept() == []
    assert story.undo() == "edit"


# settings ----------------------------------------------------------------------------------------


def test_settings_change_together_and_are_kept(story, path):
    new = story.set(title="T", memory="m", seed=7, sampling={"temperature": 0.8}, budget=100)
    assert story.settings == new
    assert new.sampling == {"temperature": 0.8}
    story.close()
    with Story(path) as again:
        assert again.settings == new
        again.undo()
        assert again.settings == StorySettings()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memry": "a"}, "did you mean 'memory'"),
        ({"memory": 7}, "memory is 7; expected text"),
        ({"memory": None}, "memory is None; expected text"),
        ({"memory": "\ud83d"}, "broken character"),
        ({"note_depth": -1}, "expected a whole number from 0"),
        ({"note_depth": True}, "expected a whole number from 0"),
        ({"budget": None}, "budget is None"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"sampling": [1]}, "expected a mapping"),
        ({"sampling": {"a": float("inf")}}, "not finite"),
        ({"sampling": {1: 2}}, "field name 1 is not text"),
        ({"extra": {"memory": "a"}}, "extra has 'memory'"),
        ({"memory": "a" * 2**25}, "expected at most 33,554,432"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_settings_that_do_not_fit(changes, message, story):
    with pytest.raises(ConfigError, match=message):
        story.set(**changes)
    assert story.settings == StorySettings()
    assert story.undoable == ""


def test_settings_are_not_changed_from_outside():
    sampling = {"top_p": [0.9]}
    settings = StorySettings(sampling=sampling)
    sampling["top_p"].append(1)
    assert settings.sampling == {"top_p": [0.9]}


def test_settings_of_a_newer_version_are_kept(story, path):
    story.set(extra={"mood": {"of": ["the", "future"]}, "extra": 1})
    story.set(memory="m")
    story.close()
    with Story(path) as again:
        assert again.settings.extra == {"mood": {"of": ["the", "future"]}, "extra": 1}
        assert again.settings.memory == "m"


# against a model ---------------------------------------------------------------------------------


class Stated(RuleBasedStateMachine):
    """A story does as a plain model of it does, also when it is opened anew."""

    @initialize()
    def begin(self):
        # No fixture reaches here; the folder goes with the machine.
        self.folder = contextlib.ExitStack()
        name = self.folder.enter_context(temporary_folder())
        self.path = Path(name) / "s.story"
        self.story, self.model = Story.create(self.path), Model()

    def do(self, operation, *arguments, **more):
        getattr(self.story, operation)(*arguments, **more)
        getattr(self.model, operation)(*arguments, **more)
        assert differs(self.story, self.model) == {}

    @rule(text=st.text(max_size=5), by=st.sampled_from(["writer", "model"]))
    def add(self, text, by):
        self.do("add", text, by=by)

    @rule(data=st.data(), text=st.text(max_size=5))
    def add_elsewhere(self, data, text):
        self.do("add", text, after=data.draw(st.sampled_from([ROOT, *self.model.turns])))

    @precondition(lambda self: self.model.path)
    @rule(data=st.data(), text=st.text(max_size=5), name=st.sampled_from(["edit", "cut", "mark"]))
    def at_a_turn(self, data, text, name):
        number = data.draw(st.sampled_from(self.model.path))
        more = {"edit": {"text": text}, "cut": {}, "mark": {"kept": bool(text)}}[name]
        self.do(name, number, **more)
        if name == "edit":
            for turn in self.story.turns:
                came_from = turn.data.get("copied_from", turn.data.get("edited_from"))
                assert self.model.copies.get(turn.id, came_from) == came_from

    @rule(data=st.data())
    def go_to(self, data):
        self.do("go_to", data.draw(st.sampled_from([ROOT, *self.model.turns])))

    @rule(memory=st.text(max_size=3))
    def set(self, memory):
        self.do("set", memory=memory)

    @rule(name=st.sampled_from(["undo", "redo"]))
    def back_or_forth(self, name):
        self.do(name)

    @rule(data=st.data())
    def replace_text(self, data):
        parts = [self.model.turns[number][2] for number in self.model.path]
        kept = data.draw(st.lists(st.sampled_from([*parts, "new ", "x"]), max_size=6))
        text = "".join(kept)
        before = self.story.turns
        same = 0
        while same < len(before) and text.startswith("".join(parts[: same + 1])):
            same += 1
        self.story.replace_text(text)
        assert self.story.text == text
        assert self.story.turns[:same] == before[:same]
        for turn in self.story.turns[same:]:
            self.model.turns[turn.id] = (turn.parent, turn.by, turn.text)
        old = {turn.id for turn in before} & self.model.marked
        for turn in self.story.turns[same:]:
            if turn.data.get("copied_from") in old and turn not in before:
                self.model.marked.add(turn.id)
        if self.story.turns != before:
            head = self.story.turns[-1].id if self.story.turns else ROOT
            self.model._do(head, self.model.memory)
        assert differs(self.story, self.model) == {}

    @rule()
    def open_anew(self):
        self.story.close()
        self.story = Story(self.path)
        assert differs(self.story, self.model) == {}

    def teardown(self):
        self.story.close()
        self.folder.close()


def temporary_folder():
    fast = "/dev/shm"  # flushing costs nothing there
    return tempfile.TemporaryDirectory(dir=fast if os.path.isdir(fast) else None)


Stated.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
TestStated = Stated.TestCase


# killed, and two at once -------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, story_processes.__file__, *map(str, arguments)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, text=True, **pipes)


def ended(process):
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, to be fast")
def test_killed_at_random_moments():
    """It has all operations that were acknowledged, and at most one more."""
    with temporary_folder() as folder:
        killed_in(Path(folder))


def killed_in(tmp_path):
    lines = ended(run("kill", tmp_path, KILLS)).splitlines()
    assert len(lines) == KILLS
    done = 0
    for line in lines:
        name, count = line.split("\t")
        done += int(count)
        if name not in StoryLibrary(tmp_path):
            assert count == "0"
            continue
        with contextlib.closing(sqlite3.connect(tmp_path / f"{name}.story")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert db.execute("PRAGMA foreign_key_check").fetchone() is None
        draw, model = random.Random(name), Model()
        for _ in range(int(count)):
            operation, arguments, more = draw_operation(model, draw)
            getattr(model, operation)(*arguments, **more)
        with StoryLibrary(tmp_path).open(name) as story:
            if differs(story, model):
                operation, arguments, more = draw_operation(model, draw)
                getattr(model, operation)(*arguments, **more)
            assert differs(story, model) == {}, line
            story.add("and on it goes")
    assert done > KILLS


@pytest.mark.parametrize("look", ["look", "blind"])
def test_two_processes_add_at_once(look, story, path):
    story.add("Once ")
    both = [run("add", path, word, 60, look) for word in ("a", "b")]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    moved = [int(ended(process)) for process in both]
    assert sum(moved) > 0
    everything = [story.turn(number) for number in range(1, 122)]
    for word in ("a", "b"):
        own = [turn.text for turn in everything if turn.text.startswith(word)]
        assert own == [f"{word}{number} " for number in range(60)]
    assert story.head == everything[-1]
    assert len(story.branches()) >= (1 if look == "look" else 2)
    while story.undo():
        pass
    assert story.text == ""


def test_two_at_one_story_see_each_other(story, path):
    with Story(path) as other:
        story.add("a")
        assert other.text == "a"
        other.set(memory="m")
        assert story.settings.memory == "m"
        other.add("b")
        assert not other.moved_by_other
        assert texts(story) == ["a", "b"]
        other.undo()
        assert texts(story) == ["a"]


def test_a_turn_goes_where_its_writer_stood(story, path):
    with Story(path) as other:
        tell(story, "a")
        assert other.text == "a"
        story.add("b")
        mine = other.add("c")  # it has not looked since
        assert other.moved_by_other
        assert mine.parent == 1
        assert texts(story) == texts(other) == ["a", "c"]
        assert len(story.branches()) == 2
        other.add("d")
        assert not other.moved_by_other
        story.set(memory="from here")
        other.edit(mine, "C")
        assert other.settings.memory == "from here"
        assert texts(story) == ["a", "C", "d"]


def test_threads_share_a_story(story):
    def write(word):
        for number in range(20):
            story.add(f"{word}{number}")
            assert story.text

    threads = [threading.Thread(target=write, args=(word,)) for word in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts(story)) == sorted(f"{word}{n}" for word in "abc" for n in range(20))


def test_a_story_that_is_held_says_so(story, path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db,
        Story(path) as other,
    ):
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="is in use elsewhere"):
            other.add("a")
        db.execute("ROLLBACK")
        other.add("b")
    assert texts(story) == ["b"]


def test_what_fails_half_way_has_not_been_done(story, path, monkeypatch):
    tell(story, "a", "b")

    def failing(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(story._file, "add_state", failing)
        with pytest.raises(KeyboardInterrupt):
            story.edit(1, "x")
    assert texts(story) == ["a", "b"]
    with Story(path) as other:
        other.add("c")  # it gets the number of what was not kept
    assert texts(story) == ["a", "b", "c"]
    story.add("d")
    assert texts(story) == ["a", "b", "c", "d"]


def test_a_closed_story_says_so(story):
    story.close()
    story.close()
    for use in (lambda: story.text, lambda: story.add("a"), story.branches):
        with pytest.raises(StoryError, match=r"cannot be used .*; open it again"):
            use()


def test_a_full_disk(story, monkeypatch):
    tell(story, "a")
    story._file._db.execute("PRAGMA max_page_count = 20")
    with pytest.raises(StorageError, match="full; free some space"):
        story.add("b" * 10**6)
    assert texts(story) == ["a"]
    story.add("c")
    assert texts(story) == ["a", "c"]


# files that are no good --------------------------------------------------------------------------


def refused(path, match, kind=StoryFileError):
    before = path.read_bytes()
    with pytest.raises(kind, match=match) as caught:
        Story(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "a.story"
    for content, message in [
        (b"", "it is empty"),
        (b"Once upon", "does not start with SQLite's signature"),
    ]:
        path.write_bytes(content)
        refused(path, message)
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    refused(path, "not a database")
    path.unlink()
    with pytest.raises(StoryNotFoundError, match="there is no story"):
        Story(path)
    path.mkdir()
    with pytest.raises(StorageError):
        Story(path)


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "a.story"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 3")
        db.execute("CREATE TABLE bookmarks (id)")
        db.commit()
    refused(path, "of another program and has the table 'bookmarks'")


def tampered(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            db.execute(statement)
        db.commit()
        db.execute("PRAGMA journal_mode = DELETE")


def test_a_newer_schema_is_refused(story, path):
    story.close()
    tampered(path, "PRAGMA user_version = 2")
    refused(path, "written by a newer softlore .*number 2.* up to 1.*; install the newer")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER turns AFTER INSERT ON turns BEGIN DELETE FROM turns; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE more (id)",
        "CREATE INDEX i ON turns (abs(id))",
        "DROP TABLE marks",
        "DROP INDEX turns_by_parent",
        "ALTER TABLE marks ADD COLUMN x DEFAULT 1",
        "UPDATE sqlite_master SET sql = 'CREATE VIEW turns AS SELECT 1', rootpage = 0, "
        "type = 'view' WHERE name = 'turns'",
        "PRAGMA user_version = 0",
    ],
)
def test_a_foreign_schema_is_refused(statement, story, path):
    story.add("a")
    story.close()
    tampered(path, statement)
    refused(path, "damaged")


def read_all(path):
    with Story(path) as story:
        for turn in story.turns:
            assert isinstance(turn.data, dict)
        return (
            story.text,
            story.settings,
            story.branches(),
            story.kept(),
            story.undo(),
            story.redo(),
        )


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE turns SET parent = 3 WHERE id = 2", "turn 2 follows 3"),
        ("UPDATE turns SET parent = 2 WHERE id = 2", "turn 2 follows 2"),
        ("UPDATE turns SET parent = 'x' WHERE id = 2", "turn 2 follows 'x'"),
        ("UPDATE turns SET parent = -5 WHERE id = 2", "turn 2 follows -5"),
        ("DELETE FROM turns WHERE id = 1", "turn 1, which others follow, is missing"),
        ("UPDATE turns SET made_by = 'me'", "is by 'me'"),
        ("UPDATE turns SET text = x'ff'", "text of turn 3 is missing"),
        ("UPDATE turns SET text = CAST(x'ff' AS TEXT)", "UTF-8"),
        ("UPDATE turns SET created = '<script>'", "was created at"),
        ("UPDATE turns SET data = '{'", "data of turn"),
        ("UPDATE turns SET data = '[1]'", "data of turn"),
        ("UPDATE turns SET data = '{\"a\": NaN}'", "data of turn"),
        ("UPDATE turns SET data = '" + "[" * 90000 + "'", "data of turn"),
        ("UPDATE settings SET content = 'x'", "its settings cannot be read"),
        ("UPDATE settings SET content = x'00'", "its settings cannot be read"),
        ("UPDATE settings SET content = '{\"memory\": 7}'", "memory is 7"),
        ("DELETE FROM settings", "its settings cannot be read"),
        ("DELETE FROM now", "current state is missing"),
        ("UPDATE now SET state = 99", "current state is missing"),
        ("UPDATE states SET head = 99", "turn 99, which others follow, is missing"),
        ("UPDATE states SET head = 'x'", "its journal cannot be read"),
        ("UPDATE states SET operation = x'00'", "its journal cannot be read"),
    ],
)
def test_tampered_rows_are_told(statement, message, story, path):
    tell(story, "a", "b", "c")
    story.close()
    tampered(path, statement)
    with pytest.raises(StoryFileError, match=message):
        read_all(path)


def test_a_row_too_large_is_not_read(story, path, monkeypatch):
    story.add("a" * 200_000)
    story.close()
    monkeypatch.setattr(database, "_MAX_ROW", 100_000)
    with pytest.raises(StoryFileError, match="too big"):
        read_all(path)


def test_damage_is_never_a_traceback(story, path):
    for number in range(40):
        story.add(f"turn {number} " * 50, data={"seed": number})
    story.close()
    tampered(path)
    whole = path.read_bytes()
    draw = random.Random(0)
    errors = 0
    for number in range(300):
        content = bytearray(whole)
        if number % 3 == 0:
            content = content[: draw.randrange(16, len(content))]
        for _ in range(draw.choice((1, 10, 200))):
            content[draw.randrange(16, len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            read_all(path)
        except (StoryError, StorageError):
            errors += 1
        for rest in ("-wal", "-shm", "-journal"):
            Path(f"{path}{rest}").unlink(missing_ok=True)
    assert errors > 100


def test_a_folder_that_may_not_be_written_to(tmp_path):
    with pytest.raises(StorageError):
        Story.create(tmp_path / "missing" / "a.story")


# a folder of stories -----------------------------------------------------------------------------


def test_a_folder_of_stories(tmp_path):
    stories = StoryLibrary(tmp_path / "new" / "stories")
    assert (stories.names(), len(stories), "b" in stories) == ([], 0, False)
    draft = StoryDraft(StorySettings(memory="m"), (("writer", "One. "), ("model", "Two.")))
    with stories.create("b", draft) as story:
        assert story.text == "One. Two."
        assert story.settings.memory == "m"
        assert story.draft() == draft
        assert story.undoable == ""
    stories.open_or_create("Ä story").close()
    with stories.open_or_create("b") as story:
        assert len(story) == 2
    (stories.folder / "notes.txt").write_text("x")
    assert list(stories) == stories.names() == ["b", "Ä story"]
    assert "b" in stories
    assert 7 not in stories
    assert sorted(path.name for path in stories.folder.iterdir()) == [
        "b.story",
        "notes.txt",
        "Ä story.story",
    ]


def test_a_name_in_either_form_is_one_name(tmp_path):
    stories = StoryLibrary(tmp_path)
    stories.create("Zoe\u0308").close()
    assert stories.names() == ["Zo\u00eb"]
    stories.open("Zo\u00eb").close()
    (tmp_path / "Zo\u00eb.story").rename(tmp_path / "Zoe\u0308.story")  # as a Mac would have it
    stories.open("Zo\u00eb").close()


@pytest.mark.parametrize(
    "name",
    ["", " ", "../a", "a/b", "a\\b", ".a", "..", "a\0", "con", "LPT1.x", "a:b", "a\n", "é" * 120,
     "a" * 129, "a" * 10**7, "-._", None, 7],
    ids=lambda name: repr(name)[:20],
)  # fmt: skip
def test_names_that_are_not_legal(name, tmp_path):
    stories = StoryLibrary(tmp_path / "in")
    for use in (stories.open, stories.create, stories.open_or_create, stories.delete):
        with pytest.raises(StoryError, match="name"):
            use(name)
    assert list(tmp_path.iterdir()) == []


def test_names_that_differ_in_capitals_only(tmp_path):
    stories = StoryLibrary(tmp_path)
    stories.create("Harbour").close()
    for name in ("Harbour", "harbour"):
        with pytest.raises(StoryError, match=r"there is a story 'Harbour' in .* already"):
            stories.create(name)
    stories.rename("Harbour", "harbour")
    assert stories.names() == ["harbour"]


def test_a_story_that_is_not_there(tmp_path):
    stories = StoryLibrary(tmp_path)
    stories.create("harbour").close()
    with pytest.raises(
        StoryNotFoundError, match="expected one of the 1 there; did you mean 'harbour'"
    ):
        stories.open("harbor")
    with pytest.raises(KeyError):
        stories.delete("other")


def test_a_deleted_story_is_put_aside(tmp_path):
    stories = StoryLibrary(tmp_path)
    for text in ("one", "two", "three"):
        with stories.create("a") as story:
            story.add(text)
        aside = stories.delete("a")
        assert stories.names() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a-2.story.deleted",
        "a-3.story.deleted",
        "a.story.deleted",
    ]
    aside.rename(tmp_path / "a.story")
    with stories.open("a") as story:
        assert story.text == "three"


def test_a_story_in_use_is_neither_deleted_nor_renamed(tmp_path):
    stories = StoryLibrary(tmp_path)
    with stories.create("a") as story:
        story.add("x")
        for use in (lambda: stories.delete("a"), lambda: stories.rename("a", "b")):
            with pytest.raises(StorageError, match="in use elsewhere"):
                use()
        story.add("y")
        assert story.text == "xy"
    stories.rename("a", "b")
    with stories.open("b") as story:
        assert story.text == "xy"
        story.add("z")
    with stories.create("c"), pytest.raises(StoryError, match="there is a story 'c'"):
        stories.rename("b", "c")


def test_a_damaged_story_can_be_deleted(tmp_path):
    (tmp_path / "a.story").write_bytes(b"what is this")
    stories = StoryLibrary(tmp_path)
    assert stories.delete("a").read_bytes() == b"what is this"


def test_two_who_make_the_same_story_get_the_same(tmp_path, monkeypatch):
    stories = StoryLibrary(tmp_path)
    first = stories.create("a")
    first.add("x")
    with monkeypatch.context() as patched:  # as if it had come between the two looks
        patched.setattr(library.StoryLibrary, "open", once_not_found(StoryLibrary.open))
        with stories.open_or_create("a") as second:
            assert second.text == "x"
    with pytest.raises(StoryError, match="there is a file"):
        Story.create(first.path)
    assert first.text == "x"
    first.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.story"]


def once_not_found(open_it):
    calls = []

    def open_later(self, name):
        calls.append(name)
        if len(calls) == 1:
            raise StoryNotFoundError("not yet")
        return open_it(self, name)

    return open_later


def test_where_stories_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTLORE_STORIES", str(tmp_path / "here"))
    assert StoryLibrary().folder == tmp_path / "here"
    monkeypatch.delenv("SOFTLORE_STORIES")
    assert StoryLibrary().folder.name == "stories"


# size and speed ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_story(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "long.story"
    turns = tuple(("model", f"Turn {n}. " * 50) for n in range(10_000))
    Story.create(path, StoryDraft(turns=turns)).close()
    return path


def test_ten_thousand_turns_are_read_fast(long_story):
    def read():
        with Story(long_story) as story:
            assert len(story.text) > 10_000 * 300

    assert cost(read) < 40  # about 10


def test_adding_to_ten_thousand_turns_is_fast(long_story):
    with Story(long_story) as story:
        story._file._db.execute("PRAGMA synchronous = OFF")  # how fast the disk is, is not asked
        assert cost(lambda: story.add("more "), 20) < 2
        assert cost(lambda: story.edit(9_990, f"{time.perf_counter()}")
                       if story.go_to(10_000) is None else None) < 10  # fmt: skip


def test_other_branches_are_not_held_in_memory(path):
    with Story.create(path) as story:
        for _ in range(60):
            story.add("x" * 500_000, after=ROOT)
        story.add("the one", after=ROOT)
    gc.collect()
    tracemalloc.start()
    try:
        with Story(path) as story:
            assert story.text == "the one"
            assert len(story.branches()) == 61
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_no_torch_is_needed():
    code = "import sys, softlore.story.files; assert not {'torch', 'transformers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
