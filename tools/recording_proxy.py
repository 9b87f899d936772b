"""A proxy that passes on HTTP unchanged, byte by byte, and records each request and its status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

CHUNK = 65536


@dataclass
class Recorded:
    """A request as it came, and the status of its response (0 where none came)."""

    method: str = ""
    path: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    reply: bytes = b""
    gone: bool = False  # the client left before the response ended
    ended: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.status or '-'}{' (client left)' * self.gone}"


class RecordingProxy:
    """Passes on connections to a port of this machine, each for one request.

    Attributes:
        requests: all requests, in order.
    """

    def __init__(self, target: int) -> None:
        self.requests: list[Recorded] = []
        self.port = 0
        self._target = target

    async def serve(self, ready: threading.Event) -> None:
        """Until it is cancelled."""
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await server.serve_forever()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        record = Recorded()
        inner, outer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._request(record, reader, outer)
                there = asyncio.create_task(self._reply(record, inner, writer))
                left = asyncio.create_task(reader.read(1))  # b"" once the client leaves
                await asyncio.wait((there, left), return_when=asyncio.FIRST_COMPLETED)
                record.gone = not there.done()
                for task in (there, left):
                    task.cancel()
                await asyncio.gather(there, left, return_exceptions=True)
        finally:
            record.ended = True
            outer.close()
            writer.close()

    async def _request(
        self, record: Recorded, reader: asyncio.StreamReader, outer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        record.method, record.path, _ = line.split(" ")
        named = dict(each.lower().split(": ", 1) for each in lines if ": " in each)
        body = await reader.readexactly(int(named.get("content-length", 0)))
        with contextlib.suppress(ValueError):
            record.body = json.loads(body or b"{}")
        self.requests.append(record)
        kept = [each for each in lines if not each.lower().startswith("connection:")]
        once = "\r\n".join([line, "Connection: close", *kept]).encode("latin-1")
        outer.write(once + body)
        await outer.drain()

    @staticmethod
    async def _reply(
        record: Recorded, inner: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await inner.read(CHUNK):
            record.reply += chunk
            if not record.status:
                record.status = int(chunk.split(b" ", 2)[1])
            writer.write(chunk)
            await writer.drain()


@contextlib.contextmanager
def recording(target: int) -> Iterator[RecordingProxy]:
    """A proxy before a port of this machine, in a thread of its own."""
    proxy, ready, loop = RecordingProxy(target), threading.Event(), asyncio.new_event_loop()
    task = loop.create_task(proxy.serve(ready))

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
