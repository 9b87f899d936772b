"""The KoboldAI API, as KoboldAI Lite and SillyTavern call it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from softlore.decode import Token
from softlore.errors import BusyError, InputError, SoftloreError
from softlore.serve.compose import model_name
from softlore.serve.engines import AsyncOutputStream
from softlore.serve.fields import read_grammar, refuse
from softlore.serve.lenient import LenientBody, body_of, read_object, sampling_of
from softlore.serve.logprobs import chat_logprobs, completion_logprobs
from softlore.serve.responses import RETRY_AFTER, event, event_stream, kobold_error, status_of
from softlore.serve.safety import has_key
from softlore.serve.service import (
    FAILURES,
    ActiveResponse,
    GenerationService,
    finish_reason,
    prompt_tokens,
)
from softlore.settings.lenient import Flag, Integer, Strings, Text

PROGRAM = {"result": "KoboldCpp", "version": "1.87"}  # from 1.88 on Lite makes templates otherwise
PROTOCOL = "1.2.5"
HIDDEN_MODEL = "koboldcpp/protected-model"  # what koboldcpp calls it without the API key
STOP_REASONS = {"length": 0, "context": 0, "end": 1, "stop": 2}  # others are -1
# Of koboldcpp's facts on speed, those of what is not here.
NOT_HERE = {"last_seed": -1, "total_img_gens": 0, "hordeexitcounter": -1, "quiet": True}
MAX_KEPT = 64  # log-probabilities of responses, for `last_logprobs`
DEFAULT_TOKENS = 80
MAX_COPIES = 16
TOP_LOGPROBS = 5
BUSY = "Server is busy; please try again later."
Fact = dict[str, Any] | list[Any]
Route = TypeVar("Route", bound=Callable[..., Any])


class GenerateBody(LenientBody):
    """The body of /generate. An odd value counts as the default; other fields are samplers'."""

    model_config = ConfigDict(extra="allow")

    prompt: Text = ""
    memory: Text = ""
    n: Integer = None
    max_context_length: Integer = None
    max_length: Integer = None
    sampler_seed: Integer = None
    stop_sequence: Strings = Field([], validation_alias=AliasChoices("stop_sequence", "stop"))
    trim_stop: Flag = None
    genkey: Text = ""
    logprobs: Flag = None


class KeyBody(BaseModel):
    """A request about the texts of another request."""

    genkey: Text = ""


class CountBody(BaseModel):
    """A text whose tokens are counted."""

    prompt: Text = ""


class PromptBody(BaseModel):
    """The name of a soft prompt."""

    value: Text = ""


def make_router(service: GenerationService) -> APIRouter:
    """The routes under /api."""
    router = APIRouter(tags=["KoboldAI"], responses=FAILURES)
    _add_info(router, service)
    _add_generation(router, service)
    _add_soft_prompt(router, service)
    return router


def respond(error: Exception) -> Response:
    """The response to an error, in the API's own shape."""
    if isinstance(error, BusyError):
        return JSONResponse(kobold_error(BUSY, "service_unavailable"), 503, RETRY_AFTER)
    if isinstance(error, InputError | ValidationError):
        return JSONResponse(kobold_error(error, "bad_input"), 400)
    return JSONResponse(kobold_error(error, "server_error"), status_of(error))


def _add_info(router: APIRouter, service: GenerationService) -> None:
    """The routes that clients call when they connect: model, version, limits, token counts."""
    longest = service.composer.context_length
    both: dict[str, dict[str, Any]] = {
        "info/version": {"result": PROTOCOL},
        "config/max_context_length": {"value": longest},
        "config/max_length": {"value": longest // 2},
    }
    extra: dict[str, dict[str, Any]] = {
        "true_max_context_length": {"value": longest},
        "version": {**PROGRAM, "protected": bool(service.state.settings.api_key)},
        "preloadstory": {},
    }
    for path, fact in both.items():
        _both_versions(router, "GET", path)(_always(fact))
    for path, fact in extra.items():
        router.add_api_route(f"/api/extra/{path}", _always(fact))
    router.add_api_route("/sdapi/v1/sd-models", _always([]))  # Lite asks for models of images

    @_both_versions(router, "GET", "model")
    async def model(request: Request) -> dict[str, str]:
        known = has_key(request.headers, service.state.settings.api_key)
        return {"result": model_name(service.model) if known else HIDDEN_MODEL}

    started = time.monotonic()

    @router.get("/api/extra/perf")
    async def perf() -> dict[str, Any]:
        return _performance(service) | {"uptime": time.monotonic() - started}

    @router.post("/api/extra/tokencount", openapi_extra=body_of(CountBody))
    async def count(request: Request) -> dict[str, Any]:
        body = CountBody.model_validate(await read_object(request))
        value, ids = await run_in_threadpool(service.composer.count, body.prompt)
        return {"value": value, "ids": ids}


def _performance(service: GenerationService) -> dict[str, Any]:
    """How long the newest text took, in seconds and tokens a second, and how busy the server is."""
    load, last = service.state.engine.load(), service.last
    read = written = 0
    first, total, reason = 0.0, 0.0, -1
    if last is not None and (stream := last.streams[-1]).seconds is not None:
        first, total = stream.seconds_to_first or 0.0, stream.seconds
        read, written = sum(map(prompt_tokens, last.requests)), len(stream.ids)
        reason = STOP_REASONS.get(str(stream.finish), -1)
    return {
        "last_process": first,
        "last_eval": total - first,
        "last_process_time": first,
        "last_eval_time": total - first,
        "last_process_speed": read / first if first else 0.0,
        "last_eval_speed": written / (total - first) if total > first else 0.0,
        "last_input_count": read,
        "last_token_count": written,
        "total_gens": service.n_ended,
        "stop_reason": reason,
        "queue": load.waiting,
        "idle": int(not load.running + load.waiting),
        **NOT_HERE,
    }


def _add_generation(router: APIRouter, service: GenerationService) -> None:
    likelihoods: OrderedDict[str, dict[str, Any]] = OrderedDict()  # of responses, by their keys

    def keep(body: GenerateBody, logprobs: dict[str, Any]) -> None:
        if not body.genkey:
            return
        likelihoods.pop(body.genkey, None)
        likelihoods[body.genkey] = logprobs
        while len(likelihoods) > MAX_KEPT:
            likelihoods.popitem(last=False)

    @_both_versions(router, "POST", "generate", openapi_extra=body_of(GenerateBody, samplers=True))
    async def generate(request: Request) -> dict[str, Any]:
        body, response = await _start(service, request)
        tokens = await response.tokens()
        results = [_result(response, stream, tokens, body) for stream in response.streams]
        if body.logprobs:
            keep(body, results[-1]["logprobs"])
        return {"results": results, **response.warnings}

    @router.post("/api/extra/generate/stream", openapi_extra=body_of(GenerateBody, samplers=True))
    async def stream(request: Request) -> Response:
        body, response = await _start(service, request, limit=1)
        return await event_stream(_events(response, body, keep))

    @router.get("/api/extra/last_logprobs")
    async def last_logprobs() -> dict[str, Any]:
        return {"logprobs": None}  # without a key they may be anyone's

    @router.post("/api/extra/last_logprobs", openapi_extra=body_of(KeyBody))
    async def last_logprobs_of(request: Request) -> dict[str, Any]:
        return {"logprobs": likelihoods.get(await _key(request))}

    @router.get("/api/extra/generate/check")
    async def check_any() -> dict[str, Any]:
        return _so_far(service, "")

    @router.post("/api/extra/generate/check", openapi_extra=body_of(KeyBody))
    async def check(request: Request) -> dict[str, Any]:
        return _so_far(service, await _key(request))

    @router.post("/api/extra/abort", openapi_extra=body_of(KeyBody))
    async def abort(request: Request) -> dict[str, str]:
        found = service.find(await _key(request))  # a client that goes away ends its own texts
        for response in found:
            response.cancel()
        return dict.fromkeys(("success", "done"), "true" if found else "false")


def _add_soft_prompt(router: APIRouter, service: GenerationService) -> None:
    """KoboldAI's routes to choose a soft prompt, which is put before every text."""
    state = service.state

    @_both_versions(router, "GET", "config/soft_prompts_list")
    async def names() -> dict[str, Any]:
        return {"values": [{"value": name} for name in await service.prompt_names()]}

    @_both_versions(router, "GET", "config/soft_prompt")
    async def chosen() -> dict[str, str]:
        return {"value": state.chosen}

    @_both_versions(router, "PUT", "config/soft_prompt", openapi_extra=body_of(PromptBody))
    async def choose(request: Request) -> dict[str, str]:
        name = PromptBody.model_validate(await read_object(request)).value.strip()
        if name:
            store = await run_in_threadpool(state.prompt_store.refresh)
            name = (await run_in_threadpool(store.__getitem__, name)).name
        state.chosen = name
        return {}


async def _start(
    service: GenerationService, request: Request, limit: int = MAX_COPIES
) -> tuple[GenerateBody, ActiveResponse]:
    """Starts the texts of a request, at most `limit`."""
    body = GenerateBody.model_validate(await read_object(request))
    sent = body.model_extra or {}
    refuse(sent, body.n or 1)
    chosen = service.state.chosen
    if chosen and chosen not in await service.prompt_names():
        chosen = service.state.chosen = ""  # its file was deleted, and Lite cannot deselect it
    seed = body.sampler_seed
    generation = await service.compose(
        body.prompt,
        max(1, body.max_length or DEFAULT_TOKENS),
        memory=body.memory,
        context_tokens=body.max_context_length or 0,
        always=[chosen] if chosen else [],
        stop=body.stop_sequence,
        seed=seed if seed is not None and seed >= 0 else None,
        logprobs=TOP_LOGPROBS if body.logprobs else None,
        sampling=sampling_of(read_grammar(sent), service.model),
    )
    copies = min(limit, max(1, body.n or 1))
    return body, await service.respond(request, [generation], body, copies, body.genkey)


def _result(
    response: ActiveResponse,
    stream: AsyncOutputStream,
    tokens: Sequence[Sequence[Token]],
    body: GenerateBody,
) -> dict[str, Any]:
    """A text as /generate returns it."""
    text = stream.text + _shown_stop(stream, body)
    result: dict[str, Any] = {"text": text, "finish_reason": finish_reason(stream)}
    if body.logprobs:
        result["logprobs"] = _logprobs(response, stream, tokens[stream.number])
    return result


def _logprobs(
    response: ActiveResponse, stream: AsyncOutputStream, tokens: Sequence[Token]
) -> dict[str, Any]:
    """Log-probabilities in both of OpenAI's shapes, as koboldcpp returns them."""
    arguments = response.model, tokens, len(stream.text)
    return chat_logprobs(*arguments) | completion_logprobs(*arguments)


async def _events(
    response: ActiveResponse,
    body: GenerateBody,
    keep: Callable[[GenerateBody, dict[str, Any]], None],
) -> AsyncGenerator[bytes]:
    """An event for each token, and one at the end that says why the text ended."""
    tokens: list[Token] = []
    with response:
        try:
            async for stream, token in response:
                if token is None:
                    if body.logprobs:
                        keep(body, _logprobs(response, stream, tokens))
                    reason = finish_reason(stream)
                    last = {"token": _shown_stop(stream, body), "finish_reason": reason}
                    yield event({**last, **response.warnings}, "message")
                    continue
                tokens.append(token)
                if token.text:
                    yield event({"token": token.text, "finish_reason": None}, "message")
        except SoftloreError:
            if not any(stream.text for stream in response.streams):
                raise
            yield event({"token": "", "finish_reason": "error"}, "message")


def _shown_stop(stream: AsyncOutputStream, body: GenerateBody) -> str:
    """The stop string that ended a text, where the client wants to see it."""
    return stream.stopped_by or "" if body.trim_stop is False else ""


def _so_far(service: GenerationService, key: str) -> dict[str, Any]:
    texts = [stream.text for response in service.find(key) for stream in response.streams]
    return {"results": [{"text": text} for text in texts or [""]]}


async def _key(request: Request) -> str:
    try:
        return KeyBody.model_validate(await read_object(request)).genkey
    except InputError:  # koboldcpp accepts any body
        return ""


def _always(fact: Fact) -> Callable[[], Coroutine[Any, Any, Fact]]:
    async def answer() -> Fact:
        return fact

    return answer


def _both_versions(
    router: APIRouter, method: str, path: str, **description: Any
) -> Callable[[Route], Route]:
    """A route under /api/v1 and /api/latest; the description of the API shows the first."""

    def add(function: Route) -> Route:
        for version, shown in (("v1", True), ("latest", False)):
            options = {"methods": [method], "include_in_schema": shown, **description}
            router.add_api_route(f"/api/{version}/{path}", function, **options)
        return function

    return add
