"""What a server has at hand: an engine, soft prompts, lorebooks and stories."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from softlore.disk import user_folder
from softlore.lore import Lorebook
from softlore.prompts import PromptLibrary
from softlore.serve.engines import Engine
from softlore.serve.settings import ServeSettings
from softlore.story import Stories

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
    """

    engine: Engine
    prompts: PromptLibrary
    stories: Stories
    books: Path
    settings: ServeSettings = field(default_factory=ServeSettings)
    book: Lorebook | None = None
    chosen: str = ""
