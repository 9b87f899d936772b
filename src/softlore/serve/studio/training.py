"""Routes of training: starting, watching, pausing, resuming and stopping jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.responses import StreamingResponse

from softlore.serve.responses import event, event_stream
from softlore.serve.studio.context import EVENT_STREAM, StudioContext
from softlore.serve.studio.forms import NewTraining
from softlore.serve.studio.training_job import FINISHED, TrainingJob

POLL = 0.2  # seconds between looks at a job
REFRESH = 1.0  # seconds after which progress is sent again
KEEP_ALIVE = 15.0  # seconds without an event after which a comment is sent


def make_router(context: StudioContext) -> APIRouter:
    """Everything under /trainings."""
    router = APIRouter(prefix="/trainings")
    queue = context.trainings

    @router.get("")
    def names() -> list[dict[str, Any]]:
        """All trainings, the newest first, without their curves."""
        return [job.to_dict() for job in queue.all()]

    @router.post("")
    def start(form: NewTraining) -> dict[str, Any]:
        """Adds a training to the queue. Its soft prompts are saved to the library."""
        book = context.books.get(form.book).resolved(context.state.settings)
        job = queue.start(book, form.entries or [], form.overwrite, form.settings, form.minutes)
        return job.to_dict(curves=True)

    @router.get("/{id}")
    def read(id: str) -> dict[str, Any]:
        """A training with its curves."""
        return queue.get(id).to_dict(curves=True)

    @router.get("/{id}/events", response_class=StreamingResponse, responses=EVENT_STREAM)
    async def events(id: str) -> StreamingResponse:
        """Events: training (the first with the curves so far), point …; ends with the training."""
        return await event_stream(_events(context, queue.get(id)))

    @router.post("/{id}/pause")
    def pause(id: str) -> dict[str, Any]:
        """Pauses a training; it can be resumed later, also after the server restarts."""
        return queue.pause(id).to_dict()

    @router.post("/{id}/resume")
    def resume(id: str) -> dict[str, Any]:
        """Resumes a paused training."""
        return queue.resume(id).to_dict()

    @router.post("/{id}/stop")
    def stop(id: str, save: Annotated[bool, Body(embed=True)] = False) -> dict[str, Any]:
        """Ends a training. Prompts that have not finished are saved only with `save`."""
        return queue.stop(id, save).to_dict()

    return router


async def _events(context: StudioContext, job: TrainingJob) -> AsyncGenerator[bytes]:
    sent: dict[str, int] = {}
    job.points_after(sent)
    data = job.to_dict(curves=True)
    yield event(data, "training")
    state, refreshed, last = data["state"], time.monotonic(), time.monotonic()
    while state not in FINISHED and not context.state.closing:
        await asyncio.sleep(POLL)
        now, data = time.monotonic(), job.to_dict()
        for point in job.points_after(sent):
            last = now
            yield event(point, "point")
        due = now - refreshed >= REFRESH and data["state"] in ("running", "preparing")
        if data["state"] != state or due:
            state, refreshed, last = data["state"], now, now
            yield event(data, "training")
        elif now - last >= KEEP_ALIVE:
            last = now
            yield b": keep-alive\n\n"
