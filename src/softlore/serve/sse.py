"""Server-sent events, byte for byte as the writers' programs read them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.responses import StreamingResponse

DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # proxies must not gather it


def event(data: Mapping[str, Any], name: str = "") -> bytes:
    """One event: lines end in LF, JSON is ASCII (KoboldAI Lite reads lines of nothing else)."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode("ascii")


async def streamed(events: AsyncGenerator[bytes]) -> StreamingResponse:
    """A response of events, begun when the first is there: what fails before has its own status.

    Raises:
        SoftloreError: what the first event raised.
    """
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise

    async def told() -> AsyncGenerator[bytes]:
        try:
            yield first
            async for one in events:
                yield one
        finally:
            await events.aclose()

    return StreamingResponse(told(), media_type="text/event-stream", headers=_HEADERS)
