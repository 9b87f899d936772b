"""GenerationService: composes requests, starts texts, cancels them when the client disconnects.

    route (kobold, openai) ─ text ─▶ RequestComposer ─ GenerationRequest ─▶ Engine.start
                                                                                │
    response ◀─ one iteration over ActiveResponse ◀─ OutputQueue ◀─ tokens of a step of the batch

A text is parsed and encoded by the composer, once; its tokens come back through one queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from softlore.decode import GenerationRequest, Token
from softlore.model import LanguageModel
from softlore.serve.compose import RequestComposer
from softlore.serve.engines import AsyncOutputStream, OutputQueue
from softlore.serve.fields import unused
from softlore.serve.lenient import LenientBody
from softlore.serve.state import ServerState

SEEDS = 2**63
# Responses of every route that generates, for the description of the API.
FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be used; the message says why"},
    503: {"description": "The queue is full; try again later"},
}


class GenerationService:
    """Composes and answers the requests of all APIs; a server has one.

    Attributes:
        composer: makes generation requests of texts.
        active: the responses under way, the newest last; only for the event loop.
        last: the newest response that has ended.
        n_ended: how many have.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.composer = RequestComposer(state)
        self.active: list[ActiveResponse] = []
        self.last: ActiveResponse | None = None
        self.n_ended = 0
        self._logged: set[str] = set()  # fields without effect

    @property
    def model(self) -> LanguageModel:
        return self.state.engine.model

    async def prompt_names(self) -> list[str]:
        """The soft prompts that fit the model."""
        return list(await run_in_threadpool(self.state.prompt_store.compatible))

    async def compose(
        self, text: str | Sequence[str] | Sequence[int], max_new_tokens: int | None, **options: Any
    ) -> GenerationRequest:
        """`RequestComposer.compose`, or for ids `compose_ids`, in a worker thread.

        Raises as they do.
        """
        is_ids = not isinstance(text, str) and len(text) > 0 and isinstance(text[0], int)
        compose: Any = self.composer.compose_ids if is_ids else self.composer.compose
        return await run_in_threadpool(partial(compose, text, max_new_tokens, **options))

    async def respond(
        self,
        caller: Request,
        requests: Sequence[GenerationRequest],
        body: LenientBody,
        copies: int = 1,
        key: str = "",
    ) -> ActiveResponse:
        """Starts each text `copies` times, each with a seed of its own.

        Args:
            caller: the HTTP request; the texts end when its client disconnects.
            body: of the HTTP request; what has no effect in it is among the reply's warnings.
            key: by which other requests may refer to the response; "" for none.

        Raises:
            BusyError: the queue has no room for all of them.
        """
        warnings = unused(body, self._logged)
        if requests:
            warnings += self.state.engine.without_effect(requests[0].sampling)
        outputs = OutputQueue()
        try:
            for request in requests:
                for number in range(copies):
                    await self.state.engine.start(_copy(request, number), outputs)
        except BaseException:
            outputs.cancel()
            raise
        return ActiveResponse(self, caller, requests, outputs, key, warnings)

    def find(self, key: str) -> list[ActiveResponse]:
        """The responses with a key; none for "", as those without a key may be anyone's."""
        return [response for response in self.active if key and response.key == key]


class ActiveResponse:
    """The texts that answer one request; they are cancelled when its `with` block ends.

    Iteration gives tokens as `OutputQueue` does.

    Attributes:
        model: which generates them.
        requests: one for each text of the client's.
        streams: the texts; all copies of the first request, then those of the next.
        key: see `GenerationService.respond`.
        warnings: what a reply adds to its fields: `warnings`, if there are any.
    """

    def __init__(
        self,
        service: GenerationService,
        caller: Request,
        requests: Sequence[GenerationRequest],
        outputs: OutputQueue,
        key: str,
        warnings: list[str],
    ) -> None:
        self.model = service.model
        self.requests = requests
        self.key = key
        self.warnings = {"warnings": warnings} if warnings else {}
        self._outputs = outputs
        self._service = service
        service.active.append(self)
        self._watcher = asyncio.create_task(self._cancel_on_disconnect(caller))

    @property
    def streams(self) -> list[AsyncOutputStream]:
        return self._outputs.streams

    def __aiter__(self) -> AsyncIterator[tuple[AsyncOutputStream, Token | None]]:
        return self._outputs

    async def tokens(self) -> list[list[Token]]:
        """The tokens of each text, after the end of the last. Raises what the engine raises."""
        tokens: list[list[Token]] = [[] for _ in self.streams]
        with self:
            async for stream, token in self:
                if token is not None:
                    tokens[stream.number].append(token)
        return tokens

    def cancel(self) -> None:
        """Ends the texts at their next token; what has been generated is the response."""
        self._outputs.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()
        self._watcher.cancel()
        if self in self._service.active:
            self._service.active.remove(self)
            self._service.last = self
            self._service.n_ended += 1

    async def _cancel_on_disconnect(self, caller: Request) -> None:
        while (await caller.receive())["type"] != "http.disconnect":
            pass
        self.cancel()


def _copy(request: GenerationRequest, number: int) -> GenerationRequest:
    """A request for the copy of that number: where there is a seed, with another."""
    seed = request.seed
    return request if seed is None or not number else replace(request, seed=(seed + number) % SEEDS)


def finish_reason(stream: AsyncOutputStream) -> str:
    """Why a text ended, by the names of the APIs."""
    return "stop" if stream.finish in ("end", "stop", "cancelled") else "length"


def prompt_tokens(request: GenerationRequest) -> int:
    """Tokens that are read for a request: BOS, text, rows and prefixes."""
    tree = request.tree
    assert tree is not None  # made by RequestComposer
    return tree.length + sum(int(prefix.shape[3]) for prefix in tree.prefixes)
