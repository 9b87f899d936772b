"""What the studio's routes share: stories that are open, lorebooks, trainings, soft prompts."""

from __future__ import annotations

import asyncio
import threading

from softlore.model import LanguageModel
from softlore.serve.prompt_store import PromptStore
from softlore.serve.state import ServerState
from softlore.serve.studio.book_folder import BookFolder
from softlore.serve.studio.fitting import Fitting
from softlore.serve.studio.open_stories import OpenStories
from softlore.serve.studio.trainings import Trainings


class StudioContext:
    """The studio of one server.

    Attributes:
        importing: held while a soft prompt is given a name that is free.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.importing = threading.Lock()
        self.books = BookFolder(state.books)
        self.fitting = Fitting(state.prompts, state.engine.model)
        self.stories = OpenStories(state, self.books, self.fitting)
        self.trainings = Trainings(state.engine.model, state.prompts)

    @property
    def model(self) -> LanguageModel:
        """The server's model, which writes every story."""
        return self.state.engine.model

    def shelf(self) -> PromptStore:
        """The library's prompts as they are now, checked where they are used."""
        shelf = PromptStore(self.state.prompts, self.model)
        shelf.look()
        return shelf

    async def close(self) -> None:
        """Keeps what is under way: the turns that are being written, and the training."""
        await asyncio.gather(self.trainings.close(), self.stories.close())
