"""A vLLM server as an engine: contexts go there as ids or embedding rows, tokens come back.

Source of the request's form: vLLM's OpenAI-compatible server, 0.32, started with
`--enable-prompt-embeds`. The texts share its batch; here is the tokenizer and the embedding table.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx
import torch

from softlore.context import Tree, compose, splice
from softlore.context.compose import ContextLike
from softlore.context.splice import check_length
from softlore.decode import GenerationRequest, OutputStream, SamplingParams, Token
from softlore.decode.conditioning import weighted
from softlore.decode.prefix_cache import cache_keys
from softlore.decode.request import prompts_in, stop_strings
from softlore.errors import BusyError, ConfigError, ContextOverflowError, EngineError
from softlore.model import FrozenModel
from softlore.prompts.formats.vllm import prefix_set_ids, request_body
from softlore.serve.engines.base import AsyncOutputStream, End, Engine, EngineLoad

PARAMETER = "softlore"  # of kv_transfer_params, as the connector reads it
NEVER = -100.0  # the least that vLLM adds to a logit
# Fields of `Sampling` that vLLM knows, under its names.
_SAME = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
         "frequency_penalty")  # fmt: skip


class VLLMEngine(Engine):
    """Writes texts on a vLLM server, which has the same model as the one here.

    Prefixes must have been converted for its connector (see `softlore.vllm_connector`). Control
    codes with a strength and `no_copy` are refused, samplers that vLLM lacks are left out.

    Args:
        model: for its tokenizer and embeddings.
        url: of the server, without `/v1`.
        name: what the server calls its model; "" takes the one it has.
        api_key: what the server wants to be shown.
        slots, queue: how many texts may be under way from here at once.
        text_seconds: how long a text may take; then it ends with "timeout".
    """

    model: FrozenModel

    def __init__(
        self,
        model: FrozenModel,
        url: str,
        name: str = "",
        api_key: str | None = None,
        slots: int = 64,
        queue: int = 64,
        text_seconds: float = 600.0,
    ) -> None:
        self.model = model
        self._name = name
        self._slots, self._queue, self._text_seconds = slots, queue, text_seconds
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"), headers=headers, timeout=httpx.Timeout(60.0, read=None)
        )
        self._free = asyncio.Semaphore(slots)
        self._running: set[_Remote] = set()
        self._closing = False

    def start(self, request: GenerationRequest) -> AsyncOutputStream:
        if self._closing or len(self._running) >= self._slots + self._queue:
            raise BusyError(
                f"{len(self._running)} texts are being written; expected room for another; ask "
                "again later"
            )
        body, output = self._request(request)
        running = _Remote(output)
        self._running.add(running)
        running.task = asyncio.create_task(self._write(running, body))
        return running

    def load(self) -> EngineLoad:
        running = min(len(self._running), self._slots)
        return EngineLoad(running, len(self._running) - running, self._slots, self._queue)

    async def close(self, seconds: float = 10.0) -> None:
        self._closing = True
        tasks = [one.task for one in self._running if one.task]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._client.aclose()

    def _request(self, request: GenerationRequest) -> tuple[dict[str, Any], OutputStream]:
        """The body of a request, less the rows; and what is told of the answer."""
        stops, conditionings = stop_strings(request), weighted(request.conditioning)
        if [strength for _, strength in conditionings if strength != 1] or len(conditionings) > 1:
            raise ConfigError(
                "codes with a strength are mixed token by token, which a vLLM server does not do; "
                "expected one code of strength 1; use --engine local for others"
            )
        if request.no_copy:
            raise ConfigError(
                "no_copy looks at every token before it is chosen, which a vLLM server does not "
                "let us do; expected 0; use --engine local for it"
            )
        context = _context(self.model, request, conditionings[0][0] if conditionings else "")
        most = request.max_new_tokens
        if self.model.context_length is not None:
            most = min(most, self.model.context_length - context.places)
        sampling = SamplingParams.of(request.sampling)
        body = {
            **context.body,
            **({"model": self._name} if self._name else {}),
            **_settings(sampling, self.model),
            "max_tokens": max(most, 1),
            "seed": request.seed,
            "stream": True,
            "return_token_ids": True,
            "logprobs": request.logprobs,
            "return_tokens_as_token_ids": None if request.logprobs is None else True,
        }
        output = OutputStream(self.model, stops, request.max_new_tokens)
        return {name: value for name, value in body.items() if value is not None}, output

    async def _write(self, running: _Remote, body: dict[str, Any]) -> None:
        """The life of a text: waits for its turn, asks, tells what comes."""
        try:
            async with (
                self._free,
                asyncio.timeout(self._text_seconds),
                contextlib.aclosing(self._choices(body)) as choices,
            ):
                async for choice in choices:
                    running.tell(choice)
                    if running.ended:
                        break
            running.close()
        except TimeoutError:
            running.close("timeout")
        except asyncio.CancelledError:
            running.close("cancelled")
        except EngineError as error:
            running.hear([error], "cancelled")
        except (httpx.HTTPError, ValueError, TypeError, AttributeError, KeyError) as error:
            running.hear([_lost(self._client.base_url, error)], "cancelled")
        finally:
            self._running.discard(running)

    async def _choices(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """What comes of the text, a part at a time, as the server sends it."""
        async with self._client.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code != 200:
                said = (await reply.aread()).decode(errors="replace")[:300]
                raise EngineError(
                    f"the vLLM server answered {reply.status_code}: {' '.join(said.split())}; "
                    "expected 200; see that it serves this model and was started with "
                    "--enable-prompt-embeds"
                )
            async for line in reply.aiter_lines():
                data = line.removeprefix("data: ")
                if data == line or data == "[DONE]":
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise EngineError(
                        f"the vLLM server stopped: {str(chunk['error'])[:300]}; expected tokens; "
                        "see its log"
                    )
                for choice in chunk.get("choices", []):
                    yield choice


class _Remote(AsyncOutputStream):
    """A text that another server writes."""

    def __init__(self, output: OutputStream) -> None:
        super().__init__(output)
        self.task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        return self.output.finish is not None

    def tell(self, choice: dict[str, Any]) -> None:
        """Tells the tokens of a part; an end that the server saw is one, whatever the token."""
        for token in _tokens(choice):
            if not self.ended:
                self.hear([self.output.append(token)])
        if not self.ended and choice.get("finish_reason") == "stop":
            self.output.finish = "end"

    def close(self, why: End | None = None) -> None:
        rest = list(self.output.flush())
        self.hear(rest, why or self.output.finish)

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


@dataclass(frozen=True)
class _Context:
    """A context as vLLM is sent it, and how many positions it takes there."""

    body: dict[str, Any]
    places: int


def _context(model: FrozenModel, request: GenerationRequest, conditioning: ContextLike) -> _Context:
    """Ids where there is nothing but text; else rows. Prefixes go as the ids that stand for them.

    Raises:
        ContextOverflowError: more than fits; PromptError: prefixes that cannot stand side by side.
    """
    tree = compose(model, request.context, request.check, conditioning)
    check_length(model, tree.start + tree.length)
    prefixes = {p.name: p for p in prompts_in(request, [(conditioning, 1.0)]) if p.kind == "prefix"}
    ids = prefix_set_ids(list(prefixes.values()), model) if prefixes else []
    text = cache_keys(tree)
    body: dict[str, Any] = {}
    if all(isinstance(slot, int) for slot in text):
        body["prompt"] = [*ids, *text]
    else:
        rows = splice(model, [Tree(tree.nodes)]).embeds[0]
        body |= request_body(torch.cat([model.embed_ids(ids), rows]) if ids else rows)
    if prefixes:
        body["kv_transfer_params"] = {PARAMETER: sorted(prefixes)}
    places = len(ids) + len(text)
    if model.context_length is not None and places > model.context_length:
        raise ContextOverflowError(
            f"{places} tokens do not fit {model.name!r}, whose context is {model.context_length}; "
            "on vLLM soft prompts stand one after the other; expected fewer; shorten the text"
        )
    return _Context(body, places)


def _settings(sampling: SamplingParams, model: FrozenModel) -> dict[str, Any]:
    """Samplers as vLLM knows them."""
    bias = {str(i): float(value) for i, value in dict(sampling.logit_bias).items()}
    bias |= {str(i): NEVER for i in (*sampling.banned, *model.banned_ids)}
    settings: dict[str, Any] = {name: getattr(sampling, name) for name in _SAME}
    settings["top_k"] = sampling.top_k or -1
    if sampling.greedy:
        settings["temperature"] = 0.0
    if bias:
        settings["logit_bias"] = bias
    return settings


def _tokens(choice: dict[str, Any]) -> list[Token]:
    ids = choice.get("token_ids")
    if ids is None:
        if choice.get("text"):
            raise EngineError(
                "the vLLM server sent no token ids; expected them; use vLLM 0.11 or newer"
            )
        return []
    told = choice.get("logprobs") or {}
    own = told.get("token_logprobs") or [None] * len(ids)
    likeliest = told.get("top_logprobs") or [None] * len(ids)
    return [
        Token("", int(i), logprob, {_id(name): value for name, value in (top or {}).items()})
        for i, logprob, top in zip(ids, own, likeliest, strict=True)
    ]


def _id(name: str) -> int:
    """The id in a name that `return_tokens_as_token_ids` makes: "token_id:42"."""
    return int(name.removeprefix("token_id:"))


def _lost(url: httpx.URL, error: Exception) -> EngineError:
    return EngineError(
        f"the vLLM server at {url} cannot be reached or broke off ({type(error).__name__}: "
        f"{error}); expected it to answer; start it, or mend --engine-url"
    )
