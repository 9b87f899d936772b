"""The writer's tools: chances of tokens and others to take, a sentence anew, the exact context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from softlore.decode import GenerationRequest, Token
from softlore.errors import StoryError
from softlore.lore.sentences import ends
from softlore.model import LanguageModel
from softlore.prompts import SoftPrompt
from softlore.serve.engines import OutputQueue
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.forms import OtherToken, RewriteForm
from softlore.serve.studio.open_stories import OpenStory
from softlore.story import Story, Turn
from softlore.story.seams import SentenceTrimmer
from softlore.story.session import DRAW

ALTERNATIVES = 6  # likeliest tokens that are saved with each
CHANCES = "chances"  # of a turn's data
MAX_TOKENS = 2000  # of a turn whose chances are saved
SENTENCE = 60  # tokens of a sentence at most


def make_router(context: StudioContext) -> APIRouter:
    """/stories/NAME/context, and /tokens, /take and /rewrite of its turns."""
    router = APIRouter(prefix="/stories/{name}")
    stories = context.stories

    @router.get("/context")
    def read_context(name: str, tokens: int = 80) -> list[dict[str, str]]:
        """What the model would read, word by word: texts, and the names of soft prompts."""
        with stories.use(name) as story, story.lock:
            pieces = story.session().plan_turn(tokens).context
        return [
            {"soft": piece.name} if isinstance(piece, SoftPrompt) else {"text": piece}
            for piece in pieces
        ]

    @router.get("/turns/{turn}/tokens")
    def tokens(name: str, turn: int) -> list[dict[str, Any]]:
        """The tokens of a turn with their chances and others', as far as they are known."""
        with stories.use(name) as story:
            return _tokens(_turn(story.story, turn))

    @router.post("/turns/{turn}/take")
    def take(name: str, turn: int, form: OtherToken) -> dict[str, Any]:
        """Ends the turn with another token, in a new alternative; the old one stays."""
        with stories.use(name) as story:
            _take(story.story, _turn(story.story, turn), form)
            return story.to_dict()

    @router.post("/turns/{turn}/rewrite")
    async def rewrite(name: str, turn: int, form: RewriteForm) -> list[str]:
        """Sentences that may stand at a place of a turn, written from what is before it."""
        story = await run_in_threadpool(stories.acquire, name)
        try:
            requests = await run_in_threadpool(_sentence_requests, story, turn, form)
            return await _sentences(context, requests)
        finally:
            stories.release(story)

    return router


def token_chances(
    model: LanguageModel, tokens: Sequence[Token], trimmer: SentenceTrimmer
) -> list[list[Any]]:
    """The text, chance and alternatives of each token that has a text, to save with a turn.

    `trimmer`: that the turn went through; its lead is a token without alternatives.
    """
    rows: list[list[Any]] = []
    whole = True  # the token's text is its own: none before it was held back
    for token in tokens[:MAX_TOKENS]:
        if not token.text:
            whole = token.id in model.eos_ids
            continue
        others = [
            [text, _chance(logprob)]
            for id, logprob in token.top.items()
            if id != token.id and "\ufffd" not in (text := model.decode([id], inside=True)) and text
        ]
        rows.append([token.text, _chance(token.logprob), others if whole else []])
        whole = True
    if trimmer.strip and rows:
        text, chance, _ = rows[0]
        rows[0] = [text.lstrip(), chance, []]
    return [[trimmer.lead, 1.0, []], *rows] if trimmer.lead else rows


def _chance(logprob: float | None) -> float:
    return 0.0 if logprob is None else round(math.exp(min(0.0, logprob)), 4)


def _turn(story: Story, number: int) -> Turn:
    for turn in story.turns:
        if turn.id == number:
            return turn
    raise StoryError(
        f"turn {number} is not in the story {story.name!r} as it is now; expected one of its "
        f"{len(story.turns)} turns; go to a branch that has it first"
    )


def _tokens(turn: Turn) -> list[dict[str, Any]]:
    """The tokens as far as the turn still has their text."""
    rows, rest = [], turn.text
    for text, chance, others in _saved(turn):
        if not rest.startswith(text):
            break
        rest = rest[len(text) :]
        likely = [{"text": other, "chance": share} for other, share in others]
        rows.append({"text": text, "chance": chance, "others": likely})
    return rows


def _saved(turn: Turn) -> list[Any]:
    rows = turn.data.get(CHANCES)
    return rows if isinstance(rows, list) else []


def _take(story: Story, turn: Turn, form: OtherToken) -> None:
    known = _tokens(turn)
    rows = known[form.token : form.token + 1]
    others = {other["text"] for row in rows for other in row["others"]}
    if form.text not in others:
        raise StoryError(
            f"token {form.token} of turn {turn.id} has no alternative {form.text!r:.80}; expected "
            "one of those that the turn was written with; look at its tokens again"
        )
    before = "".join(row["text"] for row in known[: form.token])
    data = {**turn.data, CHANCES: _saved(turn)[: form.token], "taken": form.text}
    story.add(before + form.text, by="model", data=data, after=turn.parent)


def _sentence_requests(story: OpenStory, number: int, form: RewriteForm) -> list[GenerationRequest]:
    """Requests to continue the story up to a place of a turn."""
    turn = _turn(story.story, number)
    if form.start > len(turn.text):
        raise StoryError(
            f"turn {number} has {len(turn.text)} characters; expected a place in it, not "
            f"{form.start}; look at the turn again"
        )
    before = [other for other in story.story.turns if other.id < number]
    part = replace(turn, text=turn.text[: form.start])
    turns = [*before, part] if part.text else before
    with story.lock:
        request = story.session().draft(SENTENCE, turns=turns, within=True).request
    seed = request.seed or 0
    return [replace(request, seed=(seed + n) % DRAW) for n in range(form.samples)]


async def _sentences(context: StudioContext, requests: Sequence[GenerationRequest]) -> list[str]:
    outputs = OutputQueue()
    try:
        for request in requests:
            await context.state.engine.start(request, outputs)
        async for output, token in outputs:
            if token is not None and any(ends(output.text.lstrip())):
                output.cancel()
    finally:
        outputs.cancel()
    written = [output.text.lstrip() for output in outputs.streams]
    texts = [text[: next(ends(text), None)].strip() for text in written]
    return [text for text in dict.fromkeys(texts) if text]
