"""The state of a server: engine, soft prompts, lorebooks, stories and settings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from uuid import uuid4

from softlore.disk import user_folder
from softlore.lore import Lorebook
from softlore.prompts import PromptLibrary
from softlore.serve.engines import Engine
from softlore.serve.prompt_store import PromptStore
from softlore.settings import ServeSettings
from softlore.story import StoryLibrary

FOLDER_VARIABLE = "SOFTLORE_LOREBOOKS"


def default_books() -> Path:
    """The default folder of the studio's lorebooks, which need not exist yet.

    `$SOFTLORE_LOREBOOKS` if set, else `lorebooks` in the user's data folder.
    """
    return user_folder("lorebooks", FOLDER_VARIABLE)


@dataclass
class ServerState:
    """What the APIs and the studio share.

    Attributes:
        books: the folder of the studio's lorebooks.
        book: the lorebook for the texts of all clients, if any.
        book_file: the file that it was read from; the studio opens it, too.
        chosen: the soft prompt that a KoboldAI client chose to put before every text; "" for
            none.
        at_close: called once, in the event loop, while the engine is closed.
        run_training: runs a training of the studio, as its `run_job` does; None: that one.
        change_model: ends the server, which then starts anew with the model of this name; None
            where it runs one model only.
        notice: what the studio tells its users, such as why a model could not be loaded.
        run: another one for each state, so that a page sees that the server has started anew.
        closing: whether `close` has been called.
    """

    engine: Engine
    prompts: PromptLibrary
    stories: StoryLibrary
    books: Path
    settings: ServeSettings = field(default_factory=ServeSettings)
    book: Lorebook | None = None
    book_file: Path | None = None
    chosen: str = ""
    at_close: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    run_training: Callable[..., None] | None = None
    change_model: Callable[[str], None] | None = None
    notice: str = ""
    run: str = field(default_factory=lambda: uuid4().hex)
    closing: bool = False

    @cached_property
    def prompt_store(self) -> PromptStore:
        """The soft prompts as the model can use them."""
        return PromptStore(self.prompts, self.engine.model)

    async def close(self) -> None:
        """Gives running texts `close_seconds` to end. A second call does nothing."""
        if self.closing:
            return
        self.closing = True
        closing = [close() for close in self.at_close]
        await asyncio.gather(self.engine.close(self.settings.close_seconds), *closing)
