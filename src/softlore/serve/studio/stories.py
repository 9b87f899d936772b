"""Routes of stories: creating, importing, reading, editing, undoing, branching, exporting."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from softlore.demo import lorebook_path, openings
from softlore.errors import LoreError, SoftloreError, StoryError
from softlore.lore import Lorebook
from softlore.serve.studio.book_folder import koboldai_lore
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.files import RAW_BODY, attachment, base_name, free_name, name_for
from softlore.serve.studio.forms import NewStory, TextField, TurnField, check_sampling
from softlore.serve.studio.open_stories import PATH_SETTINGS, SETTINGS, StoryList
from softlore.story import Story, StoryDraft, StorySettings
from softlore.story.beginning import draft_of_card
from softlore.story.files import FORMATS as STORY_FORMATS
from softlore.story.files import read_story

UNNAMED = "Story"
CALLED = {"prose": "", "chat": " chat", "instruct": " messages"}  # after a card's name
_TAG = re.compile(r"\[\[soft:[^\[\]]*\]\]")
# By the name in the API: the format of `softlore.story.files`, and the media type.
FORMATS = {
    "md": ("markdown", "text/markdown; charset=utf-8"),
    "txt": ("text", "text/plain; charset=utf-8"),
    "json": ("koboldai", "application/json"),
}


def make_router(context: StudioContext) -> APIRouter:
    """Everything under /stories but the writing."""
    router = APIRouter(prefix="/stories")
    _add_library(router, context)
    _add_operations(router, context)
    return router


def _add_library(router: APIRouter, context: StudioContext) -> None:
    library, listed = context.state.stories, StoryList(context.state.stories)

    @router.get("")
    def names() -> list[dict[str, Any]]:
        """All stories, the newest first."""
        return listed.rows()

    @router.post("")
    def create(form: NewStory) -> dict[str, Any]:
        """Creates a story."""
        words = form.book if form.greeting else form.opening
        called = _first_words(words) + (CALLED[form.form] if form.greeting else "")
        name = form.name or free_name(called, _taken(context))
        _check_free(context, name)
        book_path = _book_path(context, form.book)
        settings = StorySettings(lorebook=book_path, form=form.form, user=form.user)
        draft = StoryDraft(settings, (("writer", form.opening),) if form.opening else ())
        if form.greeting:
            book = context.books.get(form.book)
            draft = draft_of_card(book, settings, form.greeting, context.state.settings)
        library.create(name, draft).close()
        return _to_dict(context, name)

    @router.post("/example")
    def example() -> dict[str, Any]:
        """Creates a story that begins with the lorebook of `softlore demo`."""
        return _to_dict(context, _add_example(context))

    @router.post("/import", openapi_extra=RAW_BODY)
    async def import_(request: Request, filename: str = "", name: str = "") -> dict[str, Any]:
        """Imports a KoboldAI save, Markdown or plain text; lore in it becomes a lorebook."""
        content = await request.body()
        return await run_in_threadpool(_import, context, content, filename, name)

    @router.get("/{name}")
    def read(name: str) -> dict[str, Any]:
        """A story: its turns, settings and branches."""
        return _to_dict(context, name)

    @router.delete("/{name}")
    def delete(name: str) -> dict[str, Any]:
        """Deletes a story: its file is renamed, not destroyed."""
        with context.stories.alone(name):
            library.delete(name)
        return {}

    @router.patch("/{name}")
    def rename(name: str, new: Annotated[str, Body(embed=True, alias="name")]) -> dict[str, Any]:
        """Renames a story."""
        if new.casefold() != name.casefold():
            _check_free(context, new)
        with context.stories.alone(name):
            library.rename(name, new)
        return _to_dict(context, new)

    @router.get("/{name}/export", response_class=Response)
    def export(name: str, format: str = "md") -> Response:
        """The story as a file: Markdown, plain text, or a KoboldAI save with its lore."""
        return _export(context, name, format)


def _add_operations(router: APIRouter, context: StudioContext) -> None:
    def apply(name: str, operation: Callable[[Story], object]) -> dict[str, Any]:
        with context.stories.use(name) as story:
            operation(story.story)
            return story.to_dict()

    @router.put("/{name}/settings")
    def settings(name: str, form: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        """Changes settings of the story, all of them in one operation.

        `book` names a lorebook of the studio; the other fields are those of `StorySettings`.
        """
        changes = {setting: form[setting] for setting in SETTINGS if setting in form}
        if isinstance(book := form.get("book"), str):
            changes["lorebook"] = _book_path(context, book)
        if isinstance(sampling := changes.get("sampling"), dict):
            check_sampling(sampling)
        return apply(name, lambda story: story.set(**changes))

    @router.post("/{name}/turns")
    def add(name: str, text: TextField) -> dict[str, Any]:
        """Adds a turn by the writer, as it is typed in the story's form."""
        with context.stories.use(name) as story:
            with story.lock:
                story.session().add(text)
            return story.to_dict()

    @router.put("/{name}/turns/{turn}")
    def edit(name: str, turn: int, text: TextField) -> dict[str, Any]:
        """Replaces the text of a turn; the old one stays as a branch."""
        return apply(name, lambda story: story.edit(turn, text))

    @router.put("/{name}/text")
    def replace(name: str, text: TextField) -> dict[str, Any]:
        """Replaces the text of the story; turns that are still in it are kept."""
        return apply(name, lambda story: story.replace_text(text))

    @router.post("/{name}/undo")
    def undo(name: str) -> dict[str, Any]:
        """Undoes the last operation, if there is one."""
        return apply(name, Story.undo)

    @router.post("/{name}/redo")
    def redo(name: str) -> dict[str, Any]:
        """Redoes the operation undone last, if there is one."""
        return apply(name, Story.redo)

    @router.post("/{name}/go")
    def go(name: str, turn: TurnField) -> dict[str, Any]:
        """Goes to a turn of the story, or to the newest end after a turn of another branch."""
        return apply(name, lambda story: story.go_to(_newest_end(story, turn)))

    @router.post("/{name}/cut")
    def cut(name: str, turn: TurnField) -> dict[str, Any]:
        """Goes back to before a turn of the story."""
        return apply(name, lambda story: story.cut(turn))

    @router.post("/{name}/mark")
    def mark(
        name: str, turn: TurnField, kept: Annotated[bool, Body(embed=True)] = True
    ) -> dict[str, Any]:
        """Marks a turn to learn from, or removes the mark."""
        return apply(name, lambda story: story.mark(turn, kept))


def _to_dict(context: StudioContext, name: str) -> dict[str, Any]:
    with context.stories.use(name) as story:
        return story.to_dict()


def _add_example(context: StudioContext) -> str:
    """A story with the first opening of the demo; its lorebook is added where it is missing."""
    book = Lorebook.load(lorebook_path())
    if book.name not in context.books.names():
        context.books.add(book, book.name)
    entry, opening = openings()[0]
    name = free_name(f"{entry} of the {book.name}", _taken(context))
    settings = StorySettings(lorebook=_book_path(context, book.name))
    context.state.stories.create(name, StoryDraft(settings, (("writer", opening),))).close()
    return name


def _first_words(text: str) -> str:
    """A story's name, made of the first words of a text."""
    words = " ".join(re.findall(r"[\w'’-]+", _TAG.sub(" ", text))[:4])
    return name_for(words.replace("’", "'"), "", UNNAMED)


def _check_free(context: StudioContext, name: str) -> None:
    """Raises HTTPException 409 if a story has the name; the library checks if it is legal."""
    if name.casefold() in _taken(context):
        raise HTTPException(
            409,
            f"there is a story {name!r:.160} already; expected another name; choose one, or open "
            "that story",
        )


def _taken(context: StudioContext) -> set[str]:
    return {name.casefold() for name in context.state.stories}


def _book_path(context: StudioContext, name: str) -> str:
    """The setting `lorebook` of a story that uses a lorebook of the studio."""
    return str(context.books.path(name)) if name else ""


def _newest_end(story: Story, turn: int) -> int:
    """The end of a turn's branch, by the newest turn at each fork; 0 for 0."""
    current = {other.id for other in story.turns}
    while turn and turn not in current and (after := story.continuations(turn)):
        turn = after[-1].id
    return turn


def _export(context: StudioContext, name: str, format: str) -> Response:
    if format not in FORMATS:
        raise StoryError(
            f"there is no story format {format!r:.80}; expected one of {', '.join(FORMATS)}; "
            "choose one"
        )
    library_format, media_type = FORMATS[format]
    with context.stories.use(name) as story:
        draft, book = story.story.draft(), story.book
    lore = draft.lorebook
    if book and format == "json":
        lore = koboldai_lore(context.books.get(book))
    settings = draft.settings.changed(**dict.fromkeys(PATH_SETTINGS, ""))
    text = STORY_FORMATS[library_format].write(StoryDraft(settings, draft.turns, lore))
    return attachment(text.encode(), f"{story.story.name}.{format}", media_type)


def _import(context: StudioContext, content: bytes, filename: str, name: str) -> dict[str, Any]:
    draft = _read(content, filename)
    name = free_name(name_for(name, filename, "Story"), _taken(context))
    path, note = "", ""
    if draft.lorebook:
        try:
            book = Lorebook.from_data(draft.lorebook, name=name, source="the lore in the file")
            if book.entries:
                path = _book_path(context, context.books.add(book, name).name)
        except LoreError as error:
            note = f"Its lore was left out: {error}"
    settings = draft.settings.changed(**{**dict.fromkeys(PATH_SETTINGS, ""), "lorebook": path})
    context.state.stories.create(name, StoryDraft(settings, draft.turns)).close()
    data = _to_dict(context, name)
    return data | {"notes": [*data["notes"], note]} if note else data


def _read(content: bytes, filename: str) -> StoryDraft:
    """A story from a file's content; messages have the file's name, not the temporary path."""
    with tempfile.TemporaryDirectory(prefix="softlore-") as folder:
        path = Path(folder) / "story"
        path.write_bytes(content)
        try:
            return read_story(path)
        except SoftloreError as error:
            label = base_name(filename) or "the file"
            raise type(error)(str(error).replace(repr(str(path)), repr(label))) from None
