"""A vLLM server as an engine: contexts are sent as ids or embedding rows, tokens are streamed back.

Source of the request's form: vLLM's OpenAI-compatible server, 0.32, started with
`--enable-prompt-embeds`. Texts share its batch; tokenizer and embedding table are used here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

import httpx
import torch

from softlore.context import Tree, splice
from softlore.context.compose import ContextLike
from softlore.context.splice import check_length
from softlore.decode import GenerationRequest, OutputStream, SamplingParams, Token
from softlore.decode.conditioning import weighted
from softlore.decode.prefix_cache import TextKeys
from softlore.decode.request import prompts_in, stop_strings
from softlore.decode.samplers import build_steps
from softlore.errors import ConfigError, ContextOverflowError, EngineError
from softlore.model import FrozenModel
from softlore.prompts.formats.vllm import prefix_set_ids, request_body
from softlore.serve.engines.base import AsyncOutputStream, End, Engine, OutputQueue

_log = logging.getLogger(__name__)
PARAMETER = "softlore"  # of kv_transfer_params, as the connector reads it
NEVER = -100.0  # the lowest bias that vLLM adds to a logit
# Fields of `SamplingParams` that vLLM has too, by the same names.
_SAME_NAMES = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
         "frequency_penalty")  # fmt: skip


# Steps of the sampler that vLLM has; of settings that only change a step, those that it lacks.
_STEPS = frozenset({"logit_bias", "banned", "repetition_penalty", "presence_frequency",
                    "temperature", "top_k", "top_p", "min_p"})  # fmt: skip
_WITHOUT_STEP = ("repetition_range", "dynatemp_range", "banned_strings", "order", "heal")


class VLLMEngine(Engine):
    """Generates texts on a vLLM server that runs the same model.

    Prefixes must have been converted for its connector (see `softlore.vllm_connector`). Wherever
    they stand in a context, all of its text sees them, as vLLM can only begin a text with them; the
    first time that this makes a difference, the log says so. Control codes with a strength and
    `no_copy` are rejected; samplers that vLLM lacks are left out, and replies name them.

    Args:
        model: its tokenizer and embeddings are used.
        url: of the server, without `/v1`.
        name: the server's name for its model; "": the only one that it has.
        api_key: the server's API key.
        slots: texts that are sent to the server at once.
        queue: texts that may wait for that.
        text_seconds: the most that a text may take; then it ends with "timeout".
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
        super().__init__(model, slots, queue)
        self._name = name
        self._text_seconds = text_seconds
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"), headers=headers, timeout=httpx.Timeout(60.0, read=None)
        )
        self._free = asyncio.Semaphore(slots)
        self._streams: set[_RemoteStream] = set()
        self._told_classic = False

    def without_effect(self, sampling: Mapping[str, Any]) -> list[str]:
        params = SamplingParams.of(sampling)
        wordless = params.changed(dry_breakers=(), banned_strings=())  # which need a vocabulary
        names = [step.name for step in build_steps(wordless) if step.name not in _STEPS]
        names += [name for name in _WITHOUT_STEP if getattr(params, name)]
        return [f"{name} has no effect: a vLLM server does not have it" for name in names]

    def enqueue(
        self, prepared: tuple[dict[str, Any], OutputStream], outputs: OutputQueue | None
    ) -> AsyncOutputStream:
        body, output = prepared
        stream = _RemoteStream(output, outputs)
        self._streams.add(stream)
        stream.task = asyncio.create_task(self._generate(stream, body))
        # A task that is cancelled before its first step runs none of its own code.
        stream.task.add_done_callback(lambda _: self._end(stream))
        return stream

    def counts(self) -> tuple[int, int]:
        running = min(len(self._streams), self.slots)
        return running, len(self._streams) - running

    async def close(self, seconds: float = 10.0) -> None:
        self.closing = True
        tasks = [stream.task for stream in self._streams if stream.task]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._client.aclose()

    def _end(self, stream: _RemoteStream) -> None:
        self._streams.discard(stream)
        if stream.finish is None:
            stream.end("cancelled")

    def prepare(self, request: GenerationRequest) -> tuple[dict[str, Any], OutputStream]:
        """The body of the HTTP request, and the stream that its tokens go to."""
        stops, conditionings = stop_strings(request), weighted(request.conditioning)
        if [strength for _, strength in conditionings if strength != 1] or len(conditionings) > 1:
            raise ConfigError(
                "several codes, or one with a strength other than 1, are mixed token by token, "
                "which vLLM does not do; expected one code of strength 1; use --engine local"
            )
        if request.prompt_logprobs is not None:
            raise ConfigError(
                "log-probabilities of the prompt (echo with logprobs, or max_tokens 0) are not "
                "passed on by a vLLM server that streams; expected them of new tokens only; ask "
                "the vLLM server itself, or use --engine local"
            )
        sampling = SamplingParams.of(request.sampling)
        if sampling.no_copy:
            raise ConfigError(
                "no_copy changes the logits before each token, which a vLLM server does not offer; "
                "expected 0; use --engine local for it"
            )
        conditioning = conditionings[0][0] if conditionings else ""
        tree = request.compose(self.model, conditioning)
        if request.vectors or tree.steering is not None:
            raise ConfigError(
                "control vectors change what the model's layers put out, which a vLLM server does "
                "not offer; expected none, in the text, the story and the entries of the lorebook "
                "that are active; take them out, or use --engine local"
            )
        self._tell_classic(tree)
        context, positions = _context(self.model, request, conditioning, tree)
        most = request.max_new_tokens
        if self.model.context_length is not None:
            most = min(most, self.model.context_length - positions)
        body = {
            **context,
            **({"model": self._name} if self._name else {}),
            **_settings(sampling, self.model),
            "structured_outputs": _structured_outputs(sampling),
            "max_tokens": max(most, 1),
            "seed": request.seed,
            "stream": True,
            "return_token_ids": True,
            "logprobs": request.logprobs,
            "return_tokens_as_token_ids": None if request.logprobs is None else True,
        }
        output = OutputStream(self.model, stops, request.max_new_tokens)
        return {name: value for name, value in body.items() if value is not None}, output

    def _tell_classic(self, tree: Tree) -> None:
        """Says once in the log that late prefixes are seen from the start."""
        late = any(len(tree.prefixes_of(node)) < len(tree.prefixes) for node in tree.nodes)
        if late and not self._told_classic:
            self._told_classic = True
            _log.warning(
                "a soft prompt stands within the text, and vLLM cannot show it to what follows "
                "alone; all of the text sees it, and is read anew when it wakes"
            )

    async def _generate(self, stream: _RemoteStream, body: dict[str, Any]) -> None:
        """Waits for a free slot, sends the request, and passes on what is streamed back."""
        try:
            async with (
                self._free,
                asyncio.timeout(self._text_seconds),
                contextlib.aclosing(self._choices(body)) as choices,
            ):
                async for choice in choices:
                    stream.receive(choice)
                    if stream.output.finish is not None:
                        break
            stream.end()
        except TimeoutError:
            stream.end("timeout")
        except asyncio.CancelledError:
            stream.end("cancelled")
        except EngineError as error:
            stream.deliver([error], "cancelled")
        except (httpx.HTTPError, ValueError, TypeError, AttributeError, KeyError) as error:
            stream.deliver([_lost(self._client.base_url, error)], "cancelled")
        finally:
            self._streams.discard(stream)

    async def _choices(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The choices of each chunk that the server streams."""
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")[:300]
                raise EngineError(
                    f"the vLLM server answered {response.status_code}: {' '.join(text.split())}; "
                    "expected 200; check that it serves this model and was started with "
                    "--enable-prompt-embeds"
                )
            async for line in response.aiter_lines():
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


class _RemoteStream(AsyncOutputStream):
    """A text that a vLLM server generates."""

    def __init__(self, output: OutputStream, outputs: OutputQueue | None) -> None:
        super().__init__(output, outputs)
        self.task: asyncio.Task[None] | None = None

    def receive(self, choice: dict[str, Any]) -> None:
        """Passes on the tokens of a choice; the server may see an end that they don't show."""
        for token in _tokens(choice):
            if self.output.finish is None:
                self.deliver([self.output.append(token)])
        if self.output.finish is None and choice.get("finish_reason") == "stop":
            self.output.finish = "end"

    def end(self, finish: End | None = None) -> None:
        rest = list(self.output.flush())
        self.deliver(rest, finish or self.output.finish)

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


def _context(
    model: FrozenModel, request: GenerationRequest, conditioning: ContextLike, tree: Tree
) -> tuple[dict[str, Any], int]:
    """A context as fields of a request's body, and how many positions it takes on the server.

    Ids where it is text only; else rows. Prefixes are sent as their placeholder ids, before all
    text.

    Raises:
        ContextOverflowError: more than fits; PromptError: prefixes that cannot stand side by side.
    """
    check_length(model, tree.start + tree.length)
    prefixes = {p.name: p for p in prompts_in(request, [(conditioning, 1.0)]) if p.kind == "prefix"}
    ids = prefix_set_ids(list(prefixes.values()), model) if prefixes else []
    tokens = TextKeys(tree).tokens
    body: dict[str, Any] = {}
    if all(isinstance(token, int) for token in tokens):
        body["prompt"] = [*ids, *tokens]
    else:
        text = Tree([replace(node, sees=()) for node in tree.nodes])
        rows = splice(model, [text]).embeds[0]
        body |= request_body(torch.cat([model.embed_ids(ids), rows]) if ids else rows)
    if prefixes:
        body["kv_transfer_params"] = {PARAMETER: sorted(prefixes)}
    positions = len(ids) + len(tokens)
    if model.context_length is not None and positions > model.context_length:
        raise ContextOverflowError(
            f"{positions} tokens do not fit the context of {model.name!r}; expected at most "
            f"{model.context_length}, as each soft prompt has positions of its own on vLLM; "
            "shorten the text"
        )
    return body, positions


def _settings(sampling: SamplingParams, model: FrozenModel) -> dict[str, Any]:
    """The fields of a request for the samplers that vLLM has."""
    bias = {str(i): float(value) for i, value in dict(sampling.logit_bias).items()}
    bias |= {str(i): NEVER for i in (*sampling.banned, *model.banned_ids)}
    settings: dict[str, Any] = {name: getattr(sampling, name) for name in _SAME_NAMES}
    settings["top_k"] = sampling.top_k or -1
    if sampling.greedy:
        settings["temperature"] = 0.0
    if bias:
        settings["logit_bias"] = bias
    return settings


def _structured_outputs(sampling: SamplingParams) -> dict[str, Any] | None:
    """What the text may be, as vLLM takes it."""
    found = sampling.constraint
    if found is None:
        return None
    name, value = found
    if name == "json_schema":
        return {"json": json.loads(value)}
    return {name: list(value) if name == "choice" else value}


def _tokens(choice: dict[str, Any]) -> list[Token]:
    ids = choice.get("token_ids")
    if ids is None:
        if choice.get("text"):
            raise EngineError(
                "the vLLM server sent no token ids; expected them; use vLLM 0.11 or newer"
            )
        return []
    logprobs = choice.get("logprobs") or {}
    chosen = logprobs.get("token_logprobs") or [None] * len(ids)
    likeliest = logprobs.get("top_logprobs") or [None] * len(ids)
    return [
        Token("", int(i), logprob, {_id(name): value for name, value in (top or {}).items()})
        for i, logprob, top in zip(ids, chosen, likeliest, strict=True)
    ]


def _id(name: str) -> int:
    """The id in a name that `return_tokens_as_token_ids` makes: "token_id:42"."""
    return int(name.removeprefix("token_id:"))


def _lost(url: httpx.URL, error: Exception) -> EngineError:
    return EngineError(
        f"the vLLM server at {url} cannot be reached or broke off ({type(error).__name__}: "
        f"{error}); expected it to answer; start it, or fix --engine-url"
    )
