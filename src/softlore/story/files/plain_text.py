"""A story as plain text: its text and nothing else. Any text is read as one turn."""

from __future__ import annotations

from softlore.story.turns import StoryDraft


def recognizes(text: str) -> bool:
    """Any text is one."""
    return True


def read(text: str) -> StoryDraft:
    """The whole text as one turn of the writer's; Windows' line ends become `\\n`."""
    if text.count("\r\n") == text.count("\n"):
        text = text.replace("\r\n", "\n")
    return StoryDraft(turns=(("writer", text),) if text else ())


def write(draft: StoryDraft) -> str:
    """The text; by whom it is is lost."""
    return draft.text
