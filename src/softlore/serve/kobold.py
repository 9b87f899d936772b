"""The KoboldAI API, as KoboldAI Lite and SillyTavern call it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from softlore.decode import Token
from softlore.errors import BusyError, InputError, SoftloreError
from softlore.model import LanguageModel
from softlore.serve.compose import ClientRequest, model_name
from softlore.serve.engines import AsyncOutputStream
from softlore.serve.lenient import (
    Flag,
    Strings,
    Text,
    Whole,
    body_of,
    read_object,
    sampling_of,
    strings,
)
from softlore.serve.logprobs import as_chat, as_completion
from softlore.serve.responses import RETRY_AFTER, event, event_stream, kobold_error
from softlore.serve.service import (
    FAILURES,
    ActiveResponse,
    GenerationService,
    answering,
    reason,
)
from softlore.serve.state import ServerState

PROGRAM = {"result": "KoboldCpp", "version": "1.87"}  # from 1.88 on Lite makes templates otherwise
PROTOCOL = "1.2.5"
USUAL_TOKENS = 80
MOST_COPIES = 16
LIKELIEST = 5  # tokens told beside each, where they are asked for
Route = TypeVar("Route", bound=Callable[..., Any])
BUSY = "Server is busy; please try again later."


class Generate(BaseModel):
    """What a client may send; anything else is ignored, and what is odd has its default."""

    model_config = ConfigDict(extra="ignore")

    prompt: Text = ""
    memory: Text = ""
    n: Whole = None
    max_context_length: Whole = None
    max_length: Whole = None
    sampler_seed: Whole = None
    stop_sequence: Strings = []
    trim_stop: Flag = None
    genkey: Text = ""
    logprobs: Flag = None


class Keyed(BaseModel):
    """A request about a text that is being written."""

    genkey: Text = ""


class Counted(BaseModel):
    """A text whose tokens are counted."""

    prompt: Text = ""


class Chosen(BaseModel):
    """A soft prompt's name."""

    value: Text = ""


def make_router(desk: GenerationService) -> APIRouter:
    """The routes under /api."""
    router = APIRouter(route_class=answering(reply), tags=["KoboldAI"], responses=FAILURES)
    state = desk.state
    _add_facts(router, state, desk)
    _add_writing(router, desk)
    _add_prompts(router, state, desk)
    return router


def reply(error: Exception) -> Response:
    """An error in the API's own shape."""
    if isinstance(error, BusyError):
        headers = RETRY_AFTER
        return JSONResponse(kobold_error(BUSY, "service_unavailable"), 503, headers)
    if isinstance(error, InputError | ValidationError):
        return JSONResponse(kobold_error(error, "bad_input"), 400)
    return JSONResponse(kobold_error(error, "server_error"), 503)


def _add_facts(router: APIRouter, state: ServerState, desk: GenerationService) -> None:
    """What clients ask when they connect."""
    settings, model = state.settings, state.engine.model

    @_both(router, "GET", "model")
    async def name() -> dict[str, str]:
        return {"result": model_name(model)}

    @_both(router, "GET", "info/version")
    async def protocol() -> dict[str, str]:
        return {"result": PROTOCOL}

    @_both(router, "GET", "config/max_context_length")
    @router.get("/api/extra/true_max_context_length")
    async def longest() -> dict[str, int]:
        return {"value": desk.texts.longest}

    @_both(router, "GET", "config/max_length")
    async def usual_length() -> dict[str, int]:
        return {"value": desk.texts.longest // 2}

    @router.get("/api/extra/version")
    async def program() -> dict[str, Any]:
        return {**PROGRAM, "protected": bool(settings.api_key)}

    @router.get("/api/extra/preloadstory")
    async def preloaded() -> dict[str, Any]:
        return {}

    @router.post("/api/extra/tokencount", openapi_extra=body_of(Counted))
    async def count(request: Request) -> dict[str, Any]:
        sent = Counted.model_validate(await read_object(request))
        value, ids = await run_in_threadpool(desk.texts.count, sent.prompt)
        return {"value": value, "ids": ids}


def _add_writing(router: APIRouter, desk: GenerationService) -> None:
    @_both(router, "POST", "generate", openapi_extra=body_of(Generate, samplers=True))
    async def generate(request: Request) -> dict[str, Any]:
        sent, answer = await _begin(desk, request)
        tokens = await answer.whole()
        results = [
            _result(desk.state.engine.model, running, some, sent)
            for running, some in zip(answer.running, tokens, strict=True)
        ]
        return {"results": results}

    @router.post("/api/extra/generate/stream", openapi_extra=body_of(Generate, samplers=True))
    async def stream(request: Request) -> Response:
        sent, answer = await _begin(desk, request, most=1)
        return await event_stream(_events(answer, sent))

    @router.get("/api/extra/generate/check")
    async def check_any() -> dict[str, Any]:
        return _so_far(desk, "")

    @router.post("/api/extra/generate/check", openapi_extra=body_of(Keyed))
    async def check(request: Request) -> dict[str, Any]:
        return _so_far(desk, await _key(request))

    @router.post("/api/extra/abort", openapi_extra=body_of(Keyed))
    async def abort(request: Request) -> dict[str, str]:
        key = await _key(request)
        found = desk.find(key)
        if not found and not key:
            found = desk.answers[-1:]  # of the only one who writes, most likely
        for answer in found:
            answer.cancel()
        return {"success": "true" if found else "false", "done": "true" if found else "false"}


def _add_prompts(router: APIRouter, state: ServerState, desk: GenerationService) -> None:
    """KoboldAI's own choice of a soft prompt, which stands before every text."""

    @_both(router, "GET", "config/soft_prompts_list")
    async def names() -> dict[str, Any]:
        found = await run_in_threadpool(desk.texts.names)
        return {"values": [{"value": name} for name in found]}

    @_both(router, "GET", "config/soft_prompt")
    async def chosen() -> dict[str, str]:
        return {"value": state.chosen}

    @_both(router, "PUT", "config/soft_prompt", openapi_extra=body_of(Chosen))
    async def choose(request: Request) -> dict[str, str]:
        name = Chosen.model_validate(await read_object(request)).value.strip()
        if name:
            name = (await run_in_threadpool(desk.texts.prompt, name)).name
        state.chosen = name
        return {}


async def _begin(
    desk: GenerationService, request: Request, most: int = MOST_COPIES
) -> tuple[Generate, ActiveResponse]:
    """Starts the texts that a request asks for, at most so many."""
    fields = await read_object(request)
    sent = Generate.model_validate(fields)
    chosen = desk.state.chosen
    if chosen and chosen not in await run_in_threadpool(desk.texts.names):
        chosen = desk.state.chosen = ""  # its file is gone, and Lite has no way to say so
    seed = sent.sampler_seed
    ask = ClientRequest(
        [sent.prompt],
        memory=sent.memory,
        limit=sent.max_context_length or 0,
        tokens=max(1, sent.max_length or USUAL_TOKENS),
        always=[chosen] if chosen else [],
        stop=sent.stop_sequence or strings(fields.get("stop")),
        seed=seed if seed is not None and seed >= 0 else None,
        logprobs=LIKELIEST if sent.logprobs else None,
        sampling=sampling_of(fields, desk.state.engine.model),
    )
    copies = min(most, max(1, sent.n or 1))
    return sent, await desk.answer(request, [ask], copies, sent.genkey)


def _result(
    model: LanguageModel, running: AsyncOutputStream, tokens: Sequence[Token], sent: Generate
) -> dict[str, Any]:
    """A text as /generate tells of it."""
    text = running.text + _stop_shown(running, sent)
    result: dict[str, Any] = {"text": text, "finish_reason": reason(running)}
    if sent.logprobs:
        told = as_completion(model, tokens, len(running.text))
        result["logprobs"] = as_chat(model, tokens, len(running.text)) | told
    return result


async def _events(answer: ActiveResponse, sent: Generate) -> AsyncGenerator[bytes]:
    """The tokens of a text, and a last event that says why it ended."""
    async with aclosing(answer.told()) as told:
        try:
            async for number, token in told:
                running = answer.running[number]
                if token is None:
                    last = {"token": _stop_shown(running, sent), "finish_reason": reason(running)}
                    yield event(last, "message")
                elif token.text:
                    yield event({"token": token.text, "finish_reason": None}, "message")
        except SoftloreError:
            if not any(running.text for running in answer.running):
                raise
            yield event({"token": "", "finish_reason": "error"}, "message")


def _stop_shown(running: AsyncOutputStream, sent: Generate) -> str:
    """The stop string that ended a text, where the client wants to see it."""
    return running.stopped_by or "" if sent.trim_stop is False else ""


def _so_far(desk: GenerationService, key: str) -> dict[str, Any]:
    texts = [running.text for answer in desk.find(key) for running in answer.running]
    return {"results": [{"text": text} for text in texts or [""]]}


async def _key(request: Request) -> str:
    try:
        return Keyed.model_validate(await read_object(request)).genkey
    except InputError:  # any body will do, as it does for koboldcpp
        return ""


def _both(router: APIRouter, method: str, path: str, **described: Any) -> Callable[[Route], Route]:
    """A route of the KoboldAI API proper, which has two names."""

    def add(function: Route) -> Route:
        for version, shown in (("v1", True), ("latest", False)):
            at = f"/api/{version}/{path}"
            kept = described if shown else {}
            router.add_api_route(at, function, methods=[method], include_in_schema=shown, **kept)
        return function

    return add
