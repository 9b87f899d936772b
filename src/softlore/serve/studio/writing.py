"""Routes of writing: the model's turns as they come, and what they are to be read from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from softlore.control import find_codes
from softlore.decode import Token
from softlore.errors import SoftloreError
from softlore.serve.engines import AsyncOutputStream, warm
from softlore.serve.responses import event, event_stream
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.forms import MOST_TOKENS, CodeStrength, WriteForm
from softlore.serve.studio.open_stories import OpenStories, OpenStory
from softlore.serve.studio.sampling import checked_sampling
from softlore.serve.studio.views import plan_told, story_told
from softlore.story import Turn
from softlore.story.session import TurnDraft

STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Events, as they come"}
}


def make_router(bench: StudioContext) -> APIRouter:
    """/stories/N/plan, /write and /stop."""
    router = APIRouter(prefix="/stories/{name}")

    @router.get("/plan")
    def plan(name: str, tokens: Annotated[int, Query(ge=1, le=MOST_TOKENS)] = 80) -> dict[str, Any]:
        """What the model would read for a turn of so many tokens, and what went where."""
        with bench.stories.use(name) as one, one.lock:
            return plan_told(one.session().look(tokens))

    @router.post("/write", response_class=StreamingResponse, responses=STREAM)
    async def write(name: str, form: WriteForm) -> StreamingResponse:
        """Lets the model write a turn. Events: plan, token …, done; or error, after which no more.

        What was told is kept, also when the connection is closed midway.
        """
        one = await run_in_threadpool(bench.stories.take, name)
        try:
            if one.writing:
                raise HTTPException(
                    409,
                    f"the story {name!r} is being written; expected one turn at a time; wait for "
                    "it, or stop it",
                )
            one.writing = True
        except BaseException:
            bench.stories.leave(one)
            raise
        return await event_stream(_events(bench, one, form))

    @router.post("/stop")
    async def stop(name: str) -> dict[str, Any]:
        """Stops the turn that is being written, at the next token; its stream then ends."""
        one = await run_in_threadpool(bench.stories.take, name)
        try:
            if one.running is not None and one.running.finish is None:
                one.running.cancel()
        finally:
            bench.stories.leave(one)
        return {}

    return router


async def _events(bench: StudioContext, one: OpenStory, form: WriteForm) -> AsyncGenerator[bytes]:
    """The events of one turn; `one` is let go when it is kept, or when nothing came of it."""
    try:
        draft, said = await run_in_threadpool(_begun, bench, one, form)
        try:
            running = bench.state.engine.start(draft.request)
        except BaseException:
            await run_in_threadpool(_unsaid, one, said)
            raise
    except BaseException:
        _let_go(bench.stories, one)
        raise
    turn = Turning(bench.stories, one, draft, running)
    bench.stories.hold(one)  # the turn lets it go when it is kept
    try:
        yield event({"plan": plan_told(draft.plan)}, "plan")
        async for token in turn.told():
            yield event({"text": token.text}, "token")
        story = await run_in_threadpool(story_told, one)
        yield event(
            {"finish": running.finish, "reading": _reading(running), "story": story}, "done"
        )
    except SoftloreError as error:
        yield event({"message": str(error), "type": type(error).__name__}, "error")
    finally:
        turn.cancel()
        bench.stories.leave(one)


def _reading(running: AsyncOutputStream) -> dict[str, Any] | None:
    found = running.cache_usage
    return {"reused": found.reused, "read": found.read, "why": found.why} if found else None


class Turning:
    """A turn of the model's that is being written, whoever listens; it is kept when it ends."""

    def __init__(
        self, stories: OpenStories, one: OpenStory, draft: TurnDraft, running: AsyncOutputStream
    ) -> None:
        self._heard: asyncio.Queue[Token | Exception | None] = asyncio.Queue()
        self._stories, self._one, self._draft, self._running = stories, one, draft, running
        one.running = running
        self._task = asyncio.create_task(self._write())
        stories.tasks.add(self._task)
        self._task.add_done_callback(stories.tasks.discard)

    async def told(self) -> AsyncGenerator[Token]:
        """The tokens that have a text; it ends when the turn stands in the story.

        Raises:
            BusyError, EngineError: as the engine does. StorageError: it could not be kept.
        """
        while (heard := await self._heard.get()) is not None:
            if isinstance(heard, Exception):
                raise heard
            if heard.text:
                yield heard

    def cancel(self) -> None:
        """Ends it at the next token, unless it has ended; what was told is kept."""
        if self._running.finish is None:
            self._running.cancel()

    async def _write(self) -> None:
        failed: Exception | None = None
        try:
            async for token in self._running:
                self._heard.put_nowait(token)
        except SoftloreError as error:
            failed = error
        running = self._running
        finish = "failed" if failed else running.finish
        try:
            await run_in_threadpool(self._draft.keep, running.text, len(running.ids), finish)
        except SoftloreError as error:
            failed = failed or error
        finally:
            _let_go(self._stories, self._one)
            self._heard.put_nowait(failed)


def _let_go(stories: OpenStories, one: OpenStory) -> None:
    one.running, one.writing = None, False
    stories.leave(one)


def _begun(bench: StudioContext, one: OpenStory, form: WriteForm) -> tuple[TurnDraft, Turn | None]:
    """The draft of a turn, and the writer's own, added first; nothing is added where it fails."""
    sampling = checked_sampling(form.sampling)
    if form.no_copy:
        sampling["no_copy"] = form.no_copy
    conditioning = _conditioning(bench, form.codes)
    said = one.story.add(form.text) if form.text else None
    try:
        with one.lock:
            session = one.session()
            draft = session.begin(
                form.tokens, form.stop, conditioning, form.retry and not form.text, **sampling
            )
        checked_sampling(draft.request.sampling)  # the story's own, too
        warm(bench.model, draft.request.sampling)
    except BaseException:
        _unsaid(one, said)
        raise
    return draft, said


def _unsaid(one: OpenStory, said: Turn | None) -> None:
    """Takes back the writer's turn, so that trying again does not add it twice.

    It stays where something else was done to the story since, which undo would take back instead.
    """
    conditioning = one.story.head
    if (
        said is not None
        and conditioning is not None
        and conditioning.id == said.id
        and one.story.undoable == "add"
    ):
        one.story.undo()


def _conditioning(bench: StudioContext, codes: list[CodeStrength]) -> Any:
    """Control codes with their strengths, as `write` takes them."""
    doses = {dose.name: dose.strength for dose in codes if dose.strength}
    if not doses:
        return ""
    found = find_codes(bench.model, doses, bench.shelf())
    return [(found[name].conditioning, strength) for name, strength in doses.items()]
