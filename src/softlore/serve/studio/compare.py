"""The comparison: one opening gone on with by nothing, by the text of lore, by soft prompts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from softlore.decode import GenerationRequest
from softlore.errors import ConfigError, ContextError, SoftloreError
from softlore.lore import Entry
from softlore.lore.keywords import lore_keywords, words
from softlore.measure.evaluate import plain_text
from softlore.prompts import SoftPrompt
from softlore.serve.engines import AsyncOutputStream, cancel_all, merged, warm
from softlore.serve.responses import event, event_stream
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.forms import Comparing
from softlore.serve.studio.sampling import checked_sampling
from softlore.serve.studio.writing import STREAM
from softlore.story import StorySettings
from softlore.story.composing import ContextComposer, ContextPlan

SEEDS = 2**63


@dataclass(frozen=True)
class ComparedMethod:
    """One way of going on: what it is called, and what is read for it."""

    name: str
    plan: ContextPlan


def make_router(bench: StudioContext) -> APIRouter:
    """POST /compare."""
    router = APIRouter()

    @router.post("/compare", response_class=StreamingResponse, responses=STREAM)
    async def compare(form: Comparing) -> StreamingResponse:
        """Goes on with an opening in several ways, side by side, with the same seed.

        Events: begin, token …, done (one a text), end; or error, after which no more.
        """
        return await event_stream(_events(bench, form))

    return router


async def _events(bench: StudioContext, form: Comparing) -> AsyncGenerator[bytes]:
    sampling = checked_sampling(form.sampling)
    ways, keywords = await run_in_threadpool(_ways, bench, form)
    texts: list[tuple[str, int, AsyncOutputStream]] = []
    begun = False
    try:
        for way in ways:
            for sample in range(form.samples):
                wish = _wish(way, form, sampling, sample)
                texts.append((way.name, sample, bench.state.engine.start(wish)))
        told = [{"way": way.name, "tokens": way.plan.tokens} for way in ways]
        yield event({"ways": told, "words": sorted(keywords)}, "begin")
        begun = True
        async with aclosing(merged([running for _, _, running in texts])) as tokens:
            async for number, token in tokens:
                way_name, sample, running = texts[number]
                which = {"way": way_name, "sample": sample}
                if token is None:
                    hits = len(keywords.intersection(words(running.text)))
                    yield event({**which, "finish": running.finish, "keywords": hits}, "done")
                elif token.text:
                    yield event({**which, "text": token.text}, "token")
        yield event({}, "end")
    except SoftloreError as error:
        if not begun:
            raise  # before anything was told: with a status of its own
        yield event({"message": str(error), "type": type(error).__name__}, "error")
    finally:
        cancel_all(running for _, _, running in texts)


def _wish(
    way: ComparedMethod, form: Comparing, sampling: dict[str, Any], sample: int
) -> GenerationRequest:
    rest = dict(sampling)
    no_copy = rest.pop("no_copy", 0)
    return GenerationRequest(
        way.plan.context,
        form.tokens,
        seed=(form.seed + sample) % SEEDS,
        no_copy=no_copy,
        check=False,  # the shelf has
        sampling=rest,
    )


def _ways(bench: StudioContext, form: Comparing) -> tuple[list[ComparedMethod], set[str]]:
    """What is read each way, and the lore's own words.

    Raises:
        InputError: a name that is nothing, an empty opening, or more than the context holds.
    """
    entries, prompts = _named(bench, form)
    if not form.text and not bench.model.bos:
        raise ContextError("the opening is empty; expected some words to go on from; write them")
    warm(bench.model, form.sampling)
    composer = ContextComposer(bench.model)
    lore = "".join(plain_text(entry) for entry in entries if entry.text)

    def planned(
        name: str, memory: str = "", soft: list[SoftPrompt] | None = None
    ) -> ComparedMethod:
        settings = StorySettings(memory=memory)
        return ComparedMethod(
            name, composer.plan(settings, [form.text], form.tokens, always=soft or [])
        )

    ways = [planned("nothing")]
    if lore:
        ways.append(planned("text", memory=lore))
    if prompts:
        ways.append(planned("soft", soft=prompts))
    known = set(words(form.text))
    return ways, {word for entry in entries for word in lore_keywords(entry, known)}


def _named(bench: StudioContext, form: Comparing) -> tuple[list[Entry], list[SoftPrompt]]:
    """The entries and the soft prompts that are asked for; a name may be that of both."""
    book = bench.books.get(form.book) if form.book else None
    shelf = bench.shelf()
    entries, prompts = [], []
    for name in dict.fromkeys(form.names):
        known = book is not None and name in book
        if book is not None and known:
            entries.append(book[name])
        if name in shelf:
            prompts.append(shelf[name])
        elif not known:
            raise ConfigError(
                f"{name!r:.160} is neither an entry of the lorebook nor a soft prompt; expected "
                "one of them; name another"
            )
    return entries, prompts
