"""A story as it is now: its turns, text, settings and branches, read from its file.

The turns of a story form a tree. Its text is the path from a first turn to the head; the other
paths are branches, which stay for good::

    1 ── 2 ── 3            cut away, then written differently: a branch of three turns
         └─── 4 ── 5       the story: turns 1, 2, 4 and 5; its head is 5
              └─── 6       a second try of turn 5: a branch of four turns
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from softlore.errors import StoryError, StoryFileError
from softlore.story.changes import LoreChange
from softlore.story.settings import StorySettings
from softlore.story.store import StoryFile, StoryState
from softlore.story.turns import ROOT, StoryBranch, StoryDraft, Turn, index_of, number_of

UNKNOWN = -1  # never the version of a file
_EXCERPT = 60  # characters of a branch's text


@dataclass(frozen=True)
class Snapshot:
    """The state of a story when it was last read.

    Attributes:
        version: the version of the file at that time, or UNKNOWN.
        turns: the path from a first turn to the head.
    """

    version: int
    state: StoryState
    turns: list[Turn]
    settings: StorySettings

    @property
    def head(self) -> int:
        return self.state.head


class StoryView:
    """The read methods of `Story`, which documents both classes.

    What was read is cached as a `Snapshot`, which is refreshed when the file has changed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self._file = StoryFile(self.path)
        self._origins: dict[int, int] = {}
        self._snapshot = Snapshot(UNKNOWN, StoryState(0, "", ROOT, 0), [], StorySettings())
        try:
            self._current()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Closes the file. The object cannot be used after that."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def __len__(self) -> int:
        return len(self._current().turns)

    def __bool__(self) -> bool:
        return True  # also without turns

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def turns(self) -> list[Turn]:
        """The story's turns, oldest first."""
        return list(self._current().turns)

    @property
    def text(self) -> str:
        return "".join(turn.text for turn in self._current().turns)

    @property
    def head(self) -> Turn | None:
        """The last turn; None while there is none."""
        turns = self._current().turns
        return turns[-1] if turns else None

    @property
    def settings(self) -> StorySettings:
        return self._current().settings

    def draft(self) -> StoryDraft:
        """Settings and turns of the story, without its other branches, to write elsewhere."""
        now = self._current()
        changes = [change.data() | {"turn": place} for place, change in self.changes(now.turns)]
        settings = now.settings.changed(changes=changes)
        return StoryDraft(settings, tuple((turn.by, turn.text) for turn in now.turns))

    def changes(self, turns: Sequence[Turn] | None = None) -> list[tuple[int, LoreChange]]:
        """The changes of entries that hold at the end of `turns`, in the order of these.

        Each comes with the number of turns that are before it. `turns`: the story's if left out.
        """
        with self._lock:
            now = self._current()
            changes = now.settings.lore_changes
            if not changes:
                return []
            places = self.places(
                [change.turn for change in changes], now.turns if turns is None else turns
            )
        placed = [(n, c) for n, c in zip(places, changes, strict=True) if n is not None]
        return sorted(placed, key=lambda one: one[0])

    def places(self, numbers: Sequence[int], turns: Sequence[Turn]) -> list[int | None]:
        """By number of a turn, how many of `turns` there are up to it, or to a version of it.

        None for a turn that is not among them; 0 for ROOT.
        """
        with self._lock, self._file.transaction():
            path = {self._origin(turn): n for n, turn in enumerate(turns, start=1)} | {ROOT: 0}
            return [path.get(self._origin_of(number)) for number in numbers]

    def origin(self, turn: Turn) -> int:
        """The number of the turn that one is a version or a copy of, through all edits."""
        with self._lock, self._file.transaction():
            return self._origin(turn)

    def turn(self, number: int) -> Turn:
        """A turn of any branch. Raises StoryError if there is none with that number."""
        with self._lock, self._file.transaction():
            return self._file.turn(number)

    def continuations(self, turn: Turn | int) -> list[Turn]:
        """The turns that follow a turn of any branch, or ROOT, oldest first."""
        with self._lock, self._file.transaction():
            return self._file.children(self._existing(turn))

    def alternatives(self, turn: Turn | int) -> list[Turn]:
        """The turns that follow the same turn as `turn`, itself among them, oldest first."""
        with self._lock, self._file.transaction():
            return self._file.children(self._file.turn(number_of(turn)).parent)

    def branches(self) -> list[StoryBranch]:
        """All branches, the one with the newest end first."""
        with self._lock, self._file.transaction():
            return _branches(self._file, self._refresh().turns)

    def kept(self) -> list[Turn]:
        """The turns of the story that the writer has marked, oldest first."""
        with self._lock:
            turns = self._current().turns
            with self._file.transaction():
                marked = self._file.marked()
            return [turn for turn in turns if turn.id in marked]

    def kept_elsewhere(self) -> list[Turn]:
        """The marked turns of other branches, oldest first, but for those copied into this one."""
        with self._lock:
            turns = self._current().turns
            here = {turn.id for turn in turns} | {turn.data.get("copied_from") for turn in turns}
            with self._file.transaction():
                return [self._file.turn(i) for i in sorted(self._file.marked() - here)]

    @property
    def undoable(self) -> str:
        """The operation that `undo` would undo; empty if there is none."""
        with self._lock, self._file.transaction():
            state = self._file.state()
            return state.operation if self._file.state_before(state) else ""

    @property
    def redoable(self) -> str:
        """The operation that `redo` would redo; empty if there is none."""
        with self._lock, self._file.transaction():
            state = self._file.state_after(self._file.state())
            return state.operation if state else ""

    # for operations ------------------------------------------------------------------------------

    def _current(self) -> Snapshot:
        """The up-to-date snapshot, with changes by other processes."""
        with self._lock:
            if self._snapshot.version != self._file.version:
                with self._file.transaction():
                    self._refresh()
            return self._snapshot

    def _refresh(self) -> Snapshot:
        """Reads what has changed; of the path, only the turns that were not in it."""
        old, state = self._snapshot, self._file.state()
        turns, settings = old.turns, old.settings
        if state.head != old.head:
            shared, new = 0, []
            for turn in self._file.back_from(state.head):
                index = index_of(turn.id, turns)
                if index is not None:
                    shared = index + 1
                    break
                new.append(turn)
            turns = [*turns[:shared], *reversed(new)]
        if state.settings != old.state.settings:
            settings = self._file.settings(state.settings)
        self._snapshot = Snapshot(self._file.version, state, turns, settings)
        return self._snapshot

    def _origin(self, turn: Turn) -> int:
        versions = []
        while turn.id not in self._origins:
            versions.append(turn.id)
            data = turn.data
            before = data.get("copied_from", data.get("edited_from"))
            if type(before) is not int or not ROOT < before < turn.id:
                self._origins[turn.id] = turn.id
            else:
                turn = self._file.turn(before)
        origin = self._origins[turn.id]
        self._origins |= dict.fromkeys(versions, origin)
        return origin

    def _origin_of(self, number: int) -> int:
        """The same of a number; UNKNOWN of a turn that is not there."""
        try:
            return number and self._origin(self._file.turn(number))
        except StoryFileError:
            raise
        except StoryError:
            return UNKNOWN

    def _existing(self, turn: Turn | int) -> int:
        """The number of a turn of any branch, or ROOT. Raises StoryError."""
        number = number_of(turn)
        return number and self._file.turn(number).id


def _branches(file: StoryFile, path: Sequence[Turn]) -> list[StoryBranch]:
    """All branches. Only the texts of their last turns, and of where they leave `path`, are read.

    Args:
        path: the turns of the story.
    """
    current = {turn.id for turn in path}
    lengths = {ROOT: 0}
    ends: dict[int, None] = {}
    leaves: dict[int, int] = {}  # by turn, the first turn of its branch that is not in `path`
    for number, parent in file.parents():
        lengths[number] = lengths[parent] + 1
        ends.pop(parent, None)
        ends[number] = None
        if number not in current:
            leaves[number] = leaves.get(parent, number)
    return [_branch(file, end, lengths[end], leaves.get(end), path) for end in reversed(ends)]


def _branch(
    file: StoryFile, end: int, turns: int, leaves: int | None, path: Sequence[Turn]
) -> StoryBranch:
    last = file.turn(end)
    if leaves is None:
        return StoryBranch(end, last.created, turns, turns, _excerpt(last.text), True)
    first = file.turn(leaves)
    index = index_of(first.parent, path)
    shared = 0 if index is None else index + 1
    instead = path[shared].text if shared < len(path) else ""
    return StoryBranch(end, last.created, turns, shared, _excerpt(first.text, instead), False)


def _excerpt(text: str, instead: str = "") -> str:
    """The start of `text`, from the first word that differs from `instead`."""
    pairs = enumerate(zip(text, instead, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(text), len(instead)))
    start = text.rfind(" ", 0, same + 1) + 1
    words = text[start : start + 4 * _EXCERPT].split() or text[: 4 * _EXCERPT].split()
    return " ".join(words)[:_EXCERPT]
