"""Routes of stories: making, importing, reading, editing, undoing, branching, exporting."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from softlore.errors import LoreError, SoftloreError, StoryError
from softlore.lore import Lorebook
from softlore.serve.studio.attachments import RAW, attached
from softlore.serve.studio.book_folder import koboldai_lore
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.forms import (
    Marked,
    NewStory,
    PickedLines,
    Renamed,
    StorySet,
    WrittenTurn,
)
from softlore.serve.studio.names import file_name, free_name, name_for
from softlore.serve.studio.sampling import checked_sampling
from softlore.serve.studio.views import StoryList, story_told
from softlore.story import Story, StoryDraft, StorySettings
from softlore.story.files import FORMATS as READ
from softlore.story.files import read_story

# By the name that the page asks for: the library's name, and the type of the file.
FORMATS = {
    "md": ("markdown", "text/markdown; charset=utf-8"),
    "txt": ("text", "text/plain; charset=utf-8"),
    "json": ("koboldai", "application/json"),
}
# Settings that name places on a disk: those of another machine, or of a stranger.
PLACES = ("lorebook", "prompts", "model")
Told = dict[str, Any]


def make_router(bench: StudioContext) -> APIRouter:
    """Everything under /stories but the writing."""
    router = APIRouter(prefix="/stories")
    _add_library(router, bench)
    _add_operations(router, bench)
    return router


def _add_library(router: APIRouter, bench: StudioContext) -> None:
    stories, listed = bench.state.stories, StoryList(bench.state.stories)

    @router.get("")
    def names() -> list[Told]:
        """All stories, the newest first."""
        return listed.rows()

    @router.post("")
    def create(form: NewStory) -> Told:
        """Begins a story."""
        _check_free(bench, form.name)
        turns = (("writer", form.opening),) if form.opening else ()
        settings = StorySettings(lorebook=_book_path(bench, form.book))
        stories.create(form.name, StoryDraft(settings, turns)).close()  # type: ignore[arg-type]
        return _told(bench, form.name)

    @router.post("/import", openapi_extra=RAW)
    async def import_(request: Request, filename: str = "", name: str = "") -> Told:
        """Brings in a KoboldAI save, Markdown or plain text; lore in it becomes a lorebook."""
        content = await request.body()
        return await run_in_threadpool(_import, bench, content, filename, name)

    @router.get("/{name}")
    def read(name: str) -> Told:
        """A story as it stands."""
        return _told(bench, name)

    @router.delete("/{name}")
    def delete(name: str) -> Told:
        """Puts a story aside: its file is renamed, not destroyed."""
        with bench.stories.alone(name):
            stories.delete(name)
        return {}

    @router.patch("/{name}")
    def rename(name: str, form: Renamed) -> Told:
        """Gives a story another name."""
        if form.name.casefold() != name.casefold():
            _check_free(bench, form.name)
        with bench.stories.alone(name):
            stories.rename(name, form.name)
        return _told(bench, form.name)

    @router.get("/{name}/export", response_class=Response)
    def export(name: str, format: str = "md") -> Response:
        """The story as a file: Markdown, plain text, or a KoboldAI save with its lore."""
        if format not in FORMATS:
            raise StoryError(
                f"there is no story format {format!r:.80}; expected one of {', '.join(FORMATS)}; "
                "choose one"
            )
        form, kind = FORMATS[format]
        with bench.stories.use(name) as one:
            draft, book = one.story.draft(), one.book
        lore = koboldai_lore(bench.books.get(book)) if book and format == "json" else draft.lorebook
        settings = draft.settings.changed(**dict.fromkeys(PLACES, ""))
        text = READ[form].write(StoryDraft(settings, draft.turns, lore))
        return attached(text.encode(), f"{one.story.name}.{format}", kind)


def _add_operations(router: APIRouter, bench: StudioContext) -> None:
    def done(name: str, how: Any) -> Told:
        with bench.stories.use(name) as one:
            how(one.story)
            return story_told(one)

    @router.put("/{name}/settings")
    def settings(name: str, form: StorySet) -> Told:
        """Changes settings of the story, all of them in one operation."""
        changes = form.model_dump(exclude_unset=True)
        changes = {k: v for k, v in changes.items() if v is not None or k == "seed"}
        if "book" in changes:
            changes["lorebook"] = _book_path(bench, changes.pop("book"))
        if "sampling" in changes:
            checked_sampling(changes["sampling"])
        return done(name, lambda story: story.set(**changes))

    @router.post("/{name}/turns")
    def add(name: str, form: WrittenTurn) -> Told:
        """Adds a turn of the writer's."""
        return done(name, lambda story: story.add(form.text))

    @router.put("/{name}/turns/{turn}")
    def edit(name: str, turn: int, form: WrittenTurn) -> Told:
        """Puts another text in place of a turn's; the old one stays as a branch."""
        return done(name, lambda story: story.edit(turn, form.text))

    @router.put("/{name}/text")
    def replace(name: str, form: WrittenTurn) -> Told:
        """Makes this the story's text, as after an edit of it all."""
        return done(name, lambda story: story.replace_text(form.text))

    @router.post("/{name}/undo")
    def undo(name: str) -> Told:
        """Takes the last operation back, if there is one."""
        return done(name, Story.undo)

    @router.post("/{name}/redo")
    def redo(name: str) -> Told:
        """Brings back what was undone last, if there is anything."""
        return done(name, Story.redo)

    @router.post("/{name}/go")
    def go(name: str, form: PickedLines) -> Told:
        """Goes to a turn of any branch, and to the newest end of what follows it."""
        return done(name, lambda story: story.go_to(_newest_end(story, form.turn)))

    @router.post("/{name}/cut")
    def cut(name: str, form: PickedLines) -> Told:
        """Goes back to before a turn of the story."""
        return done(name, lambda story: story.cut(form.turn))

    @router.post("/{name}/mark")
    def mark(name: str, form: Marked) -> Told:
        """Says that the writer accepts a turn, or no longer does."""
        return done(name, lambda story: story.mark(form.turn, form.kept))


def _told(bench: StudioContext, name: str) -> Told:
    with bench.stories.use(name) as one:
        return story_told(one)


def _check_free(bench: StudioContext, name: str) -> None:
    """Raises 409 where a story has that name; whether it is legal, the library says."""
    if name.casefold() in {one.casefold() for one in bench.state.stories}:
        raise HTTPException(
            409,
            f"there is a story {name!r:.160} already; expected another name; choose one, or open "
            "that story",
        )


def _book_path(bench: StudioContext, name: str) -> str:
    """What a story's settings say of a lorebook of the studio's."""
    return str(bench.books.path(name)) if name else ""


def _newest_end(story: Story, turn: int) -> int:
    """Where a turn's branch ends, going to the newest at each fork; its own number at an end."""
    here = {one.id for one in story.turns}
    while turn and turn not in here and (after := story.continuations(turn)):
        turn = after[-1].id
    return turn


def _import(bench: StudioContext, content: bytes, filename: str, name: str) -> Told:
    draft = _read(content, filename)
    wanted = name_for(name, filename, "Story")
    wanted = free_name(wanted, {one.casefold() for one in bench.state.stories})
    settings = draft.settings.changed(**dict.fromkeys(PLACES, ""))
    path, note = "", ""
    if draft.lorebook:
        try:
            book = Lorebook.from_data(draft.lorebook, name=wanted, source="the lore in the file")
            if book.entries:
                path = _book_path(bench, bench.books.add(book, wanted).name)
        except LoreError as error:
            note = f"Its lore was left out: {error}"
    settings = settings.changed(lorebook=path)
    bench.state.stories.create(wanted, StoryDraft(settings, draft.turns)).close()
    told = _told(bench, wanted)
    return told | {"notes": [*told["notes"], note]} if note else told


def _read(content: bytes, filename: str) -> StoryDraft:
    """A story from a file's bytes; messages name the file, not where it was put meanwhile."""
    with tempfile.TemporaryDirectory(prefix="softlore-") as folder:
        path = Path(folder) / "story"
        path.write_bytes(content)
        try:
            return read_story(path)
        except SoftloreError as error:
            label = file_name(filename) or "the file"
            raise type(error)(str(error).replace(repr(str(path)), repr(label))) from None
