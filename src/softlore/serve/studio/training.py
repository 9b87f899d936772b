"""Routes of training: starting it, watching it live, pausing, resuming and stopping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from starlette.responses import StreamingResponse

from softlore.serve.responses import event, event_stream
from softlore.serve.studio.context import StudioContext
from softlore.serve.studio.forms import NewTraining, Stopping
from softlore.serve.studio.training_state import OVER, Training
from softlore.serve.studio.writing import STREAM

EVERY = 0.2  # seconds between looks
AGAIN = 1.0  # seconds after which how far it is is told again
STILL = 15.0  # seconds of nothing new, after which a comment keeps the connection
SETTINGS = ("kind", "n_tokens", "max_steps", "style", "seed")
Told = dict[str, Any]


def make_router(bench: StudioContext) -> APIRouter:
    """Everything under /trainings."""
    router = APIRouter(prefix="/trainings")
    trainings = bench.trainings

    @router.get("")
    def names() -> list[Told]:
        """All trainings, the newest first, without their curves."""
        return [one.told() for one in trainings.all()]

    @router.post("")
    def start(form: NewTraining) -> Told:
        """Begins a training, or puts it behind those that run. Its prompts go to the library."""
        given = {name: getattr(form, name) for name in SETTINGS}
        settings = {name: value for name, value in given.items() if value is not None}
        book = bench.books.get(form.book)
        return trainings.start(book, form.entries or [], form.again, settings).told(curves=True)

    @router.get("/{id}")
    def read(id: str) -> Told:
        """A training with its curves."""
        return trainings.get(id).told(curves=True)

    @router.get("/{id}/events", response_class=StreamingResponse, responses=STREAM)
    async def events(id: str) -> StreamingResponse:
        """Events: training (the first with the curves so far), point …; ends with the training."""
        return await event_stream(_events(bench, trainings.get(id)))

    @router.post("/{id}/pause")
    def pause(id: str) -> Told:
        """Stops it so that it can go on later, also after the server was started anew."""
        return trainings.pause(id).told()

    @router.post("/{id}/resume")
    def resume(id: str) -> Told:
        """Lets it go on, as if it had not been paused."""
        return trainings.resume(id).told()

    @router.post("/{id}/stop")
    def stop(id: str, form: Stopping | None = None) -> Told:
        """Ends it. What was still in training is kept only if asked for."""
        return trainings.stop(id, form is not None and form.keep).told()

    return router


async def _events(bench: StudioContext, training: Training) -> AsyncGenerator[bytes]:
    known: dict[str, int] = {}
    training.points_after(known)
    told = training.told(curves=True)
    yield event(told, "training")
    state, at, said = told["state"], time.monotonic(), time.monotonic()
    while state not in OVER and not bench.state.closing:
        await asyncio.sleep(EVERY)
        now, told = time.monotonic(), training.told()
        for point in training.points_after(known):
            said = now
            yield event(point, "point")
        due = now - at >= AGAIN and told["state"] in ("running", "preparing")
        if told["state"] != state or due:
            state, at, said = told["state"], now, now
            yield event(told, "training")
        elif now - said >= STILL:
            said = now
            yield b": still here\n\n"
