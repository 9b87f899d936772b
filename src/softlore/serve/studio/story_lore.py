"""Routes of a story's lore: what it suggests, what entries are from a turn on, its chapters."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from softlore.errors import StoryError
from softlore.model import FrozenModel
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.forms import EntryChange, TextField
from softlore.story.suggesting import Suggestions, suggest_entries, surprise_of


def make_router(context: StudioContext) -> APIRouter:
    """/stories/NAME/suggestions, /changes and /chapters."""
    router = APIRouter(prefix="/stories/{name}")
    stories = context.stories

    @router.get("/suggestions")
    def suggestions(name: str, surprise: bool = False) -> dict[str, Any]:
        """Entries for the names that recur and that the story's lorebook does not cover.

        `surprise` ranks them by what the model could not have guessed as well, which takes a few
        seconds.
        """
        with stories.use(name) as story:
            turns = [turn.text for turn in story.story.turns]
            dropped, book = story.story.settings.dropped, story.book
        entries = context.books.get(book).entries if book else []
        model = context.model
        # A file of llama.cpp has no weights here to measure with.
        measure = surprise_of(model) if surprise and isinstance(model, FrozenModel) else None
        return _to_dict(suggest_entries(turns, entries, dropped, measure))

    @router.post("/changes")
    def change(name: str, form: EntryChange) -> dict[str, Any]:
        """Changes what an entry is from the last turn on; with neither text nor prompt it ends."""
        with stories.use(name) as story:
            if form.prompt and form.prompt not in context.prompt_store.compatible():
                raise StoryError(
                    f"there is no soft prompt {form.prompt!r:.160} for this model; expected one of "
                    "the library; choose another"
                )
            story.story.change_entry(form.entry, form.text.strip(), form.prompt)
            return story.to_dict()

    @router.delete("/changes/{entry}")
    def restore(name: str, entry: str) -> dict[str, Any]:
        """Undoes the changes of an entry that are in effect on the current branch."""
        with stories.use(name) as story:
            story.story.restore_entry(entry)
            return story.to_dict()

    @router.put("/chapters/{chapter}")
    def summarize(name: str, chapter: str, text: TextField) -> dict[str, Any]:
        """Changes the summary of a chapter, which is pinned then."""
        with stories.use(name) as story:
            story.chapters.change(chapter, text)
            return story.to_dict()

    @router.delete("/chapters/{chapter}")
    def forget(name: str, chapter: str) -> dict[str, Any]:
        """Lets a chapter not be read any more."""
        with stories.use(name) as story:
            story.chapters.forget(chapter)
            return story.to_dict()

    return router


def _to_dict(suggested: Suggestions) -> dict[str, Any]:
    found = [asdict(one) | {"entry": one.entry.data()} for one in suggested.found]
    return {"suggestions": found, "notes": suggested.notes}
