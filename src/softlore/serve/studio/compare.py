"""POST /compare: continues an opening without lore, with its text, and with soft prompts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from softlore.decode import GenerationRequest
from softlore.errors import ConfigError, ContextError, ContextOverflowError, SoftloreError
from softlore.lore import Entry
from softlore.lore.keywords import lore_keywords, words
from softlore.measure.evaluate import plain_text
from softlore.prompts import SoftPrompt
from softlore.serve.engines import OutputQueue
from softlore.serve.responses import event, event_stream
from softlore.serve.studio.context import EVENT_STREAM, StudioContext
from softlore.serve.studio.forms import CompareForm
from softlore.story import StorySettings
from softlore.story.composing import ContextComposer, ContextPlan
from softlore.story.settings import STORY_SAMPLING

SEEDS = 2**63


@dataclass(frozen=True)
class ComparedMethod:
    """A method by which the opening is continued, and what the model reads for it.

    Attributes:
        plan: None if no entry can be used by it.
        without: by entry that it cannot use, the reason.
    """

    name: str
    plan: ContextPlan | None
    without: dict[str, str]


def make_router(context: StudioContext) -> APIRouter:
    """POST /compare."""
    router = APIRouter()

    @router.post("/compare", response_class=StreamingResponse, responses=EVENT_STREAM)
    async def compare(form: CompareForm) -> StreamingResponse:
        """Continues an opening by several methods side by side, with the same seed.

        Events: begin, token …, done (one a text), end; or error, after which none follows.
        """
        return await event_stream(_events(context, form))

    return router


async def _events(context: StudioContext, form: CompareForm) -> AsyncGenerator[bytes]:
    methods, keywords = await run_in_threadpool(_plan, context, form)
    outputs, labels = OutputQueue(), list[dict[str, Any]]()
    started = False
    try:
        for method in methods:
            if method.plan is None:
                continue
            for sample in range(form.samples):
                request = _request(method.plan, form, sample)
                await context.state.engine.start(request, outputs)
                labels.append({"method": method.name, "sample": sample})
        rows = [
            {
                "method": method.name,
                "tokens": method.plan.tokens if method.plan else 0,
                "written": method.plan is not None,
                "without": method.without,
            }
            for method in methods
        ]
        yield event({"methods": rows, "words": sorted(keywords)}, "begin")
        started = True
        async for output, token in outputs:
            label = labels[output.number]
            if token is None:
                hits = len(keywords.intersection(words(output.text)))
                yield event({**label, "finish": output.finish, "keywords": hits}, "done")
            elif token.text:
                yield event({**label, "text": token.text}, "token")
        yield event({}, "end")
    except SoftloreError as error:
        if not started:
            raise  # nothing has been sent: answered with a status of its own
        yield event({"message": str(error), "type": type(error).__name__}, "error")
    finally:
        outputs.cancel()


def _request(plan: ContextPlan, form: CompareForm, sample: int) -> GenerationRequest:
    return GenerationRequest(
        plan.context,
        form.tokens,
        seed=(form.seed + sample) % SEEDS,
        check=False,  # the prompt store has checked them
        sampling={**STORY_SAMPLING, **form.sampling},
        tree=plan.tree,
    )


def _plan(context: StudioContext, form: CompareForm) -> tuple[list[ComparedMethod], set[str]]:
    """The methods, and the keywords of the lore that are counted in their texts.

    Raises:
        InputError: an unknown name, an empty opening, or more than fits into the context.
    """
    entries, prompts = _find(context, form)
    if not form.text and not context.model.bos:
        raise ContextError("the opening is empty; expected some words to continue; write them")
    composer = ContextComposer(context.model)
    lore = "".join(plain_text(entry) for entry in entries if entry.text)

    def plan(memory: str = "", soft: Sequence[SoftPrompt] = ()) -> ContextPlan:
        # Nothing activates by itself here: the composer has no entries.
        return composer.plan(StorySettings(memory=memory), [form.text], form.tokens, always=soft)

    texts = {entry.name for entry in entries if entry.text}
    trained = {prompt.name for prompt in prompts}
    names = dict.fromkeys(form.names)
    untold = {name: "it has no text" for name in names if name not in texts}
    untrained = {name: "it is not trained yet" for name in names if name not in trained}
    methods = [ComparedMethod("nothing", plan(), {})]
    for method, used, without, lore_of in (
        ("text", texts, untold, {"memory": lore}),
        ("soft", trained, untrained, {"soft": prompts}),
    ):
        found = None
        try:
            found = plan(**lore_of) if used else None
        except ContextOverflowError:
            without |= dict.fromkeys(used, "together they do not fit into the context")
        methods.append(ComparedMethod(method, found, without))
    known = set(words(form.text))
    return methods, {word for entry in entries for word in lore_keywords(entry, known)}


def _find(context: StudioContext, form: CompareForm) -> tuple[list[Entry], list[SoftPrompt]]:
    """The entries and the soft prompts of the names; a name may be that of both."""
    book = context.books.get(form.book).resolved(context.state.settings) if form.book else None
    store = context.prompt_store.refresh()
    entries, prompts = [], []
    for name in dict.fromkeys(form.names):
        entry = book[name] if book is not None and name in book else None
        if entry is not None:
            entries.append(entry)
        if name in store:
            prompts.append(store[name])
        elif entry is None:
            raise ConfigError(
                f"{name!r:.160} is neither an entry of the lorebook nor a soft prompt; expected "
                "one of them; choose another name"
            )
    return entries, prompts
