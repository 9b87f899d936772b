"""Routes of lorebooks: creating, importing, editing entry by entry, exporting."""

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
from softlore.lore.macros import macros_in
from softlore.lore.names import normalize_name
from softlore.serve.studio.book_folder import encode_book
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.files import RAW_BODY, attachment
from softlore.serve.studio.prompts import prompt_row

Fields = Annotated[dict[str, Any], Body(description="Fields of a native lorebook, or of its entry")]
_ADDED = ("warnings", "prompts", "greetings", "asks_name")  # beside a book's own fields
_ENTRY = re.compile(r"^(?:.*: )?entry '([^']*)'")
_FIELD = re.compile(r"`(\w+)`")


class LoreRoute(APIRoute):
    """A route whose errors name the entry and the field that they are about."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except LoreError as error:
                detail = {"message": str(error), "type": type(error).__name__}
                return JSONResponse({"error": detail | _location(str(error))}, 400)

        return handle


def make_router(context: StudioContext) -> APIRouter:
    """Everything under /books."""
    router = APIRouter(prefix="/books", route_class=LoreRoute)
    _add_books(router, context)
    _add_entries(router, context)
    return router


def _add_books(router: APIRouter, context: StudioContext) -> None:
    books = context.books

    @router.get("")
    def names() -> list[dict[str, Any]]:
        """All lorebooks, each with the number of its entries and how many are trained."""
        trained = set(context.prompt_store.compatible())
        return [_row(context, name, trained) for name in books.names()]

    @router.post("")
    def create(name: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        """Creates an empty lorebook."""
        return _to_dict(context, books.create(name))

    @router.post("/import", openapi_extra=RAW_BODY)
    async def import_(request: Request, filename: str = "", name: str = "") -> dict[str, Any]:
        """Imports a lorebook of any format: SillyTavern, NovelAI, character cards and others."""
        content = await request.body()
        book = await run_in_threadpool(books.import_file, content, filename, name)
        return await run_in_threadpool(_to_dict, context, book)

    @router.get("/{name}")
    def read(name: str) -> dict[str, Any]:
        """A lorebook with its entries, warnings about them, and their soft prompts."""
        return _to_dict(context, books.get(name))

    @router.put("/{name}")
    def replace(name: str, fields: Fields) -> dict[str, Any]:
        """Replaces a lorebook."""
        data = {field: value for field, value in fields.items() if field not in _ADDED}
        return _to_dict(context, books.change(name, lambda old: data))

    @router.delete("/{name}")
    def delete(name: str) -> dict[str, Any]:
        """Deletes a lorebook; its soft prompts stay."""
        books.delete(name)
        return {}

    @router.get("/{name}/export", response_class=Response)
    def export(name: str, format: str = "yaml") -> Response:
        """The lorebook as a file, in softlore's own format or another program's."""
        content, suffix = encode_book(books.get(name), format)
        return attachment(content, f"{normalize_name(name)}{suffix}")


def _add_entries(router: APIRouter, context: StudioContext) -> None:
    def change(name: str, old: str | None, new: Entry | None) -> dict[str, Any]:
        book = context.books.change(name, lambda data: _with_entry(data, old, new))
        return _to_dict(context, book)

    @router.post("/{name}/entries")
    def add(name: str, fields: Fields) -> dict[str, Any]:
        """Adds an entry."""
        return change(name, None, Entry(**fields))

    @router.put("/{name}/entries/{entry}")
    def put(name: str, entry: str, fields: Fields) -> dict[str, Any]:
        """Replaces an entry by one that may have another name."""
        return change(name, entry, Entry(**fields))

    @router.delete("/{name}/entries/{entry}")
    def remove(name: str, entry: str) -> dict[str, Any]:
        """Removes an entry; its soft prompt stays."""
        return change(name, entry, None)


def _with_entry(book: dict[str, Any], old: str | None, new: Entry | None) -> dict[str, Any]:
    """A book's data with an entry added (`old` is None), replaced, or removed (`new` is None)."""
    entries = list(book["entries"])
    index = len(entries)
    if old is not None:
        name = normalize_name(old)
        index = next((i for i, entry in enumerate(entries) if entry["name"] == name), -1)
        if index < 0:
            raise HTTPException(
                404,
                f"lorebook {book['name']!r} has no entry {old!r:.160}; expected one of its "
                f"{len(entries)}; open the lorebook again",
            )
    entries[index : index + 1] = [new.data()] if new is not None else []
    return {**book, "entries": entries}


def _to_dict(context: StudioContext, book: Lorebook) -> dict[str, Any]:
    headers, prompts = context.prompt_store.compatible(), dict[str, dict[str, Any] | None]()
    for entry in book:
        row = prompt_row(headers[entry.name], True) if entry.name in headers else None
        prompts[entry.name] = row and row | {"recall": row["trained"].get("recall")}
    data, greetings = book.data(), book.opening(context.state.settings).greetings
    named = book.user or context.state.settings.user
    asks_name = bool(greetings) and not named and "user" in macros_in(str(data)).values()
    added = (check(book), prompts, greetings, asks_name)
    return {**data, **dict(zip(_ADDED, added, strict=True))}


def _row(context: StudioContext, name: str, trained: set[str]) -> dict[str, Any]:
    try:
        book = context.books.get(name)
    except SoftloreError as error:
        return {"name": name, "entries": 0, "trained": 0, "error": str(error)}
    return {
        "name": name,
        "entries": len(book),
        "trained": sum(entry.name in trained for entry in book),
    }


def _location(message: str) -> dict[str, Any]:
    """The entry and the field that a message about lore names, if any."""
    location = {}
    if entry := _ENTRY.match(message):
        location["entry"] = entry[1]
    if field := _FIELD.search(message):
        name = field[1]
        if name in ("call", "responses", "response"):
            name = "held_out" if "held-out block" in message else "blocks"
        location["field"] = name
    return location
