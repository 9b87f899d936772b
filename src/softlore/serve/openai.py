"""The OpenAI API: models, completions and chat completions, streamed or whole."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from softlore.context.chat import chat_template, render_chat
from softlore.decode import GenerationRequest
from softlore.errors import (
    BusyError,
    InputError,
    PromptMismatchError,
    SoftloreError,
    UnknownModelError,
    UnknownPromptError,
)
from softlore.serve.compose import model_name
from softlore.serve.fields import read_grammar, refuse
from softlore.serve.lenient import body_of, read_object, sampling_of
from softlore.serve.openai_forms import (
    MAX_KEY,
    ChatBody,
    CompletionBody,
    GenerationBody,
    ResponseBodies,
)
from softlore.serve.responses import DONE, RETRY_AFTER, event, event_stream, openai_error, status_of
from softlore.serve.service import FAILURES, ActiveResponse, GenerationService
from softlore.serve.tools import ToolBox

DEFAULT_TOKENS = 16  # of a completion, as OpenAI has it


def make_router(service: GenerationService) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(tags=["OpenAI"], responses=FAILURES)
    created = int(time.time())

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        base = model_name(service.model)
        names = [base, *(f"{base}:{name}" for name in await service.prompt_names())]
        return {"object": "list", "data": [_model(name, created) for name in names]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        await _prompts_of_model(service, name)
        return _model(name, created)

    @router.post("/v1/completions", openapi_extra=body_of(CompletionBody, samplers=True))
    async def completions(request: Request) -> Response:
        body = CompletionBody.model_validate(await read_object(request))
        response, prompts = await start_completions(service, request, body)
        echoed = [_text(service, one) if body.echo else "" for one in prompts]
        return await _respond(response, body, ResponseBodies(response, body, echoed))

    @router.post("/v1/chat/completions", openapi_extra=body_of(ChatBody, samplers=True))
    async def chat(request: Request) -> Response:
        body = ChatBody.model_validate(await read_object(request))
        box = ToolBox(body.tools, body.tool_choice, body.parallel_tool_calls is not False)
        chat = await run_in_threadpool(render_chat, service.model, body.messages, box.tools)
        compose = await _composer(service, body, box)
        stops = [*body.stops, *chat.stop]
        composed = await compose(chat.turns, body.tokens(None), memory=chat.memory, stop=stops)
        response = await _start(service, request, body, [composed])
        bodies = ResponseBodies(response, body, strip=chat.strip, box=box)
        return await _respond(response, body, bodies)

    return router


async def start_completions(
    service: GenerationService, request: Request, body: CompletionBody
) -> tuple[ActiveResponse, list[str | list[int]]]:
    """Starts the texts that complete the prompts of a body; returns the prompts, too."""
    prompts = _prompts(body.prompt)
    compose = await _composer(service, body)
    options: dict[str, Any] = {"memory": body.memory, "stop": body.stops}
    options["prompt_logprobs"] = body.prompt_logprobs
    tokens = body.tokens(DEFAULT_TOKENS)
    requests = [await compose(prompt, tokens, **options) for prompt in prompts]
    return await _start(service, request, body, requests), prompts


def respond(error: Exception) -> Response:
    """The response to an error, in the API's own shape."""
    if isinstance(error, BusyError):
        content = openai_error(error, "service_unavailable", "busy")
        return JSONResponse(content, 503, RETRY_AFTER)
    if isinstance(error, UnknownModelError):
        content = openai_error(error, "invalid_request_error", "model_not_found", "model")
        return JSONResponse(content, 404)
    if isinstance(error, ValidationError):
        return JSONResponse(_invalid_field(error), 400)
    if isinstance(error, InputError):
        return JSONResponse(openai_error(error, "invalid_request_error", _code(error)), 400)
    return JSONResponse(openai_error(error, "server_error", "engine_error"), status_of(error))


def _invalid_field(error: ValidationError) -> dict[str, Any]:
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0]) if first["loc"] else None
    message = f"{field or 'the body'}: {first['msg']}; expected what OpenAI's API takes; fix it"
    return openai_error(message, "invalid_request_error", "invalid_value", field)


def _code(error: InputError) -> str | None:
    if isinstance(error, UnknownPromptError):
        return "prompt_not_found"
    return "prompt_mismatch" if isinstance(error, PromptMismatchError) else "invalid_value"


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "softlore"}


async def _prompts_of_model(service: GenerationService, model: str | None) -> list[str]:
    """The soft prompts that a model's name stands for: MODEL, or MODEL:NAME.

    Raises:
        UnknownModelError: no such model is served.
    """
    base = model_name(service.model)
    if not model or model in (base, service.model.name):
        return []
    names = await service.prompt_names()
    name = model.removeprefix(f"{base}:")
    if name == model or name not in names:
        listed = ", ".join([base, *(f"{base}:{known}" for known in names[:10])])
        more = " …" if len(names) > 10 else ""
        raise UnknownModelError(
            f"there is no model {model!r:.200}; expected one of: {listed}{more}; name another"
        )
    return [name]


def _prompts(prompt: Any) -> list[str | list[int]]:
    """The texts to complete, or their ids."""
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if prompts and isinstance(prompts[0], int):
        prompts = [prompts]
    return [one or "" for one in prompts] or [""]


def _text(service: GenerationService, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else service.model.decode(prompt)


async def _composer(
    service: GenerationService, body: GenerationBody, box: ToolBox | None = None
) -> Callable[..., Awaitable[GenerationRequest]]:
    """`GenerationService.compose` with the settings of a body. Raises ConfigError."""
    refuse(body.model_extra or {}, body.n or 1)
    fields = read_grammar(body.sampling_fields)
    if box is not None:
        fields = box.constrain(fields, chat_template(service.model, True))
    return partial(
        service.compose,
        context_tokens=body.context_tokens or 0,
        always=await _prompts_of_model(service, body.model),
        seed=body.used_seed,
        logprobs=body.top_logprobs_shown,
        sampling=sampling_of(fields, service.model),
    )


async def _start(
    service: GenerationService,
    request: Request,
    body: GenerationBody,
    requests: Sequence[GenerationRequest],
) -> ActiveResponse:
    load, copies = service.state.engine.load(), body.n or 1
    if copies * len(requests) > load.slots + load.queue:
        raise InputError(
            f"{copies * len(requests)} texts are asked for at once; expected at most "
            f"{load.slots + load.queue}, the size of the server's queue; ask for fewer"
        )
    return await service.respond(request, requests, body, copies, body.genkey[:MAX_KEY])


async def _respond(
    response: ActiveResponse, body: GenerationBody, bodies: ResponseBodies
) -> Response:
    if body.stream:
        return await event_stream(_events(response, bodies))
    return JSONResponse(bodies.whole(await response.tokens()))


async def _events(response: ActiveResponse, bodies: ResponseBodies) -> AsyncGenerator[bytes]:
    """The chunks of a stream; an error after the first of them is an event, as OpenAI sends it."""
    with response:
        try:
            async for stream, token in response:
                for chunk in bodies.chunks(stream.number, token):
                    yield event(chunk)
        except SoftloreError as error:
            if not bodies.started:
                raise
            yield event(openai_error(error, "server_error", "engine_error"))
            return
    if (usage := bodies.usage_chunk()) is not None:
        yield event(usage)
    yield DONE
