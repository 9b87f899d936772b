"""Routes of writing: the model's turns as streams of tokens, and previews of the context."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from softlore.control import find_codes
from softlore.decode import Token
from softlore.errors import SoftloreError
from softlore.prompts.vector_folder import fitting_vectors
from softlore.serve.engines import OutputQueue
from softlore.serve.responses import event, event_stream
from softlore.serve.studio.chances import ALTERNATIVES, CHANCES, token_chances
from softlore.serve.studio.context import EVENT_STREAM, StudioContext
from softlore.serve.studio.forms import MAX_TOKENS, CodeStrength, WriteForm, check_sampling
from softlore.serve.studio.open_stories import OpenStories, OpenStory
from softlore.story import Turn
from softlore.story.session import DRAW, TurnDraft


def make_router(context: StudioContext) -> APIRouter:
    """/stories/NAME/plan, /write and /stop."""
    router = APIRouter(prefix="/stories/{name}")
    stories = context.stories

    @router.get("/plan")
    def plan(
        name: str,
        tokens: Annotated[int, Query(ge=1, le=MAX_TOKENS)] = 80,
        speaker: str = "",
    ) -> dict[str, Any]:
        """The context that the model would read for a turn of `tokens`, part by part."""
        with stories.use(name) as story, story.lock:
            return story.session().plan_turn(tokens, speaker).to_dict()

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
            if story.outputs is not None:
                story.outputs.cancel()
        finally:
            stories.release(story)
        return {}

    return router


async def _events(
    context: StudioContext, story: OpenStory, form: WriteForm
) -> AsyncGenerator[bytes]:
    """The events of one turn; `story` is released when it is saved, or could not be started."""
    try:
        drafts, added = await run_in_threadpool(_prepare, context, story, form)
        outputs = OutputQueue()
        try:
            for draft in drafts:
                await context.state.engine.start(draft.request, outputs)
        except BaseException:
            outputs.cancel()
            await run_in_threadpool(_withdraw, story, added)
            raise
    except BaseException:
        _finish(context.stories, story)
        raise
    turn = RunningTurn(context, story, drafts, outputs)
    context.stories.retain(story)  # the turn holds its own reference
    try:
        yield event({"plan": drafts[0].plan.to_dict()}, "plan")
        async for sample, text in turn.pieces():
            yield event({"text": text, "sample": sample}, "token")
        data = await run_in_threadpool(story.to_dict)
        first = outputs.streams[0]
        usage = first.cache_usage
        reading = usage and {"reused": usage.reused, "read": usage.read, "why": usage.why}
        warnings = context.state.engine.without_effect(drafts[0].request.sampling)
        told = {"finish": first.finish, "reading": reading, "warnings": warnings}
        yield event({**told, "turns": turn.saved, "story": data}, "done")
    except SoftloreError as error:
        yield event({"message": str(error), "type": type(error).__name__}, "error")
    finally:
        turn.cancel()
        context.stories.release(story)


class RunningTurn:
    """A turn that the model writes, or several to choose from.

    They are saved when the last one ends, whether or not anybody listens.

    Attributes:
        saved: by sample, the number of its turn; None where nothing was written.
    """

    def __init__(
        self,
        context: StudioContext,
        story: OpenStory,
        drafts: Sequence[TurnDraft],
        outputs: OutputQueue,
    ) -> None:
        self._queue: asyncio.Queue[tuple[int, str] | Exception | None] = asyncio.Queue()
        self._context, self._story, self._drafts, self._outputs = context, story, drafts, outputs
        self._tokens: list[list[Token]] = [[] for _ in drafts]
        self.saved: list[int | None] = []
        story.outputs = outputs
        stories = context.stories
        task = asyncio.create_task(self._write())
        stories.tasks.add(task)
        task.add_done_callback(stories.tasks.discard)

    async def pieces(self) -> AsyncGenerator[tuple[int, str]]:
        """The number of a sample and text of it; ends when the turns have been saved.

        Raises:
            BusyError, EngineError: the engine's own.
            StorageError: the turn could not be saved.
        """
        while (item := await self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            if item[1]:
                yield item

    def cancel(self) -> None:
        """Ends it after the next token. Does nothing if it has ended."""
        self._outputs.cancel()

    async def _write(self) -> None:
        failed = None
        try:
            async for output, token in self._outputs:
                sample = output.number
                trimmer = self._drafts[sample].trimmer
                if token is None:
                    self._queue.put_nowait((sample, trimmer.flush(output.finish)))
                else:
                    self._tokens[sample].append(token)
                    self._queue.put_nowait((sample, trimmer.add(token.text)))
                    if trimmer.ended:
                        output.cancel()
        except SoftloreError as error:
            failed = error
            self._outputs.cancel()
        try:
            await run_in_threadpool(self._save, failed is not None)
        except SoftloreError as error:
            failed = failed or error
        finally:
            _finish(self._context.stories, self._story)
            self._queue.put_nowait(failed)

    def _save(self, failed: bool) -> None:
        model = self._context.model
        for draft, output, tokens in zip(
            self._drafts, self._outputs.streams, self._tokens, strict=True
        ):
            finish = "failed" if failed else output.finish
            finish = "stop" if draft.trimmer.ended else finish
            draft.trimmer.flush(finish)
            more = {CHANCES: token_chances(model, tokens, draft.trimmer)}
            turn = draft.save(draft.trimmer.text, len(output.ids), finish, more)
            self.saved.append(turn.id if turn else None)
        self._story.remember(self._drafts[0].plan)


def _finish(stories: OpenStories, story: OpenStory) -> None:
    story.outputs, story.writing = None, False
    stories.release(story)


def _prepare(
    context: StudioContext, story: OpenStory, form: WriteForm
) -> tuple[list[TurnDraft], Turn | None]:
    """Adds the writer's turn and plans the model's; adds nothing if that fails."""
    sampling = form.sampling | ({"no_copy": form.no_copy} if form.no_copy else {})
    conditioning = _conditioning(context, form.codes)
    strengths = {vector.name: vector.strength for vector in form.vectors if vector.strength}
    vectors = fitting_vectors(context.model, strengths)
    with story.lock:
        session = story.session()
    added = session.add(form.text) if form.text else None
    try:
        with story.lock:
            retry = form.retry and not form.text
            draft = session.draft(
                form.tokens,
                form.stop,
                conditioning,
                retry,
                vectors=vectors,
                speaker=form.speaker,
                **sampling,
            )
        check_sampling(dict(draft.request.sampling))  # the story's may be of an imported file
    except BaseException:
        _withdraw(story, added)
        raise
    return [_sample(draft, number) for number in range(form.samples)], added


def _sample(draft: TurnDraft, number: int) -> TurnDraft:
    """One of several drafts of a turn, with a seed of its own and the tokens' chances."""
    request = draft.request
    seed = None if request.seed is None else (request.seed + number) % DRAW
    return replace(
        draft,
        request=replace(request, seed=seed, logprobs=ALTERNATIVES),
        trimmer=draft.trimmer.copy(),
    )


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
