"""Stories that are open in the studio: each with a session, a few at a time."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

from softlore.lore.names import composed
from softlore.serve.engines import AsyncOutputStream
from softlore.serve.prompt_store import PromptStore, UsablePrompts
from softlore.serve.state import ServerState
from softlore.serve.studio.book_folder import BookFolder, Stamp
from softlore.serve.studio.fitting import Fitting
from softlore.story import Story
from softlore.story.session import StorySession

MOST_OPEN = 16
PATIENCE = 5.0  # seconds that a rename waits for what others do with the story


class OpenStory:
    """A story in use. `lock` is held while its session plans or measures.

    Attributes:
        running: the turn that is being written; only for the event loop.
        users: how many use it now.
    """

    def __init__(
        self, story: Story, state: ServerState, books: BookFolder, fitting: Fitting
    ) -> None:
        self.story = story
        self.lock = threading.RLock()
        self.running: AsyncOutputStream | None = None
        self.writing = False
        self.users = 0
        self.identity = _identity(story)
        self._state, self._books, self._fitting = state, books, fitting
        self._shelf = PromptStore(state.prompts, state.engine.model)
        self._session: StorySession | None = None
        self._read_with: tuple[str, Stamp | None] = ("", None)

    @property
    def book(self) -> str:
        """The studio's lorebook that the story reads with; empty for none, or one from elsewhere.

        A story may come from a stranger: what its settings name is never read, only compared.
        """
        path = self.story.settings.lorebook
        return self._books.name_of(path) if path else ""

    def session(self) -> StorySession:
        """What plans the story's turns, with its lorebook as it is now; call with `lock` held."""
        name = self.book
        read_with = (name, self._books.stamp(name) if name else None)
        if self._session is None or read_with != self._read_with:
            book = self._books.get(name) if name else None
            model = self._state.engine.model
            self._session = StorySession(self.story, model, book, UsablePrompts(self._shelf))
            self._read_with = read_with
        self._shelf.look()
        return self._session

    def soft(self) -> list[str]:
        """Names of the soft prompts that can stand in the text."""
        return sorted(self._fitting.headers())

    def notes(self) -> list[str]:
        """What the story's settings ask for and the studio does otherwise."""
        settings, told = self.story.settings, []
        model = self._state.engine.model.name
        if settings.model and settings.model != model:
            told.append(f"It was written with the model {settings.model!r:.80}, and is gone on "
                        f"with by {model!r:.80}.")  # fmt: skip
        if settings.lorebook and not self.book:
            told.append("It names a lorebook that is not one of the studio's, so it reads with "
                        "none; import that lorebook and choose it.")  # fmt: skip
        if settings.prompts:
            told.append("It names a folder of soft prompts; the server's own are used.")
        return told


class OpenStories:
    """Opens stories when they are asked for, and keeps those in use and a few more."""

    def __init__(self, state: ServerState, books: BookFolder, fitting: Fitting) -> None:
        self._state, self._books, self._fitting = state, books, fitting
        self._open: dict[str, OpenStory] = {}  # the one used last stands last
        self._changed = threading.Condition()
        self.tasks: set[asyncio.Task[None]] = set()
        """What writes turns, in the event loop."""

    @contextmanager
    def use(self, name: str) -> Iterator[OpenStory]:
        """A story, open for the time of the block. Raises what `Stories.open` raises."""
        with self._changed:
            one = self._opened(name)
            one.users += 1
        try:
            yield one
        finally:
            self.leave(one)

    def take(self, name: str) -> OpenStory:
        """A story that stays open until `leave`. Raises what `Stories.open` raises."""
        with self._changed:
            one = self._opened(name)
            one.users += 1
            return one

    def hold(self, one: OpenStory) -> None:
        """One more uses a story that is in use."""
        with self._changed:
            one.users += 1

    def leave(self, one: OpenStory) -> None:
        with self._changed:
            one.users -= 1
            self._close_some()
            self._changed.notify_all()

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Nobody has the story open in the block. Raises 409 where somebody goes on with it."""
        key = composed(name)
        with self._changed:
            one = self._open.get(key)
            if one is not None:
                busy = one.writing or not self._changed.wait_for(lambda: not one.users, PATIENCE)
                if busy:
                    raise HTTPException(
                        409,
                        f"the story {name!r} is being written; expected nobody to be at it; stop "
                        "the writing first",
                    )
                self._open.pop(key, None)
                one.story.close()
            yield

    async def close(self) -> None:
        """Waits for the turns that are being written to be kept, then closes the stories."""
        if self.tasks:
            await asyncio.wait(self.tasks)
        with self._changed:
            for one in self._open.values():
                if not one.users:
                    one.story.close()
            self._open = {name: one for name, one in self._open.items() if one.users}

    def _opened(self, name: str) -> OpenStory:
        key = composed(name) if len(name) < 1000 else name
        one = self._open.pop(key, None)
        if one is not None and one.identity != _identity(one.story):
            if not one.users:
                one.story.close()  # its file was moved or replaced by somebody else
            one = None
        if one is None:
            story = self._state.stories.open(name)
            one = OpenStory(story, self._state, self._books, self._fitting)
        self._open[key] = one
        return one

    def _close_some(self) -> None:
        idle = [name for name, one in self._open.items() if not one.users]
        for name in idle[: max(0, len(self._open) - MOST_OPEN)]:
            self._open.pop(name).story.close()


def _identity(story: Story) -> tuple[int, int] | None:
    """Which file it is, however it is named; None where there is none any more."""
    try:
        status = os.stat(story.path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
