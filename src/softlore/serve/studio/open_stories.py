"""OpenStories: the stories that are open in the studio, and their JSON for the page."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from softlore.errors import ModelError, SoftloreError
from softlore.lore.names import normalize_name
from softlore.model.loading import name_of
from softlore.serve.engines import OutputQueue
from softlore.serve.state import ServerState
from softlore.serve.studio.book_folder import BookFolder, Stamp
from softlore.story import Story, StoryBranch, StoryLibrary, StorySettings, Turn
from softlore.story.chapters import Chapter, Chapters
from softlore.story.composing import ContextPlan
from softlore.story.condensing import ChapterWriter
from softlore.story.forms import cast_of, next_speaker
from softlore.story.session import StorySession

MAX_OPEN = 16  # stories that stay open while nobody uses them
PATIENCE = 5.0  # seconds that renaming or deleting waits for other users of the story
ENDING = 80  # characters of a story's end in the list
MAX_ROWS = 10_000  # cached rows of the list
Stamps = tuple[tuple[int, int], ...]
PATH_SETTINGS = ("lorebook", "prompts", "model")  # possibly of another machine
SETTINGS = [
    name for name in StorySettings.model_fields if name not in (*PATH_SETTINGS, "title", "extra")
]


class OpenStory:
    """A story in use.

    Attributes:
        lock: held while its session plans a turn.
        outputs: of the turn that is being written; for the event loop only.
        writing: whether one is being written, or about to be.
        users: how many requests use the story now.
    """

    def __init__(
        self, story: Story, state: ServerState, books: BookFolder, chapter_writer: ChapterWriter
    ) -> None:
        self.story = story
        self.chapters = Chapters(story, state.engine.model)
        self.lock = threading.RLock()
        self.outputs: OutputQueue | None = None
        self.writing = False
        self.users = 0
        self.file_id = _file_id(story)
        self._state, self._books, self._chapter_writer = state, books, chapter_writer
        self._session: StorySession | None = None
        self._session_book: tuple[str, Stamp | None] = ("", None)

    @property
    def book(self) -> str:
        """The name of the studio's lorebook that the story uses; empty for none.

        The settings of an imported story may name any path. It is only compared with those of
        the studio's books, never read.
        """
        path = self.story.settings.lorebook
        return self._books.name_of(path) if path else ""

    def session(self) -> StorySession:
        """The session, recreated when the lorebook has changed. Call it with `lock` held."""
        name = self.book
        book = (name, self._books.stamp(name) if name else None)
        if self._session is None or book != self._session_book:
            lorebook = self._books.get(name) if name else None
            model = self._state.engine.model
            prompts = self._state.prompt_store.usable()
            self._session = StorySession(
                self.story, model, lorebook, prompts, self._state.settings, self._chapter_writer
            )
            self._session.chapters = self.chapters
            self._session_book = book
        self._state.prompt_store.refresh()
        return self._session

    def remember(self, plan: ContextPlan) -> None:
        """Has what is not in the context of a turn that was written condensed."""
        with self.lock:
            if self._session is not None:
                self._session.remember(plan)

    def to_dict(self) -> dict[str, Any]:
        """The story as the page receives it: turns, settings, branches, what can be undone."""
        story = self.story
        turns, branches, settings = story.turns, story.branches(), story.settings
        marked = {turn.id for turn in story.kept()}
        tries = _tries(story, turns, branches)
        return {
            "name": story.name,
            "turns": [_turn_dict(turn, turn.id in marked, tries[turn.id]) for turn in turns],
            "settings": {name: getattr(settings, name) for name in SETTINGS} | {"book": self.book},
            "changes": [
                change.model_dump() | {"turn": place} for place, change in story.changes(turns)
            ],
            "chapters": [_chapter_dict(one) for one in self.chapters.on_path(turns)],
            "chat": self._chat(settings, turns),
            "undoable": story.undoable,
            "redoable": story.redoable,
            "branches": [
                {"turn": b.id, "turns": b.turns, "ending": b.words, "here": b.current}
                for b in branches
            ],
            "soft": sorted(self._state.prompt_store.compatible()),
            "notes": self._notes(),
        }

    def _chat(self, settings: StorySettings, turns: Sequence[Turn]) -> dict[str, Any] | None:
        """The writer's name, the speakers and who is next; None where the story is no chat."""
        if settings.form != "chat":
            return None
        with self.lock:
            names = self.session().names
        cast = list(cast_of(settings, names))
        return {
            "user": names.user,
            "cast": cast,
            "next": next_speaker(cast, [turn.text for turn in turns]),
        }

    def _notes(self) -> list[str]:
        """The settings of the story that the studio ignores."""
        settings, notes = self.story.settings, []
        model = self._state.engine.model.name
        if settings.model and _name_of(settings.model) != model:
            notes.append(f"It was written with the model {settings.model!r:.80}; the server "
                         f"continues it with {model!r:.80}.")  # fmt: skip
        if settings.lorebook and not self.book:
            notes.append("It names a lorebook that is not one of the studio's, which is ignored; "
                         "import that lorebook and choose it.")  # fmt: skip
        if settings.prompts:
            notes.append("It names a folder of soft prompts; the server's own are used.")
        return notes


def _chapter_dict(chapter: Chapter) -> dict[str, Any]:
    entry, prompt = chapter.entry, chapter.prompt
    return {
        "name": entry.name,
        "text": entry.text,
        "used": entry.enabled,
        "pinned": chapter.pinned,
        "tokens": None if prompt is None else len(prompt),
        "trained": bool(chapter.place.get("trained")),
    }


def _name_of(model: str) -> str:
    """The name of a model that a story names, possibly by a file which is gone."""
    try:
        return name_of(model)
    except ModelError:
        return model


def _is_writing(state: ServerState) -> bool:
    load = state.engine.load()
    return bool(load.running or load.waiting)


class OpenStories:
    """Opens stories on demand, and keeps those in use and MAX_OPEN others open.

    `use`, `acquire` and `alone` raise what `StoryLibrary.open` raises.

    Attributes:
        chapter_writer: condenses what has left the contexts, while the engine is idle.
        tasks: the tasks of the event loop that write turns.
    """

    def __init__(self, state: ServerState, books: BookFolder) -> None:
        self._state, self._books = state, books
        self.chapter_writer = ChapterWriter(lambda: _is_writing(state))
        self._open: dict[str, OpenStory] = {}  # the least recently used first
        self._changed = threading.Condition()
        self.tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def use(self, name: str) -> Iterator[OpenStory]:
        """A story that stays open during the block."""
        story = self.acquire(name)
        try:
            yield story
        finally:
            self.release(story)

    def acquire(self, name: str) -> OpenStory:
        """A story that stays open until it is released."""
        with self._changed:
            story = self._find(name)
            story.users += 1
            return story

    def retain(self, story: OpenStory) -> None:
        """Counts one more user of a story in use, to be released as well."""
        with self._changed:
            story.users += 1

    def release(self, story: OpenStory) -> None:
        with self._changed:
            story.users -= 1
            idle = [name for name, other in self._open.items() if not other.users]
            for name in idle[: max(0, len(self._open) - MAX_OPEN)]:
                self._open.pop(name).story.close()
            self._changed.notify_all()

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Closes a story for the block. Raises HTTPException 409 while it is being written."""
        key = normalize_name(name)
        with self._changed:
            story = self._open.get(key)
            if story is not None:
                unused = not story.writing and self._changed.wait_for(
                    lambda: not story.users, PATIENCE
                )
                if not unused:
                    raise HTTPException(
                        409,
                        f"the story {name!r} is being written; expected nobody to use it; stop "
                        "the writing first",
                    )
                self._open.pop(key, None)
                story.story.close()
            yield

    async def close(self) -> None:
        """Waits until the turns that are being written are saved, then closes the stories."""
        if self.tasks:
            await asyncio.wait(self.tasks)
        await asyncio.to_thread(self.chapter_writer.close)
        with self._changed:
            for story in self._open.values():
                if not story.users:
                    story.story.close()
            self._open = {name: story for name, story in self._open.items() if story.users}

    def _find(self, name: str) -> OpenStory:
        key = normalize_name(name)
        story = self._open.pop(key, None)
        if story is not None and story.file_id != _file_id(story.story):
            if not story.users:
                story.story.close()  # its file was moved or replaced by another process
            story = None
        if story is None:
            opened = self._state.stories.open(name)
            story = OpenStory(opened, self._state, self._books, self.chapter_writer)
        self._open[key] = story
        return story


class StoryList:
    """A row for each story of a folder. Files are read again only when they have changed."""

    def __init__(self, stories: StoryLibrary) -> None:
        self._stories = stories
        self._read = lru_cache(MAX_ROWS)(self._read_row)

    def rows(self) -> list[dict[str, Any]]:
        """The newest first. Raises StorageError for the folder."""
        rows = []
        for name in self._stories.names():
            stamp = _stamp(self._stories.folder / f"{name}.story")
            changed = datetime.fromtimestamp(max((t for t, _ in stamp), default=0) / 1e9, UTC)
            row = self._read(name, stamp)
            rows.append(row | {"changed": changed.isoformat(timespec="milliseconds")})
        return sorted(rows, key=lambda row: str(row["changed"]), reverse=True)

    def _read_row(self, name: str, stamp: Stamps) -> dict[str, Any]:
        row: dict[str, Any] = {"name": name, "turns": 0, "words": 0, "ending": ""}
        try:
            with self._stories.open(name) as story:
                text = story.text
                ending = " ".join(text[-4 * ENDING :].split())[-ENDING:]
                return row | {"turns": len(story), "words": len(text.split()), "ending": ending}
        except SoftloreError as error:
            return row | {"error": str(error)}


def _turn_dict(turn: Turn, marked: bool, tries: list[int]) -> dict[str, Any]:
    data = {"id": turn.id, "by": turn.by, "text": turn.text, "marked": marked, "tries": tries}
    finish = turn.data.get("finish") if turn.by == "model" else None
    return data | ({"finish": finish} if isinstance(finish, str) else {})


def _tries(story: Story, turns: list[Turn], branches: list[StoryBranch]) -> dict[int, list[int]]:
    """By turn, the alternatives to it and itself. Looked up only where a branch leaves."""
    forks = {branch.shared for branch in branches if branch.turns > branch.shared}
    return {
        turn.id: [other.id for other in story.alternatives(turn)] if i in forks else [turn.id]
        for i, turn in enumerate(turns)
    }


def _file_id(story: Story) -> tuple[int, int] | None:
    """Device and inode of a story's file; None if it has been removed."""
    try:
        status = os.stat(story.path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _stamp(path: Path) -> Stamps:
    """Modification times and sizes of a story's file and of SQLite's write-ahead log."""
    stamps = []
    for file in (path, Path(f"{path}-wal")):
        try:
            status = os.stat(file)
        except OSError:
            continue
        if status.st_size:
            stamps.append((status.st_mtime_ns, status.st_size))
    return tuple(stamps)
