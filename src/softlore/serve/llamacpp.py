"""The API of llama.cpp's server, as SillyTavern calls it, with vLLM's routes of the same paths."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from softlore.context.chat import chat_template
from softlore.decode import Token
from softlore.errors import InputError, SoftloreError
from softlore.serve.compose import model_name
from softlore.serve.engines import AsyncOutputStream
from softlore.serve.lenient import body_of, read_object
from softlore.serve.logprobs import chat_logprobs
from softlore.serve.openai import start_completions
from softlore.serve.openai_forms import MAX_LOGPROBS, CompletionBody
from softlore.serve.responses import event, event_stream, response_to
from softlore.serve.service import FAILURES, ActiveResponse, GenerationService, prompt_tokens
from softlore.settings.lenient import Flag, Integer, Text

PATHS = ("/props", "/completion", "/tokenize", "/detokenize")
STOP_TYPES = {"length": "limit", "context": "limit", "end": "eos", "stop": "word"}


class LlamaCppBody(CompletionBody):
    """The body of /completion: as of /v1/completions, by llama.cpp's names."""

    n_probs: Integer = None
    n_predict: Integer = None

    def tokens(self, default: int | None) -> int | None:
        """The limit of new tokens: `n_predict`, negative for none, else as `CompletionBody.tokens`.

        `default` is ignored, as llama.cpp has no limit by default.
        """
        return super().tokens(None) if self.n_predict is None else max(-1, self.n_predict)

    @property
    def top_logprobs_shown(self) -> int | None:
        return min(MAX_LOGPROBS, self.n_probs) if self.n_probs and self.n_probs > 0 else None


class TokenizeBody(BaseModel):
    """A text to be made into ids: `content` (llama.cpp), or `prompt` (vLLM)."""

    content: Text | None = None
    prompt: Text = ""
    add_special: Flag = None
    add_special_tokens: Flag = None
    with_pieces: Flag = None


class DetokenizeBody(BaseModel):
    """Ids to be made into text."""

    tokens: list[int] = Field([], max_length=1_000_000)


def make_router(service: GenerationService) -> APIRouter:
    """The routes of llama.cpp's server."""
    router = APIRouter(tags=["llama.cpp"], responses=FAILURES)

    @router.get("/props")
    async def props() -> dict[str, Any]:
        return {
            "default_generation_settings": {"n_ctx": service.composer.context_length},
            "n_ctx": service.composer.context_length,
            "total_slots": service.state.engine.slots,
            "model_path": model_name(service.model),
            "chat_template": chat_template(service.model),
        }

    @router.post("/completion", openapi_extra=body_of(LlamaCppBody, samplers=True))
    async def completion(request: Request) -> Response:
        body = LlamaCppBody.model_validate(await read_object(request))
        response, _ = await start_completions(service, request, body)
        if body.stream:
            return await event_stream(_events(response, body))
        tokens = await response.tokens()
        found = [
            _told(response, stream, tokens[stream.number], body) | _end(response, stream)
            for stream in response.streams
        ]
        return JSONResponse(found[0] if len(found) == 1 else found)

    @router.post("/tokenize", openapi_extra=body_of(TokenizeBody))
    async def tokenize(request: Request) -> dict[str, Any]:
        body = TokenizeBody.model_validate(await read_object(request))
        return await run_in_threadpool(_tokenize, service, body)

    @router.post("/detokenize", openapi_extra=body_of(DetokenizeBody))
    async def detokenize(request: Request) -> dict[str, str]:
        body = DetokenizeBody.model_validate(await read_object(request))
        service.composer.check_ids(body.tokens)
        text = service.model.decode(body.tokens)
        return {"content": text, "prompt": text}  # of llama.cpp, of vLLM

    return router


def respond(error: Exception) -> Response:
    """The response to an error, in llama.cpp's shape."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the body"
        message = f"{field}: {first['msg']}; expected what llama.cpp's API takes; fix it"
        return response_to("/completion", InputError(message))
    return response_to("/completion", error)


def _tokenize(service: GenerationService, body: TokenizeBody) -> dict[str, Any]:
    model = service.model
    if body.content is None:
        _, ids = service.composer.count(body.prompt)
        ids = [*([] if body.add_special_tokens is False else model.bos), *ids]
        return {"count": len(ids), "max_model_len": service.composer.context_length, "tokens": ids}
    _, ids = service.composer.count(body.content)
    ids = [*(model.bos if body.add_special else []), *ids]
    if body.with_pieces:
        return {"tokens": [{"id": i, "piece": model.decode([i], inside=True)} for i in ids]}
    return {"tokens": ids}


async def _events(response: ActiveResponse, body: LlamaCppBody) -> AsyncGenerator[bytes]:
    """An event for each token, and one at the end of each text, which says why it ended."""
    with response:
        try:
            async for stream, token in response:
                if token is None:
                    told = _told(response, stream, [], body) | _end(response, stream)
                    yield event(told | {"content": ""})
                elif token.text or body.top_logprobs_shown is not None:
                    told = _told(response, stream, [token], body)
                    yield event(told | {"content": token.text, "stop": False})
        except SoftloreError as error:
            if not any(stream.text for stream in response.streams):
                raise
            yield event({"error": {"code": 503, "message": str(error), "type": "server_error"}})


def _told(
    response: ActiveResponse,
    stream: AsyncOutputStream,
    tokens: Sequence[Token],
    body: LlamaCppBody,
) -> dict[str, Any]:
    """What a response says of a text, with its tokens or those of one event."""
    told = {
        "index": stream.number,
        "content": stream.text,
        "tokens": [token.id for token in tokens if token.id is not None],
        "id_slot": stream.number,
        "tokens_predicted": len(stream.ids),
        "tokens_evaluated": sum(map(prompt_tokens, response.requests)),
    }
    if body.top_logprobs_shown is not None:
        length = max(1, len(stream.text))
        content = chat_logprobs(response.model, tokens, length)["content"]
        # SillyTavern shows a token by its "content".
        told["completion_probabilities"] = [one | {"content": one["token"]} for one in content]
    return told


def _end(response: ActiveResponse, stream: AsyncOutputStream) -> dict[str, Any]:
    """What is known once a text has ended."""
    first, total = stream.seconds_to_first or 0.0, stream.seconds or 0.0
    usage = stream.cache_usage
    return {
        **response.warnings,
        "stop": True,
        "stop_type": STOP_TYPES.get(str(stream.finish), "none"),
        "stopping_word": stream.stopped_by or "",
        "model": model_name(response.model),
        "truncated": False,
        "tokens_cached": usage.reused if usage is not None else 0,
        "timings": {
            "prompt_ms": 1000 * first,
            "predicted_n": len(stream.ids),
            "predicted_ms": 1000 * (total - first),
        },
    }
