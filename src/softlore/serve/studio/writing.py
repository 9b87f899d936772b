"""Routes of writing: the model's turns as streams of tokens, and previews of the context."""

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
from softlore.serve.engines import AsyncOutputStream
from softlore.serve.responses import event, event_stream
from softlore.serve.studio.context import EVENT_STREAM, StudioContext
from softlore.serve.studio.forms import MAX_TOKENS, CodeStrength, WriteForm, check_sampling
from softlore.serve.studio.open_stories import OpenStories, OpenStory
from softlore.story import Turn
from softlore.story.seams import join_turns
from softlore.story.session import TurnDraft


def make_router(context: StudioContext) -> APIRouter:
    """/stories/NAME/plan, /write and /stop."""
    router = APIRouter(prefix="/stories/{name}")
    stories = context.stories

    @router.get("/plan")
    def plan(name: str, tokens: Annotated[int, Query(ge=1, le=MAX_TOKENS)] = 80) -> dict[str, Any]:
        """The context that the model would read for a turn of `tokens`, part by part."""
        with stories.use(name) as story, story.lock:
            return story.session().plan_turn(tokens).to_dict()

    @router.post("/write", response_class=StreamingResponse, responses=EVENT_STREAM)
    async def write(name: str, form: WriteForm) -> StreamingResponse:
        """Writes a turn. Events: plan, token …, done; or error, after which none follows.

        What was written is saved, also when the connection is closed midway.
        """
        story = await run_in_threadpool(stories.acquire, name)
        if story.writing:
            stories.release(story)
            raise HTTPException(
                409,
                f"the story {name!r} is being written; expected one turn at a time; wait for it, "
                "or stop it",
            )
        story.writing = True
        return await event_stream(_events(context, story, form))

    @router.post("/stop")
    async def stop(name: str) -> dict[str, Any]:
        """Stops the turn that is being written after the next token; its stream then ends."""
        story = await run_in_threadpool(stories.acquire, name)
        try:
            if story.output is not None and story.output.finish is None:
                story.output.cancel()
        finally:
            stories.release(story)
        return {}

    return router


async def _events(
    context: StudioContext, story: OpenStory, form: WriteForm
) -> AsyncGenerator[bytes]:
    """The events of one turn; `story` is released when it is saved, or could not be started."""
    try:
        draft, added = await run_in_threadpool(_prepare, context, story, form)
        try:
            output = await context.state.engine.start(draft.request)
        except BaseException:
            await run_in_threadpool(_withdraw, story, added)
            raise
    except BaseException:
        _finish(context.stories, story)
        raise
    turn = RunningTurn(context.stories, story, draft, output)
    context.stories.retain(story)  # the turn holds its own reference
    try:
        yield event({"plan": draft.plan.to_dict()}, "plan")
        async for token in turn.tokens():
            yield event({"text": token.text}, "token")
        data = await run_in_threadpool(story.to_dict)
        usage = output.cache_usage
        reading = usage and {"reused": usage.reused, "read": usage.read, "why": usage.why}
        yield event({"finish": output.finish, "reading": reading, "story": data}, "done")
    except SoftloreError as error:
        yield event({"message": str(error), "type": type(error).__name__}, "error")
    finally:
        turn.cancel()
        context.stories.release(story)


class RunningTurn:
    """A turn that the model writes. It is saved when it ends, whether or not anybody listens."""

    def __init__(
        self, stories: OpenStories, story: OpenStory, draft: TurnDraft, output: AsyncOutputStream
    ) -> None:
        self._queue: asyncio.Queue[Token | Exception | None] = asyncio.Queue()
        self._stories, self._story, self._draft, self._output = stories, story, draft, output
        story.output = output
        task = asyncio.create_task(self._write())
        stories.tasks.add(task)
        task.add_done_callback(stories.tasks.discard)

    async def tokens(self) -> AsyncGenerator[Token]:
        """The tokens of which text is passed on; ends when the turn has been saved.

        Raises:
            BusyError, EngineError: the engine's own.
            StorageError: the turn could not be saved.
        """
        while (item := await self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            if item.text:
                yield item

    def cancel(self) -> None:
        """Ends it after the next token. Does nothing if it has ended."""
        if self._output.finish is None:
            self._output.cancel()

    async def _write(self) -> None:
        output, trimmer, failed = self._output, self._draft.trimmer, None
        try:
            async for token in output:
                self._queue.put_nowait(Token(trimmer.add(token.text), token.id))
        except SoftloreError as error:
            failed = error
        finish = "failed" if failed else output.finish
        self._queue.put_nowait(Token(trimmer.flush(finish)))
        try:
            await run_in_threadpool(self._draft.save, trimmer.text, len(output.ids), finish)
        except SoftloreError as error:
            failed = failed or error
        finally:
            _finish(self._stories, self._story)
            self._queue.put_nowait(failed)


def _finish(stories: OpenStories, story: OpenStory) -> None:
    story.output, story.writing = None, False
    stories.release(story)


def _prepare(
    context: StudioContext, story: OpenStory, form: WriteForm
) -> tuple[TurnDraft, Turn | None]:
    """Adds the writer's turn and plans the model's; adds nothing if that fails."""
    sampling = form.sampling | ({"no_copy": form.no_copy} if form.no_copy else {})
    conditioning = _conditioning(context, form.codes)
    typed = join_turns(story.story.text, form.text) if form.text else ""
    added = story.story.add(typed) if typed else None
    try:
        with story.lock:
            retry = form.retry and not form.text
            draft = story.session().draft(form.tokens, form.stop, conditioning, retry, **sampling)
        check_sampling(dict(draft.request.sampling))  # the story's may be of an imported file
    except BaseException:
        _withdraw(story, added)
        raise
    return draft, added


def _withdraw(story: OpenStory, added: Turn | None) -> None:
    """Undoes the addition of the writer's turn, so that a second try does not add it twice.

    Does nothing if the story was changed since, as undo would take that change back instead.
    """
    last = story.story.head
    unchanged = added is not None and last is not None and last.id == added.id
    if unchanged and story.story.undoable == "add":
        story.story.undo()


def _conditioning(context: StudioContext, codes: list[CodeStrength]) -> Any:
    """Control codes with their strengths, as a `GenerationRequest` has them."""
    strengths = {code.name: code.strength for code in codes if code.strength}
    if not strengths:
        return ""
    found = find_codes(context.model, strengths, context.prompt_store.refresh())
    return [(found[name].conditioning, strength) for name, strength in strengths.items()]
