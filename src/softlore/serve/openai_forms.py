"""The forms of the OpenAI API: what requests hold, and what replies and chunks look like."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from softlore.decode import Token
from softlore.serve.compose import model_name
from softlore.serve.lenient import Flag, flag
from softlore.serve.logprobs import as_chat, as_completion
from softlore.serve.service import ActiveResponse, reason

LIKELIEST = 20  # tokens told beside each, at most
MOST_COPIES = 128

_MESSAGE = {
    "type": "object",
    "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
    "required": ["role", "content"],
}
Tokens = Annotated[int | None, Field(le=2**53)]


class Common(BaseModel, ABC):
    """What both kinds of completion take; what is not named here is taken leniently, or ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str | None = None
    stream: Flag = None
    stream_options: dict[str, Any] | None = None
    n: Annotated[int | None, Field(ge=1, le=MOST_COPIES)] = None
    max_tokens: Tokens = None
    max_completion_tokens: Tokens = None
    temperature: Annotated[float | None, Field(ge=0)] = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: str | list[str] | None = None

    @property
    @abstractmethod
    def likeliest(self) -> int | None:
        """How many likely tokens are told beside each."""


class Completed(Common):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] | None = ""
    echo: Flag = None
    logprobs: Annotated[int | None, BeforeValidator(lambda v: v or None)] = None

    @property
    def likeliest(self) -> int | None:
        return None if self.logprobs is None else min(LIKELIEST, max(0, self.logprobs))


class Chatted(Common):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(json_schema_extra={"items": _MESSAGE})]
    logprobs: Flag = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=LIKELIEST)] = None

    @property
    def likeliest(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class Replies:
    """The replies to one request, whole or in chunks.

    Args:
        before: what is echoed before the text of each prompt.
        chat: whether it is a chat's.
        bare: whether a reply's first space is none of it.

    Attributes:
        begun: the choices that have had a chunk.
    """

    def __init__(
        self,
        answer: ActiveResponse,
        sent: Common,
        before: Sequence[str],
        chat: bool = False,
        bare: bool = False,
    ) -> None:
        self.begun: set[int] = set()
        self._answer, self._sent = answer, sent
        self._model = answer.model
        self._before = [one for one in before for _ in range(answer.copies)]
        self._chat, self._bare = chat, bare
        self._said = [False] * len(self._before)
        self._at = [len(one) for one in self._before]
        self._usage = bool(flag((sent.stream_options or {}).get("include_usage")))
        kind = "chat.completion" if chat else "text_completion"
        self._head: dict[str, Any] = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "object": kind,
            "created": int(time.time()),
            "model": sent.model or model_name(answer.model),
        }

    # whole -------------------------------------------------------------------------------------

    def whole(self, tokens: Sequence[Sequence[Token]]) -> dict[str, Any]:
        """The reply, once all texts have ended."""
        choices = [self._choice(number, some) for number, some in enumerate(tokens)]
        return {**self._head, "choices": choices, "usage": self._used()}

    def _choice(self, number: int, tokens: Sequence[Token]) -> dict[str, Any]:
        running = self._answer.running[number]
        choice: dict[str, Any] = {
            "index": number,
            "finish_reason": reason(self._answer.running[number]),
        }
        choice["logprobs"] = self._likelihoods(tokens, len(running.text), self._at[number])
        if self._chat:
            told = self._piece(number, running.text)
            return choice | {"message": {"role": "assistant", "content": told, "refusal": None}}
        return choice | {"text": self._before[number] + running.text}

    # in chunks ---------------------------------------------------------------------------------

    def beginning(self, number: int) -> list[dict[str, Any]]:
        """What comes before a choice's first token."""
        if number in self.begun:
            return []
        self.begun.add(number)
        if self._chat:
            return [self._chunk(number, {"delta": {"role": "assistant", "content": ""}})]
        before = self._before[number]
        return [self._chunk(number, {"text": before})] if before else []

    def going_on(self, number: int, token: Token) -> list[dict[str, Any]]:
        """A token's chunk, if there is anything to tell."""
        piece = self._piece(number, token.text)
        some = [token] if token.id is not None else []
        likely = self._likelihoods(some, 1, self._at[number]) if some else None
        self._at[number] += len(token.text)
        if not piece and likely is None:
            return []
        told = {"delta": {"content": piece}} if self._chat else {"text": piece}
        return [self._chunk(number, told, likely)]

    def ending(self, number: int) -> list[dict[str, Any]]:
        """The last chunk of a choice."""
        told: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        return [self._chunk(number, told, None, reason(self._answer.running[number]))]

    def usage_chunk(self) -> dict[str, Any] | None:
        """What follows the last choice, where it was asked for."""
        return {**self._chunk_head(), "choices": [], "usage": self._used()} if self._usage else None

    # inside ------------------------------------------------------------------------------------

    def _chunk(
        self,
        number: int,
        told: dict[str, Any],
        likely: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": number, **told, "logprobs": likely, "finish_reason": reason}
        return {**self._chunk_head(), "choices": [choice]} | (
            {"usage": None} if self._usage else {}
        )

    def _chunk_head(self) -> dict[str, Any]:
        return self._head | ({"object": "chat.completion.chunk"} if self._chat else {})

    def _piece(self, number: int, text: str) -> str:
        """A part of a choice's text, without the space that leads over to it."""
        if self._bare and not self._said[number]:
            text = text.lstrip()
        self._said[number] = self._said[number] or bool(text)
        return text

    def _likelihoods(
        self, tokens: Sequence[Token], length: int, start: int
    ) -> dict[str, Any] | None:
        if self._sent.likeliest is None:
            return None
        if self._chat:
            return as_chat(self._model, tokens, length) | {"refusal": None}
        return as_completion(self._model, tokens, length, start)

    def _used(self) -> dict[str, int]:
        """Each prompt's tokens count once, however many choices it has."""
        read = sum(one.tokens for one in self._answer.asked)
        written = sum(len(running.ids) for running in self._answer.running)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }
