"""What a server has at hand: an engine, soft prompts, lorebooks and stories."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from softlore.disk import user_folder
from softlore.lore import Lorebook
from softlore.prompts import PromptLibrary
from softlore.serve.engines import Engine
from softlore.serve.prompt_store import PromptStore
from softlore.settings import ServeSettings
from softlore.story import StoryLibrary

FOLDER_VARIABLE = "SOFTLORE_LOREBOOKS"


def default_books() -> Path:
    """Where the studio keeps lorebooks when no folder is named; it need not exist yet.

    `$SOFTLORE_LOREBOOKS` if set, else `lorebooks` in the user's data folder.
    """
    return user_folder("lorebooks", FOLDER_VARIABLE)


@dataclass
class ServerState:
    """What the APIs and the studio share.

    Attributes:
        books: the folder of the studio's lorebooks.
        book: the lorebook that every client's text is read with, if any.
        chosen: the soft prompt that stands before every KoboldAI text, chosen by a client; empty
            for none.
        at_close: what else is to be ended, or saved, when the server stops; called once, within
            its event loop, beside the closing of the engine.
        closing: whether that has begun.
    """

    engine: Engine
    prompts: PromptLibrary
    stories: StoryLibrary
    books: Path
    settings: ServeSettings = field(default_factory=ServeSettings)
    book: Lorebook | None = None
    chosen: str = ""
    at_close: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    closing: bool = False

    @cached_property
    def prompt_store(self) -> PromptStore:
        """The soft prompts as the model can use them."""
        return PromptStore(self.prompts, self.engine.model)

    async def close(self) -> None:
        """Lets what is under way come to its end, for `close_seconds`. A second call is nothing."""
        if self.closing:
            return
        self.closing = True
        ends = [one() for one in self.at_close]
        await asyncio.gather(self.engine.close(self.settings.close_seconds), *ends)
