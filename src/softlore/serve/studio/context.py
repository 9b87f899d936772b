"""StudioContext: what the routes share: open stories, lorebooks, trainings, soft prompts."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from softlore.errors import StorageError
from softlore.lore import Lorebook
from softlore.model import LanguageModel
from softlore.serve.state import ServerState
from softlore.serve.studio.book_folder import BookFolder
from softlore.serve.studio.open_stories import OpenStories
from softlore.serve.studio.training_queue import TrainingQueue
from softlore.serve.studio.training_run import run_job

# OpenAPI's description of a stream of server-sent events.
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Server-sent events"}
}

_log = logging.getLogger(__name__)


class StudioContext:
    """The studio of one server.

    Attributes:
        importing: held while a free name is chosen for an imported soft prompt.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.importing = threading.Lock()
        self.books = _open_books(state)
        self.prompt_store = state.prompt_store
        self.stories = OpenStories(state, self.books)
        self.trainings = TrainingQueue(
            state.engine.model, state.prompts, state.run_training or run_job
        )

    @property
    def model(self) -> LanguageModel:
        """The server's model, used for every story."""
        return self.state.engine.model

    async def close(self) -> None:
        """Saves the turns that are being written, and pauses the training."""
        await asyncio.gather(self.trainings.close(), self.stories.close())


def _open_books(state: ServerState) -> BookFolder:
    """The studio's lorebooks, with the one that the server was started with."""
    given = (state.book_file, state.book) if state.book_file and state.book else None
    try:
        books = BookFolder(state.books, given)
    except StorageError as error:  # the folder cannot be written: the APIs need it not
        _log.warning("the studio cannot open the lorebook: %s", error)
        return BookFolder(state.books)

    def follow(book: Lorebook) -> None:
        """What is changed in the studio holds for the APIs' clients as well."""
        if book.name == books.opened:
            state.book = book

    books.on_save = follow
    return books
