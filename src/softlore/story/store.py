"""StoryFile: reads, checks and writes the rows of a story's SQLite file."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlore.errors import StoryError, StoryFileError
from softlore.story.database import connect, damaged, in_use, translate_errors
from softlore.story.settings import StorySettings
from softlore.story.turns import ROOT, Turn, now, turn_from_row

_COLUMNS = "turns.id, turns.parent, turns.made_by, turns.text, turns.created, turns.data"
# A turn and those before it, up to a number. Ends in any file, as each id is below the last.
_PATH = f"""WITH RECURSIVE path (id) AS (
  SELECT ? UNION ALL
  SELECT turns.parent FROM path JOIN turns ON turns.id = path.id WHERE turns.parent < turns.id
  LIMIT ?
) SELECT {_COLUMNS} FROM path CROSS JOIN turns ON turns.id = path.id"""
_FIRST_TURNS = 8  # read at first; each further read takes eight times as many


@dataclass(frozen=True)
class StoryState:
    """An entry of the undo journal: what the story was after an operation.

    Attributes:
        head: the number of the last turn, or ROOT.
        settings: the number of a row of settings.
    """

    id: int
    operation: str
    head: int
    settings: int


class StoryFile:
    """The rows of one story. Its methods are called within `transaction`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = connect(path)

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def transaction(self, writing: bool = False) -> Iterator[None]:
        """A transaction: the block sees one state of the file; it is committed, or rolled back."""
        with translate_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    @property
    def version(self) -> int:
        """A number that changes when another connection has committed."""
        with translate_errors(self.path):
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    # turns ---------------------------------------------------------------------------------------

    def turn(self, number: int) -> Turn:
        """Raises StoryError if there is no turn with that number."""
        row = self._row(f"SELECT {_COLUMNS} FROM turns WHERE id = ?", number)
        if row is None:
            raise StoryError(
                f"the story {str(self.path)!r} has no turn {number}; expected one of its "
                "turns; list its turns and branches"
            )
        return self._make_turn(row)

    def back_from(self, number: int) -> Iterator[Turn]:
        """The turn, its parent, and so on to a first one; read lazily."""
        limit = _FIRST_TURNS
        while number != ROOT:
            start = number
            with contextlib.closing(self._db.execute(_PATH, (number, limit))) as rows:
                for turn in map(self._make_turn, rows):
                    if turn.id != number:
                        break
                    number = turn.parent
                    yield turn
            if number == start:
                raise self._damaged(f"turn {number}, which others follow, is missing")
            limit *= _FIRST_TURNS

    def children(self, parent: int) -> list[Turn]:
        """The turns that follow one, or ROOT, oldest first."""
        query = f"SELECT {_COLUMNS} FROM turns WHERE parent IS ? ORDER BY id"
        return [self._make_turn(row) for row in self._db.execute(query, (parent or None,))]

    def parents(self) -> Iterator[tuple[int, int]]:
        """Every turn's number and its parent's, oldest first."""
        known = {ROOT}
        for number, parent in self._db.execute("SELECT id, parent FROM turns ORDER BY id"):
            parent = ROOT if parent is None else parent
            if parent not in known:
                raise self._damaged(f"turn {number} follows {parent!r:.40}, which is not before it")
            known.add(number)
            yield number, parent

    def add_turn(self, parent: int, by: str, text: str, data: str) -> int:
        """Adds a turn and returns its number."""
        added = self._db.execute(
            "INSERT INTO turns (parent, made_by, text, created, data) VALUES (?, ?, ?, ?, ?)",
            (parent or None, by, text, now(), data),
        )
        return int(added.lastrowid or 0)

    def marked(self) -> set[int]:
        """The numbers of the turns that are marked."""
        return {number for (number,) in self._db.execute("SELECT turn FROM marks")}

    def set_mark(self, number: int, kept: bool) -> None:
        query = (
            "INSERT OR IGNORE INTO marks VALUES (?)" if kept else "DELETE FROM marks WHERE turn=?"
        )
        self._db.execute(query, (number,))

    # the undo journal ----------------------------------------------------------------------------

    def state(self) -> StoryState:
        """The state that the story is in."""
        state = self._state("id = (SELECT state FROM now WHERE id = 1)")
        if state is None:
            raise self._damaged("its current state is missing")
        return state

    def state_before(self, state: StoryState) -> StoryState | None:
        """The state that undo goes to."""
        return self._state(f"id < {state.id:d} ORDER BY id DESC LIMIT 1")

    def state_after(self, state: StoryState) -> StoryState | None:
        """The state that redo goes to."""
        return self._state(f"id > {state.id:d} ORDER BY id LIMIT 1")

    def set_state(self, state: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO now VALUES (1, ?)", (state,))

    def add_state(self, after: int, operation: str, head: int, settings: int) -> None:
        """Adds a state after the state `after`, and deletes the later ones, which redo goes to."""
        self._db.execute("DELETE FROM states WHERE id > ?", (after,))
        added = self._db.execute(
            "INSERT INTO states (operation, head, settings, created) VALUES (?, ?, ?, ?)",
            (operation, head or None, settings, now()),
        )
        self.set_state(int(added.lastrowid or 0))

    def settings(self, number: int) -> StorySettings:
        row = self._row("SELECT content FROM settings WHERE id = ?", number)
        try:
            data = json.loads(row[0]) if row and type(row[0]) is str else None
            if not isinstance(data, dict):
                raise ValueError("not a JSON object")
            return StorySettings.from_dict(data)
        except (ValueError, RecursionError) as error:  # ConfigError is a ValueError
            raise self._damaged(f"its settings cannot be read: {error!s:.200}") from None

    def add_settings(self, settings: StorySettings) -> int:
        added = self._db.execute("INSERT INTO settings (content) VALUES (?)", (settings.to_json(),))
        return int(added.lastrowid or 0)

    # ---------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Leaves WAL mode: the story is one file then. Raises StorageError if it is in use."""
        with translate_errors(self.path):
            self._db.execute("PRAGMA busy_timeout = 500")
            mode = self._db.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
        if mode == "wal":
            raise in_use(self.path)

    def _state(self, where: str) -> StoryState | None:
        row = self._row(f"SELECT id, operation, head, settings FROM states WHERE {where}")
        if row is None:
            return None
        number, operation, head, settings = row
        head = ROOT if head is None else head
        if type(operation) is not str or type(head) is not int or type(settings) is not int:
            raise self._damaged(f"state {number} of its journal cannot be read")
        return StoryState(number, operation, head, settings)

    def _row(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
        return row

    def _make_turn(self, row: tuple[Any, ...]) -> Turn:
        try:
            return turn_from_row(row)
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, how: str) -> StoryFileError:
        return damaged(self.path, how)
