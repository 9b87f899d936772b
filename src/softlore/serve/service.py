"""Answering a request: its texts are started, told as they come, and end when the caller goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from softlore.decode import GenerationRequest, Token
from softlore.errors import SoftloreError
from softlore.model import LanguageModel
from softlore.serve.compose import ClientRequest, ComposedRequest, RequestComposer
from softlore.serve.engines import AsyncOutputStream, cancel_all, merged
from softlore.serve.state import ServerState

SEEDS = 2**63
# What every route may answer besides, for the description of the API.
FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"description": "What was sent cannot be used; the message says why"},
    503: {"description": "As much is asked for as can be written; ask again later"},
}


class ActiveResponse:
    """The texts that answer one request: `told` gives their tokens as they come.

    Attributes:
        key: by which others may ask for it, or abort it; empty for none.
        asked: what was asked for.
        copies: how often each of them is written, side by side.
        running: the texts as they are written.
    """

    def __init__(
        self,
        desk: GenerationService,
        request: Request,
        key: str,
        composed: Sequence[ComposedRequest],
        copies: int,
    ) -> None:
        self.key = key
        self.asked = list(composed)
        self.copies = copies
        self.running: list[AsyncOutputStream] = []
        self._desk = desk
        try:
            for one in composed:
                for number in range(copies):
                    self.running.append(desk.state.engine.start(_copy(one.wish, number)))
        except BaseException:
            self.cancel()
            raise
        self._watching = asyncio.create_task(self._until_gone(request))
        desk.answers.append(self)

    @property
    def model(self) -> LanguageModel:
        """Whose texts they are."""
        return self._desk.state.engine.model

    async def told(self) -> AsyncGenerator[tuple[int, Token | None]]:
        """Tokens, each with the number of its text; None when that one has ended.

        Raises:
            BusyError, EngineError: as the engine does.
        """
        async with aclosing(merged(self.running)) as tokens:
            try:
                async for one in tokens:
                    yield one
            finally:
                self.close()

    async def whole(self) -> list[list[Token]]:
        """All tokens of each text, once the last has ended. Raises as `told` does."""
        tokens: list[list[Token]] = [[] for _ in self.running]
        async with aclosing(self.told()) as told:
            async for number, token in told:
                if token is not None:
                    tokens[number].append(token)
        return tokens

    def cancel(self) -> None:
        """Ends the texts where they are; what there is of them is the answer."""
        cancel_all(self.running)

    def close(self) -> None:
        """Ends the texts, and lets nobody ask for them any more."""
        self.cancel()
        self._watching.cancel()
        if self in self._desk.answers:
            self._desk.answers.remove(self)

    async def _until_gone(self, request: Request) -> None:
        """Cancels the texts when the caller has dropped the connection."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.cancel()


class GenerationService:
    """Where the requests of all APIs are answered; one for a server.

    Attributes:
        texts: what composes them.
        answers: those under way, the newest last. Only for the event loop.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.texts = RequestComposer(state)
        self.answers: list[ActiveResponse] = []

    async def answer(
        self, request: Request, asks: Sequence[ClientRequest], copies: int = 1, key: str = ""
    ) -> ActiveResponse:
        """Starts the texts that are asked for, each so many times over, with seeds of their own.

        Raises:
            BusyError: no room in the queue for all of them.
            InputError, StorageError: what `Texts.composed` raises.
        """
        composed = await run_in_threadpool(lambda: [self.texts.composed(ask) for ask in asks])
        return ActiveResponse(self, request, key, composed, copies)

    def find(self, key: str) -> list[ActiveResponse]:
        """The answers of a key; without one the newest of those that have none."""
        found = [answer for answer in self.answers if answer.key == key]
        return found if key else found[-1:]


def _copy(wish: GenerationRequest, number: int) -> GenerationRequest:
    """A wish once more: what is drawn with a seed must differ."""
    seed = wish.seed
    return wish if seed is None or not number else replace(wish, seed=(seed + number) % SEEDS)


def reason(running: AsyncOutputStream) -> str:
    """Why a text ended, in the words of the APIs."""
    return "stop" if running.finish in ("end", "stop", "cancelled") else "length"


def answering(reply: Callable[[Exception], Response]) -> type[APIRoute]:
    """A class of routes whose errors become replies in the API's own shape."""

    class Answering(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                try:
                    return await handler(request)
                except ClientDisconnect:
                    return Response(status_code=400)  # nobody is there to read it
                except (SoftloreError, ValidationError) as error:
                    return reply(error)

            return handle

    return Answering
