"""Story: operations that add, edit and undo turns, each saved when the call returns."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from softlore.errors import StoryError
from softlore.lore.names import normalize_name
from softlore.story.changes import LoreChange
from softlore.story.database import create_database
from softlore.story.rewriting import Segment, segments_of
from softlore.story.settings import StorySettings
from softlore.story.store import StoryFile, StoryState
from softlore.story.turns import (
    ROOT,
    By,
    StoryDraft,
    Turn,
    check_by,
    check_data,
    check_text,
    index_of,
    number_of,
)
from softlore.story.view import UNKNOWN, StoryView


class Story(StoryView):
    """A story in a file. Each operation is on the disk when its call returns.

    The text is a path of turns, from a first one to the head. Turns are never changed or deleted:
    an edit, a retry and a cut begin another branch (see `softlore.story.view`). Every operation
    but `mark` can be undone.

    Other processes may have the same story open: their operations are seen with the next read. A
    turn is added after the head that was last seen here, so that two who write at once write two
    branches; the later one is the head then, and `moved_by_other` is true. An object may be used
    by several threads.

    Args:
        path: an existing file; `Story.create` makes one.

    Raises:
        StoryNotFoundError: there is no such file.
        StoryFileError: the file is not a story, is damaged, or is of a newer softlore. Any method
            may raise it.
        StorageError: the disk cannot be used, or another process holds the story for many
            seconds. Nothing has been changed then. Any method may raise it.

    Attributes:
        moved_by_other: whether another process had moved the head before the last operation.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.moved_by_other = False
        super().__init__(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str], draft: StoryDraft | None = None) -> Self:
        """Creates a story's file with the content of the draft, and opens it.

        Raises:
            StoryError: there is a file at `path` already.
            StorageError: it cannot be written.
        """
        draft = StoryDraft() if draft is None else draft
        with (
            create_database(Path(path)) as temporary,
            contextlib.closing(StoryFile(temporary)) as file,
            file.transaction(writing=True),
        ):
            head = ROOT
            for by, text in draft.turns:
                head = file.add_turn(head, by, text, "{}")
            for text in draft.alternatives:
                file.add_turn(ROOT, draft.turns[0][0], text, "{}")
            file.add_state(0, "create", head, file.add_settings(draft.settings))
        return cls(path)

    def add(
        self,
        text: str,
        by: By = "writer",
        data: Mapping[str, Any] | None = None,
        after: Turn | int | None = None,
    ) -> Turn:
        """Adds a turn, which becomes the head.

        Args:
            text: may be empty.
            data: JSON to save with the turn.
            after: the turn it follows, or ROOT; the head as last seen here if left out. To retry
                the last turn, `after=story.retry_from().parent`.
        """
        text, by, json = check_text(text), check_by(by), check_data(data)
        with self._operation() as state:
            parent = self._snapshot.head if after is None else self._existing(after)
            head = self._file.add_turn(parent, by, text, json)
            self._file.add_state(state.id, "add", head, state.settings)
            return self._file.turn(head)

    def retry_from(self) -> Turn:
        """The last turn, to which a retry is an alternative.

        Raises StoryError if there is none, or if the writer wrote it.
        """
        head = self.head
        if head is None or head.by != "model":
            what = "the writer wrote its last turn" if head else "it has no turns yet"
            raise StoryError(
                f"there is nothing to retry in the story {self.name!r}: {what}; expected a turn by "
                "the model; let it write one"
            )
        return head

    def edit(self, turn: Turn | int, text: str) -> Turn:
        """Replaces a turn of the story by a new version of it, and returns that.

        The new version has the old one's `data`, and its number as `edited_from`. The turns after
        it are copied, each with the number of the original as `copied_from`, and with its mark.

        Raises:
            StoryError: the turn is not in the story.
        """
        check_text(text)
        with self._operation() as state:
            index = self._index(turn)
            old, *after = self._snapshot.turns[index:]
            if text == old.text:
                return old
            segments = [Segment(turn.text, turn.by, turn) for turn in after]
            first = self._rewrite(state, index, [Segment(text, old.by, old), *segments])
            return self._file.turn(first)

    def replace_text(self, text: str) -> None:
        """Replaces the text of the story; turns that are still in it are kept.

        Raises StoryError.
        """
        with self._operation() as state:
            turns = self._snapshot.turns
            segments = segments_of(turns, text)
            same = 0
            while same < min(len(turns), len(segments)) and segments[same].equals(turns[same]):
                same += 1
            if same < max(len(turns), len(segments)):
                for segment in segments:
                    check_text(segment.text)
                self._rewrite(state, same, segments[same:])

    def cut(self, turn: Turn | int) -> None:
        """Goes back to before a turn; it and those after it stay as a branch. Raises StoryError."""
        with self._operation() as state:
            head = self._snapshot.turns[self._index(turn)].parent
            self._file.add_state(state.id, "cut", head, state.settings)

    def go_to(self, turn: Turn | int) -> None:
        """Makes a turn of any branch the head. Raises StoryError."""
        with self._operation() as state:
            head = self._existing(turn)
            if head != state.head:
                self._file.add_state(state.id, "go to", head, state.settings)

    def set(self, **changes: Any) -> StorySettings:
        """Changes settings, all of them in one operation. Raises ConfigError."""
        with self._operation() as state:
            old = self._file.settings(state.settings)
            new = old.changed(**changes)
            if new != old:
                self._file.add_state(state.id, "set", state.head, self._file.add_settings(new))
            return new

    def change_entry(self, entry: str, text: str = "", prompt: str = "") -> LoreChange:
        """Changes what an entry is from here on, on every branch that has the last turn.

        Before that turn, and on other branches, it is what it was. An entry that the lorebook does
        not have begins here; with neither text nor prompt the entry ends.

        Args:
            prompt: name of the soft prompt that it has from then on.

        Raises:
            LoreError: not the name of an entry.
        """
        turn = self._current().head
        new = LoreChange(entry=entry, turn=turn, text=text, prompt=prompt)
        self._change_lore(lambda change: (change.entry, change.turn) == (new.entry, turn), new)
        return new

    def restore_entry(self, entry: str) -> int:
        """Undoes the changes of an entry that are in effect on this branch; returns how many."""
        name = normalize_name(entry)
        gone = [change for _, change in self.changes() if change.entry == name]
        if gone:
            self._change_lore(lambda change: change in gone)
        return len(gone)

    def undo(self) -> str:
        """Undoes the last operation and returns its name, or an empty text if there is none."""
        with self._operation() as state:
            before = self._file.state_before(state)
            if before is None:
                return ""
            self._file.set_state(before.id)
            return state.operation

    def redo(self) -> str:
        """Redoes the operation undone last; returns its name, or an empty text if there is none."""
        with self._operation() as state:
            after = self._file.state_after(state)
            if after is None:
                return ""
            self._file.set_state(after.id)
            return after.operation

    def mark(self, turn: Turn | int, kept: bool = True) -> None:
        """Marks a turn of any branch to learn from, or removes the mark. Undo leaves marks."""
        with self._operation():
            self._file.set_mark(self._file.turn(number_of(turn)).id, kept)

    def _change_lore(self, gone: Callable[[LoreChange], bool], *new: LoreChange) -> None:
        kept = [change for change in self.settings.lore_changes if not gone(change)]
        self.set(changes=[change.data() for change in (*kept, *new)])

    @contextlib.contextmanager
    def _operation(self) -> Iterator[StoryState]:
        """A transaction. Gives the state before it, and reads the one after it."""
        with self._lock:
            before = self._snapshot
            try:
                with self._file.transaction(writing=True):
                    state = self._file.state()
                    yield state
                    self._refresh()
            except BaseException:  # rolled back: read the file again before the next use
                self._snapshot = replace(before, version=UNKNOWN)
                raise
            self.moved_by_other = state.head != before.head

    def _rewrite(self, state: StoryState, start: int, segments: Sequence[Segment]) -> int:
        """Replaces all turns from index `start` on; returns the number of the first new one."""
        parent = self._snapshot.turns[start - 1].id if start else ROOT
        marked = self._file.marked()
        numbers = []
        for segment in segments:
            old, data = segment.turn, dict[str, Any]()
            if old is not None:
                data = old.data
                data.pop("copied_from", None)  # of the old turn
                data["copied_from" if segment.equals(old) else "edited_from"] = old.id
            parent = self._file.add_turn(parent, segment.by, segment.text, check_data(data))
            if old is not None and segment.equals(old) and old.id in marked:
                self._file.set_mark(parent, True)
            numbers.append(parent)
        self._file.add_state(state.id, "edit", parent, state.settings)
        return numbers[0] if numbers else ROOT

    def _index(self, turn: Turn | int) -> int:
        """The index of a turn in the story as last seen here. Raises StoryError."""
        number = number_of(turn)
        index = index_of(number, self._snapshot.turns)
        if index is None:
            raise StoryError(
                f"turn {number} is not in the story {self.name!r} as it is now; expected one of "
                f"its {len(self._snapshot.turns)} turns; go to a branch that has it first"
            )
        return index
