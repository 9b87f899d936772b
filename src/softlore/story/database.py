"""Opens and creates the SQLite files of stories; rejects any other file.

Five tables::

    turns       the tree of all turns ever written; its rows are never changed or deleted
    settings    all settings the story has had
    states      the undo journal: head and settings after each operation
    now         the current state: undo and redo move it along the journal
    marks       turns that the writer has marked to learn from

        states   create ── add ── add ── set ── cut        After an undo, `now` is at `set`; `redo`
                                          ↑                goes to `cut`, any other operation
                                         now               replaces it.

The file is in WAL mode with synchronous=FULL: what is committed is on the disk, and two processes
may write in turn. As the file may come from an untrusted source, its schema is compared verbatim
with the one below before anything else is read: no trigger, view or expression in it is run.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from softlore.disk import flush_folder, storage_error, temporary_path
from softlore.errors import StorageError, StoryError, StoryFileError, StoryNotFoundError
from softlore.story.settings import MAX_SETTINGS
from softlore.story.turns import MAX_DATA, MAX_TEXT

SCHEMA_VERSION = 1
APPLICATION_ID = 0x736C7374  # "slst", in the header of the SQLite file
BUSY_SECONDS = 10.0  # that an operation waits for another process
_MAGIC = b"SQLite format 3\0"
_MAX_ROW = 4 * (MAX_TEXT + MAX_DATA + MAX_SETTINGS)  # bytes
_SCHEMA = {
    "turns": """CREATE TABLE turns (
  id INTEGER PRIMARY KEY,
  parent INTEGER REFERENCES turns (id) CHECK (parent < id),
  made_by TEXT NOT NULL CHECK (made_by IN ('writer', 'model')),
  text TEXT NOT NULL,
  created TEXT NOT NULL,
  data TEXT NOT NULL
)""",
    "turns_by_parent": "CREATE INDEX turns_by_parent ON turns (parent)",
    "settings": """CREATE TABLE settings (
  id INTEGER PRIMARY KEY,
  content TEXT NOT NULL
)""",
    "states": """CREATE TABLE states (
  id INTEGER PRIMARY KEY,
  operation TEXT NOT NULL,
  head INTEGER REFERENCES turns (id),
  settings INTEGER NOT NULL REFERENCES settings (id),
  created TEXT NOT NULL
)""",
    "now": """CREATE TABLE now (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  state INTEGER NOT NULL REFERENCES states (id)
)""",
    "marks": """CREATE TABLE marks (
  turn INTEGER PRIMARY KEY REFERENCES turns (id)
)""",
}


def connect(path: Path) -> sqlite3.Connection:
    """Opens a story's file. Raises StoryNotFoundError, StoryFileError, StorageError."""
    _check_magic(path)
    with translate_errors(path):
        db = sqlite3.connect(
            path.absolute().as_uri() + "?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,  # Story holds a lock
        )
        try:
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_ROW)
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
                db.execute(f"PRAGMA {pragma}")
            _check_schema(db, path)
            for pragma in ("foreign_keys = ON", "journal_mode = WAL", "synchronous = FULL"):
                db.execute(f"PRAGMA {pragma}")
        except BaseException:
            db.close()
            raise
    return db


@contextlib.contextmanager
def create_database(path: Path) -> Iterator[Path]:
    """Gives a temporary file with empty tables, which is moved to `path` when the block succeeds.

    Raises:
        StoryError: there is a file at `path` already.
        StorageError: it cannot be written.
    """
    temporary = temporary_path(path)
    try:
        with (
            translate_errors(path),
            contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as db,
        ):
            db.execute("PRAGMA synchronous = OFF")  # flushed with the first transaction
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN")
            for statement in _SCHEMA.values():
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("COMMIT")
        yield temporary
        _move(temporary, path)
    finally:
        for rest in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                os.unlink(f"{temporary}{rest}")


def _move(temporary: Path, path: Path) -> None:
    """Renames a file atomically. Raises StoryError if the name is taken, also meanwhile."""
    try:
        try:
            if os.name == "nt":
                os.rename(temporary, path)  # fails there if the target exists
            else:
                os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if os.path.lexists(path):
                raise FileExistsError from None
            os.rename(temporary, path)
        flush_folder(path.parent)
    except FileExistsError:
        raise StoryError(
            f"there is a file {str(path)!r} already; expected a new name for a new story; choose "
            "another name, or open that one"
        ) from None
    except OSError as error:
        raise storage_error("write", path, error) from error


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except FileNotFoundError:
        raise StoryNotFoundError(
            f"there is no story {str(path)!r}; expected a file; check the name and the folder, or "
            "create it"
        ) from None
    except OSError as error:
        raise storage_error("read", path, error) from error
    except ValueError:  # a name with a zero byte
        raise StoryError(
            f"{str(path)!r:.160} is not a path; expected one; choose another name"
        ) from None
    if start != _MAGIC:
        what = "is empty" if not start else "does not start with SQLite's signature"
        raise StoryFileError(
            f"{str(path)!r} is not a story: it {what}; expected a file written by softlore; import "
            "texts and other programs' saves instead, or restore a copy of a damaged file"
        )


@contextlib.contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Raises SQLite's errors as softlore's."""
    try:
        yield
    except sqlite3.ProgrammingError as error:
        raise StoryError(
            f"the story {str(path)!r} cannot be used ({error}); expected an open one; open it again"
        ) from error
    except sqlite3.Error as error:
        kind = getattr(error, "sqlite_errorname", "").split("_")[1:2]
        if kind in (["BUSY"], ["LOCKED"]):
            raise in_use(path) from error
        if kind and kind[0] in _DISK:
            raise StorageError(
                f"could not use the story {str(path)!r}: {error}; {_DISK[kind[0]]}"
            ) from error
        raise damaged(path, str(error)) from error
    except UnicodeDecodeError as error:  # not quoted, as the message has the text
        raise damaged(path, "it holds text that is not UTF-8") from error


_DISK = {
    "FULL": "free some space, or move it to another disk",
    "READONLY": "move it to a folder that you may write to",
    "PERM": "move it to a folder that you may write to",
    "CANTOPEN": "check that you may read and write there",
    "IOERR": "check the disk, and that you may write there",
    "PROTOCOL": "move it to a disk of this computer",
    "NOMEM": "close other programs",
}


def in_use(path: Path) -> StorageError:
    """The error for a story that another process holds."""
    return StorageError(
        f"the story {str(path)!r} is in use elsewhere; expected it to be released within seconds; "
        "close it there, or try again"
    )


def damaged(path: Path, how: str) -> StoryFileError:
    """The error for a story's file with content that softlore does not write."""
    return StoryFileError(
        f"the story {str(path)!r} is damaged: {how}; expected a story as softlore writes it; "
        "restore a copy of it"
    )


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Rejects all but files of stories, before anything is read from their tables."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    # A list, as a trigger may have the name of a table.
    objects = sorted(db.execute("SELECT type, name, sql FROM sqlite_master LIMIT 100"), key=str)
    if application != APPLICATION_ID:
        what = f"has the {objects[0][0]} {objects[0][1]!r:.60}" if objects else "has no tables"
        raise StoryFileError(
            f"{str(path)!r} is not a story: it is an SQLite file of another program and "
            f"{what}; expected one written by softlore; choose another file"
        )
    if version > SCHEMA_VERSION:
        raise StoryFileError(
            f"the story {str(path)!r} was written by a newer softlore (its schema is "
            f"number {version}, and this one reads up to {SCHEMA_VERSION}); expected an older "
            "one; install the newer softlore"
        )
    expected = sorted(
        ((sql.split()[1].lower(), name, sql) for name, sql in _SCHEMA.items()), key=str
    )
    if version < 1 or objects != expected:
        odd = ", ".join(sorted({f"{kind} {name}" for kind, name, _ in {*objects} ^ {*expected}}))
        raise damaged(path, f"its tables are not those of a story ({odd:.100})")
