"""A story: turns that form a tree, the path of them that is the text, undo, settings."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from softlore.errors import StoryError
from softlore.story.branches import branches_of
from softlore.story.opening import making
from softlore.story.rewriting import Piece, pieces_of
from softlore.story.settings import StorySettings
from softlore.story.store import StoryFile, StoryState
from softlore.story.turns import (
    ROOT,
    Branch,
    By,
    StoryDraft,
    Turn,
    clean_by,
    clean_data,
    clean_text,
    number_of,
    place_of,
)


class Story:
    """A story in a file. What has been done is on the disk when the call returns.

    The text is a path of turns, from a first one to the head. Turns are never changed or deleted:
    an edit, a retry and a cut begin another branch. Every operation but `mark` can be undone.

    Other processes may have the same story open: what they do is seen when something is next read
    here. A turn is added after the head that was last seen here, so that two who write at once
    write two branches; the later one is the head, and `moved_by_other` says so. One object may be
    used by several threads.

    Args:
        path: the file, which must exist; `Story.create` makes one.

    Raises:
        StoryNotFoundError: there is no such file.
        StoryFileError: the file is no story, is damaged, or is of a newer softlore. Every method
            raises it when it comes upon damage.
        StorageError: the disk refuses, or another process holds the story for many seconds.
            Nothing has been done then. Every method may raise it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.moved_by_other = False
        """Whether the last operation found that another process had moved the head meanwhile."""
        self._lock = threading.RLock()
        self._file = StoryFile(self.path)
        self._seen = _Seen(_UNKNOWN, StoryState(0, "", ROOT, 0), [], StorySettings())
        try:
            self._look()
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def create(cls, path: str | os.PathLike[str], draft: StoryDraft | None = None) -> Self:
        """Makes a story's file, with what the draft holds, and opens it.

        Raises StoryError if something is at `path` already, StorageError.
        """
        draft = StoryDraft() if draft is None else draft

        with (
            making(Path(path)) as temporary,
            contextlib.closing(StoryFile(temporary)) as file,
            file.transaction(writing=True),
        ):
            head = ROOT
            for by, text in draft.turns:
                head = file.add_turn(head, by, text, "{}")
            file.add_state(0, "create", head, file.add_settings(draft.settings))
        return cls(path)

    def close(self) -> None:
        """Closes the file. The story cannot be used after that."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Story({str(self.path)!r})"

    # what it is ----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def turns(self) -> list[Turn]:
        """The story's turns, oldest first."""
        return list(self._look().turns)

    @property
    def text(self) -> str:
        return "".join(turn.text for turn in self._look().turns)

    @property
    def head(self) -> Turn | None:
        """The turn that the story ends with; None while there is none."""
        turns = self._look().turns
        return turns[-1] if turns else None

    @property
    def settings(self) -> StorySettings:
        return self._look().settings

    def __len__(self) -> int:
        return len(self._look().turns)

    def __bool__(self) -> bool:
        return True  # also one without turns

    def draft(self) -> StoryDraft:
        """What stands in the story now, as it would go to another file."""
        seen = self._look()
        return StoryDraft(seen.settings, tuple((turn.by, turn.text) for turn in seen.turns))

    def turn(self, number: int) -> Turn:
        """A turn of any branch. Raises StoryError if there is none of that number."""
        with self._lock, self._file.transaction():
            return self._file.turn(number)

    def continuations(self, turn: Turn | int) -> list[Turn]:
        """The turns that follow a turn of any branch, or ROOT, oldest first."""
        with self._lock, self._file.transaction():
            return self._file.children(self._existing(turn))

    def alternatives(self, turn: Turn | int) -> list[Turn]:
        """The turns that follow the same one as `turn`, itself among them, oldest first."""
        with self._lock, self._file.transaction():
            return self._file.children(self._file.turn(number_of(turn)).parent)

    def branches(self) -> list[Branch]:
        """Where the story ends and where it could, the newest end first."""
        with self._lock, self._file.transaction():
            return branches_of(self._file, self._refresh().turns)

    def kept(self) -> list[Turn]:
        """The turns of the story that the writer has marked as accepted, oldest first."""
        with self._lock:
            turns = self._look().turns
            with self._file.transaction():
                marked = self._file.marked()
            return [turn for turn in turns if turn.id in marked]

    @property
    def undoable(self) -> str:
        """The operation that `undo` would take back; empty if there is none."""
        with self._lock, self._file.transaction():
            state = self._file.state()
            return state.operation if self._file.state_before(state) else ""

    @property
    def redoable(self) -> str:
        """The operation that `redo` would bring back; empty if there is none."""
        with self._lock, self._file.transaction():
            after = self._file.state_after(self._file.state())
            return after.operation if after else ""

    # operations ----------------------------------------------------------------------------------

    def add(
        self,
        text: str,
        by: By = "writer",
        data: Mapping[str, Any] | None = None,
        after: Turn | int | None = None,
    ) -> Turn:
        """Adds a turn, which is the head then.

        Args:
            text: may be empty.
            data: JSON to keep with the turn.
            after: the turn it follows, or ROOT; the head as last seen here if left out. To try
                the last turn again, `after=story.retry_from().parent`.
        """
        text, by, kept = clean_text(text), clean_by(by), clean_data(data)
        with self._changing() as now:
            parent = self._seen.head if after is None else self._existing(after)
            head = self._file.add_turn(parent, by, text, kept)
            self._file.add_state(now.id, "add", head, now.settings)
            return self._file.turn(head)

    def retry_from(self) -> Turn:
        """The last turn, if the model wrote it: what another one is put beside.

        Raises StoryError if there is none, or if the writer wrote it.
        """
        head = self.head
        if head is None or head.by != "model":
            what = "the writer wrote its last turn" if head else "it has no turns yet"
            raise StoryError(
                f"there is nothing to try again in the story {self.name!r}: {what}; expected one "
                "of the model's; let it write on instead"
            )
        return head

    def edit(self, turn: Turn | int, text: str) -> Turn:
        """Puts a new version in place of a turn of the story; returns it.

        Its `data` are the old one's, with the old one's number as `edited_from`. The turns after
        it stay after it, as copies with `copied_from`, marks and all. Raises StoryError if the
        turn does not stand in the story.
        """
        clean_text(text)
        with self._changing() as now:
            place = self._place(turn)
            turns = self._seen.turns
            old = turns[place]
            if text == old.text:
                return old
            after = [Piece(turn.text, turn.by, turn) for turn in turns[place + 1 :]]
            return self._file.turn(self._rewrite(now, place, [Piece(text, old.by, old), *after]))

    def replace_text(self, text: str) -> None:
        """Makes `text` the story's text, as after an edit of it all; keeps the turns it can.

        Raises StoryError.
        """
        with self._changing() as now:
            turns = self._seen.turns
            pieces = pieces_of(turns, text)
            same = 0
            while same < min(len(turns), len(pieces)) and pieces[same].keeps(turns[same]):
                same += 1
            if same < max(len(turns), len(pieces)):
                for piece in pieces:
                    clean_text(piece.text)
                self._rewrite(now, same, pieces[same:])

    def cut(self, turn: Turn | int) -> None:
        """Goes back to before a turn of the story, which stays as a branch. Raises StoryError."""
        with self._changing() as now:
            head = self._seen.turns[self._place(turn)].parent
            self._file.add_state(now.id, "cut", head, now.settings)

    def go_to(self, turn: Turn | int) -> None:
        """Goes to a turn of any branch, which is the head then. Raises StoryError."""
        with self._changing() as now:
            head = self._existing(turn)
            if head != now.head:
                self._file.add_state(now.id, "go to", head, now.settings)

    def set(self, **changes: Any) -> StorySettings:
        """Changes settings, all of them in one operation. Raises ConfigError."""
        with self._changing() as now:
            old = self._file.settings(now.settings)
            new = old.changed(**changes)
            if new != old:
                self._file.add_state(now.id, "set", now.head, self._file.add_settings(new))
            return new

    def undo(self) -> str:
        """Takes the last operation back; returns its name, or an empty text if there is none."""
        with self._changing() as now:
            return now.operation if self._stand_at(self._file.state_before(now)) else ""

    def redo(self) -> str:
        """Brings back what was undone last; returns its name, or an empty text if there is none."""
        with self._changing() as now:
            after = self._file.state_after(now)
            return after.operation if self._stand_at(after) and after else ""

    def mark(self, turn: Turn | int, kept: bool = True) -> None:
        """Says that the writer accepts a turn, or no longer does.

        It is said of the turn, not of the story: undo leaves it, `kept=False` takes it back.
        """
        with self._changing():
            self._file.set_mark(self._file.turn(number_of(turn)).id, kept)

    # ---------------------------------------------------------------------------------------------

    def _look(self) -> _Seen:
        """The story as it stands now, whoever wrote last."""
        with self._lock:
            if self._seen.version != self._file.version:
                with self._file.transaction():
                    self._refresh()
            return self._seen

    def _refresh(self) -> _Seen:
        """Reads what has changed: of the path, only the turns that were not in it."""
        old, state = self._seen, self._file.state()
        turns, settings = old.turns, old.settings
        if state.head != old.head:
            shared, new = 0, []
            for turn in self._file.back_from(state.head) if state.head else ():
                place = place_of(turn.id, turns)
                if place is not None:
                    shared = place + 1
                    break
                new.append(turn)
            turns = [*turns[:shared], *reversed(new)]
        if state.settings != old.state.settings:
            settings = self._file.settings(state.settings)
        self._seen = _Seen(self._file.version, state, turns, settings)
        return self._seen

    @contextlib.contextmanager
    def _changing(self) -> Iterator[StoryState]:
        """One operation: gives the state it goes on from, and sees the one it leaves."""
        with self._lock:
            before = self._seen
            try:
                with self._file.transaction(writing=True):
                    now = self._file.state()
                    yield now
                    self._refresh()
            except BaseException:  # what is seen stays true; whether it is all, the file knows
                self._seen = replace(before, version=_UNKNOWN)
                raise
            self.moved_by_other = now.head != before.head

    def _rewrite(self, now: StoryState, start: int, pieces: Sequence[Piece]) -> int:
        """Puts the pieces in place of all turns from `start` on; returns the first one's number."""
        parent = self._seen.turns[start - 1].id if start else ROOT
        marked = self._file.marked()
        numbers = []
        for piece in pieces:
            old = piece.turn
            data: dict[str, Any] = {}
            if old is not None:
                data = old.data
                data.pop("copied_from", None)  # that was said of the old one
                data["copied_from" if piece.unchanged else "edited_from"] = old.id
            parent = self._file.add_turn(parent, piece.by, piece.text, clean_data(data))
            if old is not None and piece.unchanged and old.id in marked:
                self._file.set_mark(parent, True)
            numbers.append(parent)
        self._file.add_state(now.id, "edit", parent, now.settings)
        return numbers[0] if numbers else ROOT

    def _stand_at(self, state: StoryState | None) -> bool:
        """Goes to a state of the journal, if there is one."""
        if state is not None:
            self._file.stand_at(state.id)
        return state is not None

    def _existing(self, turn: Turn | int) -> int:
        """The number of a turn of any branch, or ROOT."""
        number = number_of(turn)
        return number and self._file.turn(number).id

    def _place(self, turn: Turn | int) -> int:
        """Where a turn stands in the story as last seen here."""
        number = number_of(turn)
        place = place_of(number, self._seen.turns)
        if place is None:
            raise StoryError(
                f"turn {number} does not stand in the story {self.name!r} now; expected one of its "
                f"{len(self._seen.turns)} turns; go to a branch that holds it first"
            )
        return place


@dataclass(frozen=True)
class _Seen:
    """What an object last saw of its story.

    Attributes:
        version: the file's version then, or _UNKNOWN.
    """

    version: int
    state: StoryState
    turns: list[Turn]
    settings: StorySettings

    @property
    def head(self) -> int:
        return self.state.head


_UNKNOWN = -1
