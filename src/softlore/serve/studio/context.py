"""StudioContext: what the routes share: open stories, lorebooks, trainings, soft prompts."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from softlore.model import LanguageModel
from softlore.serve.state import ServerState
from softlore.serve.studio.book_folder import BookFolder
from softlore.serve.studio.open_stories import OpenStories
from softlore.serve.studio.training_queue import TrainingQueue

# OpenAPI's description of a stream of server-sent events.
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Server-sent events"}
}


class StudioContext:
    """The studio of one server.

    Attributes:
        importing: held while a free name is chosen for an imported soft prompt.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.importing = threading.Lock()
        self.books = BookFolder(state.books)
        self.prompt_store = state.prompt_store
        self.stories = OpenStories(state, self.books)
        self.trainings = TrainingQueue(state.engine.model, state.prompts)

    @property
    def model(self) -> LanguageModel:
        """The server's model, used for every story."""
        return self.state.engine.model

    async def close(self) -> None:
        """Saves the turns that are being written, and pauses the training."""
        await asyncio.gather(self.trainings.close(), self.stories.close())
