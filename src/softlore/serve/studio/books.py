"""Routes of lorebooks: making, importing, editing entry by entry, exporting."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from softlore.errors import LoreError, SoftloreError
from softlore.lore import Entry, Lorebook, check
from softlore.lore.names import composed
from softlore.serve.studio.attachments import RAW, attached
from softlore.serve.studio.book_folder import written
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.forms import NewBook
from softlore.serve.studio.headers import row_of

Told = dict[str, Any]
Fields = Annotated[dict[str, Any], Body(description="Fields of a native lorebook, or of its entry")]
_OURS = ("warnings", "prompts")  # what an answer holds besides the book
_ENTRY = re.compile(r"^(?:.*: )?entry '([^']*)'")
_FIELD = re.compile(r"`(\w+)`")


class LoreRoute(APIRoute):
    """A route that says which entry and field an error is about."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except LoreError as error:
                told = {"message": str(error), "type": type(error).__name__}
                return JSONResponse({"error": told | _place(str(error))}, 400)

        return handle


def make_router(bench: StudioContext) -> APIRouter:
    """Everything under /books."""
    router = APIRouter(prefix="/books", route_class=LoreRoute)
    _add_books(router, bench)
    _add_entries(router, bench)
    return router


def _add_books(router: APIRouter, bench: StudioContext) -> None:
    books = bench.books

    @router.get("")
    def names() -> list[Told]:
        """All lorebooks: how many entries each has, and how many of them are trained."""
        trained = set(bench.fitting.headers())
        return [_row(bench, name, trained) for name in books.names()]

    @router.post("")
    def create(form: NewBook) -> Told:
        """An empty lorebook."""
        return _told(bench, books.create(form.name))

    @router.post("/import", openapi_extra=RAW)
    async def import_(request: Request, filename: str = "", name: str = "") -> Told:
        """Brings in a lorebook of any format: SillyTavern, NovelAI, character cards and others."""
        content = await request.body()
        book = await run_in_threadpool(books.take_in, content, filename, name)
        return await run_in_threadpool(_told, bench, book)

    @router.get("/{name}")
    def read(name: str) -> Told:
        """A lorebook with its entries, what is likely not meant in it, and its soft prompts."""
        return _told(bench, books.get(name))

    @router.put("/{name}")
    def replace(name: str, fields: Fields) -> Told:
        """Puts a whole lorebook in place of the one that is there."""
        kept = {field: value for field, value in fields.items() if field not in _OURS}
        return _told(bench, books.change(name, lambda old: kept))

    @router.delete("/{name}")
    def delete(name: str) -> Told:
        """Removes a lorebook; its soft prompts stay."""
        books.delete(name)
        return {}

    @router.get("/{name}/export", response_class=Response)
    def export(name: str, format: str = "yaml") -> Response:
        """The lorebook as a file, in softlore's own form or another program's."""
        content, suffix = written(books.get(name), format)
        return attached(content, f"{composed(name)}{suffix}")


def _add_entries(router: APIRouter, bench: StudioContext) -> None:
    books = bench.books

    @router.post("/{name}/entries")
    def add(name: str, fields: Fields) -> Told:
        """Adds an entry."""
        entry = Entry(**fields)
        return _told(bench, books.change(name, lambda old: _with(old, None, entry)))

    @router.put("/{name}/entries/{entry}")
    def put(name: str, entry: str, fields: Fields) -> Told:
        """Puts an entry in the place of another, which may have another name."""
        new = Entry(**fields)
        return _told(bench, books.change(name, lambda old: _with(old, entry, new)))

    @router.delete("/{name}/entries/{entry}")
    def remove(name: str, entry: str) -> Told:
        """Takes an entry out; its soft prompt stays."""
        return _told(bench, books.change(name, lambda old: _with(old, entry, None)))


def _with(book: Told, old: str | None, new: Entry | None) -> Told:
    """A book's data with an entry added, changed or taken out."""
    entries = list(book["entries"])
    place = len(entries)
    if old is not None:
        name = composed(old[:1000])
        places = [place for place, entry in enumerate(entries) if entry["name"] == name]
        if not places:
            raise HTTPException(
                404,
                f"lorebook {book['name']!r} has no entry {old!r:.160}; expected one of its "
                f"{len(entries)}; open the lorebook anew",
            )
        place = places[0]
    entries[place : place + 1] = [new.data()] if new is not None else []
    return {**book, "entries": entries}


def _told(bench: StudioContext, book: Lorebook) -> Told:
    """A book as the page gets it."""
    headers, prompts = bench.fitting.headers(), dict[str, Told | None]()
    for entry in book:
        row = row_of(headers[entry.name], True) if entry.name in headers else None
        prompts[entry.name] = row and row | {"recall": row["trained"].get("recall")}
    return {**book.data(), "warnings": check(book), "prompts": prompts}


def _row(bench: StudioContext, name: str, trained: set[str]) -> Told:
    try:
        book = bench.books.get(name)
    except SoftloreError as error:
        return {"name": name, "entries": 0, "trained": 0, "error": str(error)}
    known = sum(entry.name in trained for entry in book)
    return {"name": name, "entries": len(book), "trained": known}


def _place(message: str) -> Told:
    """Which entry and which of its fields a message about lore is about, as far as it says."""
    found: Told = {}
    if entry := _ENTRY.match(message):
        found["entry"] = entry[1]
    if field := _FIELD.search(message):
        block = field[1] in ("call", "responses", "response")
        held_out = "held-out block" in message
        found["field"] = ("held_out" if held_out else "blocks") if block else field[1]
    return found
