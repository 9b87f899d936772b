"""The OpenAI API: models, completions and chat completions, event_stream or whole."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from softlore.decode import Token
from softlore.errors import (
    BusyError,
    InputError,
    PromptMismatchError,
    SoftloreError,
    UnknownModelError,
    UnknownPromptError,
)
from softlore.serve.chat import chat_of, read_messages
from softlore.serve.compose import ClientRequest, lines, model_name
from softlore.serve.lenient import (
    body_of,
    first,
    flag,
    read_object,
    sampling_of,
    strings,
    text,
    whole,
)
from softlore.serve.openai_forms import Chatted, Common, Completed, Replies
from softlore.serve.responses import DONE, RETRY_AFTER, event, event_stream, openai_error
from softlore.serve.service import FAILURES, ActiveResponse, GenerationService, answering

USUAL_TOKENS = 16  # of a completion, as OpenAI has it
LONGEST_KEY = 200


def make_router(desk: GenerationService) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(route_class=answering(reply), tags=["OpenAI"], responses=FAILURES)
    state = desk.state
    begun = int(time.time())

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = await run_in_threadpool(desk.texts.names)
        base = model_name(state.engine.model)
        listed = [base, *(f"{base}:{name}" for name in names)]
        return {"object": "list", "data": [_model(name, begun) for name in listed]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        await run_in_threadpool(_always, desk, name)
        return _model(name, begun)

    @router.post("/v1/completions", openapi_extra=body_of(Completed, samplers=True))
    async def completions(request: Request) -> Response:
        fields = await read_object(request)
        sent = Completed.model_validate(fields)
        prompts = await run_in_threadpool(_prompts, desk, sent.prompt)
        always = await run_in_threadpool(_always, desk, sent.model)
        asks = [_ask_to_complete(desk, sent, fields, one, always) for one in prompts]
        answer = await _begin(desk, request, sent, fields, asks)
        replies = Replies(answer, sent, prompts if sent.echo else [""] * len(prompts))
        return await _told(answer, sent, replies)

    @router.post("/v1/chat/completions", openapi_extra=body_of(Chatted, samplers=True))
    async def chat(request: Request) -> Response:
        fields = await read_object(request)
        sent = Chatted.model_validate(fields)
        always = await run_in_threadpool(_always, desk, sent.model)
        ask, bare = await run_in_threadpool(_ask_to_chat, desk, sent, fields, always)
        answer = await _begin(desk, request, sent, fields, [ask])
        return await _told(answer, sent, Replies(answer, sent, [""], chat=True, bare=bare))

    return router


def reply(error: Exception) -> Response:
    """An error in the API's own shape."""
    if isinstance(error, BusyError):
        headers = RETRY_AFTER
        return JSONResponse(openai_error(error, "service_unavailable", "busy"), 503, headers)
    if isinstance(error, UnknownModelError):
        what = openai_error(error, "invalid_request_error", "model_not_found", "model")
        return JSONResponse(what, 404)
    if isinstance(error, ValidationError):
        return JSONResponse(_wrong_field(error), 400)
    if isinstance(error, InputError):
        return JSONResponse(openai_error(error, "invalid_request_error", _code(error)), 400)
    return JSONResponse(openai_error(error, "server_error", "engine_error"), 503)


def _wrong_field(error: ValidationError) -> dict[str, Any]:
    wrong = error.errors(include_url=False, include_input=False)[0]
    field = str(wrong["loc"][0]) if wrong["loc"] else None
    told = f"{field or 'the body'}: {wrong['msg']}; expected what OpenAI's API takes; mend it"
    return openai_error(told, "invalid_request_error", "invalid_value", field)


def _code(error: InputError) -> str | None:
    if isinstance(error, UnknownPromptError):
        return "prompt_not_found"
    return "prompt_mismatch" if isinstance(error, PromptMismatchError) else "invalid_value"


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "softlore"}


def _always(desk: GenerationService, model: str | None) -> list[str]:
    """The soft prompts that a model's name stands for: MODEL, or MODEL:NAME.

    Raises:
        UnknownModelError: no such model is served.
    """
    base = model_name(desk.state.engine.model)
    if not model or model in (base, desk.state.engine.model.name):
        return []
    names = desk.texts.names()
    name = model.removeprefix(f"{base}:")
    if name == model or name not in names:
        listed = ", ".join([base, *(f"{base}:{one}" for one in names[:10])])
        more = " …" if len(names) > 10 else ""
        raise UnknownModelError(
            f"there is no model {model!r:.200}; expected one of: {listed}{more}; name another"
        )
    return [name]


def _prompts(desk: GenerationService, sent: Any) -> list[str]:
    """The texts to complete; ids are turned into text."""
    some = sent if isinstance(sent, list) else [sent or ""]
    if some and isinstance(some[0], int):
        some = [some]
    model = desk.state.engine.model
    for one in some:
        wrong = [i for i in one if not 0 <= i < model.vocab_size] if isinstance(one, list) else []
        if wrong:
            raise InputError(
                f"prompt holds the id {wrong[0]}; expected ids of {model.name!r}, below "
                f"{model.vocab_size}; send text"
            )
    return [one if isinstance(one, str) else model.decode(one) for one in some or [""]]


def _ask_to_complete(
    desk: GenerationService,
    sent: Completed,
    fields: dict[str, Any],
    prompt: str,
    always: Sequence[str],
) -> ClientRequest:
    limit = whole(first(fields, "max_context_length", "truncation_length"))
    return ClientRequest(
        lines(prompt),
        memory=text(fields.get("memory")),
        limit=max(0, limit or 0),
        tokens=_tokens(sent, fields, USUAL_TOKENS),
        always=always,
        stop=_stops(fields),
        seed=_seed(sent, fields),
        logprobs=sent.likeliest,
        sampling=sampling_of(fields, desk.state.engine.model),
    )


def _ask_to_chat(
    desk: GenerationService, sent: Chatted, fields: dict[str, Any], always: Sequence[str]
) -> tuple[ClientRequest, bool]:
    model = desk.state.engine.model
    chat = chat_of(model, read_messages(sent.messages))
    ask = ClientRequest(
        chat.turns,
        memory=chat.memory,
        limit=max(0, whole(first(fields, "max_context_length", "truncation_length")) or 0),
        tokens=_tokens(sent, fields, None),
        always=always,
        messages=True,
        stop=[*_stops(fields), *chat.stop],
        seed=_seed(sent, fields),
        logprobs=sent.likeliest,
        sampling=sampling_of(fields, model),
    )
    return ask, chat.bare


def _tokens(sent: Common, fields: dict[str, Any], usual: int | None) -> int | None:
    """How many tokens to write; None, or a number below 0, is as many as there is room for."""
    aliases = whole(first(fields, "max_new_tokens", "n_predict", "max_length"))
    asked = next(
        (n for n in (sent.max_completion_tokens, sent.max_tokens, aliases) if n is not None), usual
    )
    if asked == 0:
        raise InputError("max_tokens is 0; expected 1 or more; ask for more")
    return None if asked is None or asked < 0 else asked


def _stops(fields: dict[str, Any]) -> list[str]:
    found = [*strings(fields.get("stop")), *strings(fields.get("stopping_strings"))]
    return list(dict.fromkeys([*found, *strings(fields.get("stop_sequence"))]))


def _seed(sent: Common, fields: dict[str, Any]) -> int | None:
    """OpenAI's seed, or KoboldAI's, which is -1 for none."""
    seed = sent.seed if sent.seed is not None else whole(fields.get("sampler_seed"))
    return seed if seed is not None and seed >= 0 else None


async def _begin(
    desk: GenerationService,
    request: Request,
    sent: Common,
    fields: dict[str, Any],
    asks: Sequence[ClientRequest],
) -> ActiveResponse:
    load = desk.state.engine.load()
    copies = sent.n or 1
    if copies * len(asks) > load.slots + load.queue:
        raise InputError(
            f"{copies * len(asks)} texts are asked for at once; expected at most "
            f"{load.slots + load.queue}, which is all that this server holds; ask for fewer"
        )
    return await desk.answer(request, asks, copies, text(fields.get("genkey"))[:LONGEST_KEY])


async def _told(answer: ActiveResponse, sent: Common, replies: Replies) -> Response:
    if flag(sent.stream):
        return await event_stream(_events(answer, replies))
    return JSONResponse(replies.whole(await answer.whole()))


async def _events(answer: ActiveResponse, replies: Replies) -> AsyncGenerator[bytes]:
    """The chunks of a stream; an error among them is told as OpenAI does."""
    async with aclosing(answer.told()) as told:
        try:
            async for number, token in told:
                for chunk in _chunks(replies, number, token):
                    yield event(chunk)
        except SoftloreError as error:
            if not replies.begun:
                raise
            yield event(openai_error(error, "server_error", "engine_error"))
            return
    if (usage := replies.usage_chunk()) is not None:
        yield event(usage)
    yield DONE


def _chunks(replies: Replies, number: int, token: Token | None) -> list[dict[str, Any]]:
    chunks = replies.beginning(number)
    return [
        *chunks,
        *(replies.ending(number) if token is None else replies.going_on(number, token)),
    ]
