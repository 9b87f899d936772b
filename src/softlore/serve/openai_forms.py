"""Request and response bodies of the OpenAI API, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, model_validator

from softlore.decode import Token
from softlore.serve.chat import ChatMessage
from softlore.serve.compose import model_name
from softlore.serve.lenient import LenientBody
from softlore.serve.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from softlore.serve.service import ActiveResponse, finish_reason, prompt_tokens
from softlore.serve.tools import ToolBox, Tools
from softlore.settings.lenient import Flag, Integer, Strings, Text, strings

MAX_LOGPROBS = 20  # alternatives for each token
MAX_COPIES = 128
MAX_MESSAGES = 10_000
MAX_KEY = 200  # characters

Tokens = Annotated[int | None, Field(le=2**53)]


class GenerationBody(LenientBody, ABC):
    """Fields that both kinds of completion share.

    Fields that are not declared here may be samplers', by the names and aliases of
    `SamplingParams`; others are named in the reply's `warnings`. Null is the same as no field.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str | None = None
    stream: Flag = None
    stream_options: dict[str, Any] | None = None
    n: Annotated[int | None, Field(ge=1, le=MAX_COPIES)] = None
    max_tokens: Tokens = None
    max_completion_tokens: Tokens = None
    temperature: Annotated[float | None, Field(ge=0)] = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: str | list[str] | None = None
    # of SillyTavern, KoboldAI, text-generation-webui and llama.cpp
    genkey: Text = ""
    sampler_seed: Integer = None
    stopping_strings: Strings = Field([])
    stop_sequence: Strings = Field([])
    context_tokens: Integer = Field(
        None, validation_alias=AliasChoices("max_context_length", "truncation_length")
    )
    max_new_tokens: Integer = Field(
        None, validation_alias=AliasChoices("max_new_tokens", "n_predict", "max_length")
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, fields: Any) -> Any:
        return {name: value for name, value in fields.items() if value is not None}

    @property
    @abstractmethod
    def top_logprobs_shown(self) -> int | None:
        """How many alternatives are returned with each token; None: no log-probabilities."""

    @property
    def sampling_fields(self) -> dict[str, Any]:
        """The fields that may be settings of samplers."""
        declared = ("temperature", "top_p", "frequency_penalty", "presence_penalty")
        return (self.model_extra or {}) | {name: getattr(self, name) for name in declared}

    @property
    def stops(self) -> list[str]:
        """All stop strings, each once."""
        stops = [*strings(self.stop), *self.stopping_strings, *self.stop_sequence]
        return list(dict.fromkeys(stops))

    @property
    def used_seed(self) -> int | None:
        """OpenAI's seed, or KoboldAI's, which is -1 for none."""
        seed = self.seed if self.seed is not None else self.sampler_seed
        return seed if seed is not None and seed >= 0 else None

    def tokens(self, default: int | None) -> int | None:
        """How many tokens to write; None, as any negative number: as many as there is room for."""
        for tokens in (self.max_completion_tokens, self.max_tokens, self.max_new_tokens, default):
            if tokens is not None:
                return tokens if tokens >= 0 else None
        return None


class CompletionBody(GenerationBody):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = ""
    memory: Text = ""
    echo: Flag = None
    logprobs: Annotated[int | None, BeforeValidator(lambda v: None if v is False else v)] = None

    @property
    def top_logprobs_shown(self) -> int | None:
        return None if self.logprobs is None else min(MAX_LOGPROBS, max(0, self.logprobs))

    @property
    def prompt_logprobs(self) -> int | None:
        """How many alternatives to report with each token of the prompt; None: not even its own.

        A prompt that nothing follows is read for them.
        """
        shown = self.top_logprobs_shown if self.echo else None
        return 0 if shown is None and self.tokens(None) == 0 else shown


class ChatBody(GenerationBody):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    logprobs: Flag = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    tools: Tools = Field([])
    tool_choice: Any = None
    parallel_tool_calls: Flag = None

    @property
    def top_logprobs_shown(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class ResponseBodies:
    """The bodies of the response to one request: whole, or in chunks that are streamed.

    Args:
        echoed: what is shown before the text of each request.
        strip: leave out the space that each text begins with.
        box: the tools that a reply may call.

    Attributes:
        started: the numbers of the choices that have had a chunk.
    """

    def __init__(
        self,
        response: ActiveResponse,
        body: GenerationBody,
        echoed: Sequence[str] = ("",),
        strip: bool = False,
        box: ToolBox | None = None,
    ) -> None:
        self.started: set[int] = set()
        self._response = response
        self._chat = isinstance(body, ChatBody)
        copies = len(response.streams) // len(echoed)
        self._echoed = [text for text in echoed for _ in range(copies)]
        self._offsets = [len(text) for text in self._echoed]
        self._to_strip = {stream.number for stream in response.streams if strip}
        self._readers = [box.reader() for _ in response.streams] if box is not None else []
        self._logprobs = body.top_logprobs_shown is not None
        self._show_usage = bool((body.stream_options or {}).get("include_usage"))
        self._common: dict[str, Any] = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": body.model or model_name(response.model),
        }

    def whole(self, tokens: Sequence[Sequence[Token]]) -> dict[str, Any]:
        """The whole response, given the tokens of each text, after the end of all."""
        choices = []
        for stream in self._response.streams:
            number, text = stream.number, self._visible(stream.number, stream.text)
            text, calls = self._read(number, text)
            logprobs = self._logprobs_of(number, tokens[number], len(stream.text))
            if logprobs is not None and (echoed := self._prompt_logprobs(number)):
                logprobs = {name: [*echoed[name], *logprobs[name]] for name in logprobs}
            choices.append(
                {
                    "index": number,
                    "finish_reason": self._reason(number, calls),
                    "logprobs": logprobs,
                    **({"message": _message(text, calls)}
                       if self._chat else {"text": self._echoed[number] + text}),
                }
            )  # fmt: skip
        return {
            **self._common,
            "choices": choices,
            "usage": self._usage(),
            **self._response.warnings,
        }

    def chunks(self, number: int, token: Token | None) -> list[dict[str, Any]]:
        """The chunks for a token of a choice, or for its end."""
        chunks = []
        if number not in self.started:
            self.started.add(number)
            if self._chat:
                chunks.append(self._chunk(number, {"delta": {"role": "assistant", "content": ""}}))
            elif self._echoed[number]:
                echo = {"text": self._echoed[number]}
                chunks.append(self._chunk(number, echo, self._prompt_logprobs(number)))
        if token is None:
            text, calls = self._read(number)
            if text:
                chunks.append(self._chunk(number, {"delta": {"content": text}}))
            if calls:
                listed = [{"index": i, **call} for i, call in enumerate(calls)]
                chunks.append(self._chunk(number, {"delta": {"tool_calls": listed}}))
            last: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
            reason = self._reason(number, calls)
            return [
                *chunks,
                self._chunk(number, last, finish_reason=reason) | self._response.warnings,
            ]
        text = self._visible(number, token.text)
        text = self._readers[number].feed(text) if self._readers else text
        likely = self._logprobs_of(number, [token], 1) if token.id is not None else None
        self._offsets[number] += len(token.text)
        if text or likely is not None:
            part = {"delta": {"content": text}} if self._chat else {"text": text}
            chunks.append(self._chunk(number, part, likely))
        return chunks

    def usage_chunk(self) -> dict[str, Any] | None:
        """What follows the last choice, where the client asked for it."""
        return self._chunks_of([]) | {"usage": self._usage()} if self._show_usage else None

    def _chunk(
        self,
        number: int,
        part: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": number, **part, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._chunks_of([choice]) | ({"usage": None} if self._show_usage else {})

    def _chunks_of(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = {"object": "chat.completion.chunk"} if self._chat else {}
        return {**self._common, **kind, "choices": choices}

    def _visible(self, number: int, text: str) -> str:
        """A part of a choice's text, without the space at its beginning where that is stripped."""
        if number in self._to_strip and (text := text.lstrip()):
            self._to_strip.remove(number)
        return text

    def _read(self, number: int, text: str = "") -> tuple[str, list[dict[str, Any]]]:
        """The last part of a choice's text without calls of tools, and these."""
        if not self._readers:
            return text, []
        given = self._readers[number].feed(text)
        rest, calls = self._readers[number].end()
        return given + rest, calls

    def _reason(self, number: int, calls: Sequence[Any]) -> str:
        reason = finish_reason(self._response.streams[number])
        return "tool_calls" if calls and reason == "stop" else reason

    def _logprobs_of(
        self, number: int, tokens: Sequence[Token], length: int
    ) -> dict[str, Any] | None:
        """Log-probabilities of the tokens of the first `length` characters, where asked for."""
        if not self._logprobs:
            return None
        model = self._response.model
        if self._chat:
            return chat_logprobs(model, tokens, length) | {"refusal": None}
        stream = self._response.streams[number]
        # Harnesses count the tokens after an echoed prompt: those without text belong to them.
        most = None if stream.prompt and stream.stopped_by is None else length
        return completion_logprobs(model, tokens, most, self._offsets[number])

    def _prompt_logprobs(self, number: int) -> dict[str, list[Any]] | None:
        """Log-probabilities of the tokens of an echoed prompt, where asked for."""
        prompt = self._response.streams[number].prompt
        if not prompt or not self._logprobs:
            return None
        return prompt_logprobs(self._response.model, prompt, len(self._echoed[number]))

    def _usage(self) -> dict[str, int]:
        """The tokens of each prompt count once, however many choices it has."""
        read = sum(map(prompt_tokens, self._response.requests))
        written = sum(len(stream.ids) for stream in self._response.streams)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }


def _message(text: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not calls:
        return {"role": "assistant", "content": text, "refusal": None}
    return {"role": "assistant", "content": text or None, "refusal": None, "tool_calls": calls}
