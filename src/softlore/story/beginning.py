"""Begins a story with a character card: its first message, scenario and examples of dialogue."""

from __future__ import annotations

from softlore.errors import StoryError
from softlore.lore import Lorebook
from softlore.lore.macros import Named
from softlore.story.settings import StorySettings
from softlore.story.turns import StoryDraft


def draft_of_card(
    book: Lorebook, settings: StorySettings, greeting: int = 1, names: Named | None = None
) -> StoryDraft:
    """The beginning of the story of the card that a lorebook was imported from.

    A greeting of the card is the first turn, by the model, and the card's others are alternatives
    to it. The scenario and the dialogues go into the memory, unless the settings have one.

    Args:
        greeting: 1 is the card's first message, the next ones are its alternates.
        names: what macros stand for, after those of the settings and before the book's own.

    Raises:
        StoryError: a lorebook without a card, or a greeting that it does not have.
    """
    opening = book.opening(settings, names)
    greetings = opening.greetings
    if not greetings and not opening.memory():
        raise StoryError(
            f"lorebook {book.name!r} has no first message or scenario; expected a character card, "
            "or a lorebook that was imported from one; import the card"
        )
    if not 1 <= greeting <= max(1, len(greetings)):
        raise StoryError(
            f"greeting {greeting} is not one of the card's {len(greetings)}; expected a number "
            f"from 1 to {max(1, len(greetings))}; choose another"
        )
    settings = settings.changed(memory=settings.memory or opening.memory())
    said = f"{book.names(settings, names).char}: " if settings.form == "chat" else ""
    first = greetings[greeting - 1 : greeting]
    return StoryDraft(
        settings,
        tuple(("model", f"{said}{text}\n") for text in first),
        alternatives=tuple(f"{said}{text}\n" for text in greetings if text not in first),
    )
