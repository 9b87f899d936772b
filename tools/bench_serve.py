"""Measures a server under load: many streams at once, a full queue, clients that disconnect.

    python tools/bench_serve.py                          # starts `softlore serve`: the storyteller
    python tools/bench_serve.py --url http://HOST:PORT   # a server that runs already

Three parts, each over HTTP from a process of its own: streams side by side, each compared with its
own run alone; a burst beyond the queue; streams that are dropped at random places. Exit code 1 when
a text is lost, mixed up or reset, or when the server does not return to its load at the start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

OPENINGS = (
    "The old house stood by the sea, and in it lived",
    "At the gate of the town waited",
    "She opened the letter and read that",
    "Nobody had seen the lighthouse keeper since",
)


@dataclass
class Stream:
    """A text that was streamed: when its first and last tokens came, in seconds from its start."""

    text: str = ""
    tokens: int = 0
    first: float = 0.0
    last: float = 0.0
    status: int = 0


def body(number: int, tokens: int) -> dict[str, Any]:
    opening = OPENINGS[number % len(OPENINGS)]
    return {
        "prompt": f"Chapter {number}. {opening}",
        "max_length": tokens,
        "sampler_seed": number + 1,
        "temperature": 0.9,
        "top_k": 40,
        "rep_pen": 1.07,
        "rep_pen_range": 256,
        "bypass_eos": True,
    }


async def stream(url: str, request: dict[str, Any], until: int = 10**9) -> Stream:
    """Streams a text by the KoboldAI API; disconnects after `until` tokens.

    By sockets: with 64 streams on two cores a client library would be most of what is measured.
    """
    address = httpx.URL(url)
    result, start = Stream(), time.perf_counter()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        data = json.dumps(request).encode()
        head = (
            f"POST /api/extra/generate/stream HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
            "Connection: close\r\n\r\n"
        )
        writer.write(head.encode() + data)
        await writer.drain()
        result.status = int((await reader.readline()).split()[1])
        async for event in _events(reader):
            result.last = time.perf_counter() - start
            result.first = result.first or result.last
            result.text += event["token"]
            result.tokens += bool(event["token"])
            if result.tokens >= until:
                break
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return result


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    while line := await reader.readline():
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


async def load(url: str) -> dict[str, float]:
    """The server's gauges from /metrics, by name."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics")).text
    samples = re.findall(r"^softlore_(\w+) ([\d.e+]+)$", text, re.M)
    return {name: float(value) for name, value in samples}


async def settled(url: str, seconds: float = 20.0) -> dict[str, float]:
    """The load once nothing runs or waits."""
    end = time.monotonic() + seconds
    while True:
        now = await load(url)
        if not now["texts_running"] and not now["texts_waiting"]:
            return now
        if time.monotonic() > end:
            return now
        await asyncio.sleep(0.1)


async def side_by_side(url: str, count: int, tokens: int) -> bool:
    """Many streams at once: whether each equals its own run alone, their speeds, and the gain."""
    await stream(url, body(10**6, 8))  # warm
    start = time.perf_counter()
    alone = [await stream(url, body(number, tokens)) for number in range(count)]
    one = sum(s.tokens for s in alone) / (time.perf_counter() - start)
    start = time.perf_counter()
    many = await asyncio.gather(*(stream(url, body(number, tokens)) for number in range(count)))
    all_of_them = sum(s.tokens for s in many) / (time.perf_counter() - start)
    same = sum(a.text == b.text for a, b in zip(alone, many, strict=True))
    speeds = sorted(s.tokens / s.last for s in many)
    firsts = sorted(s.first for s in many)
    print(f"one stream             {one:8.0f} tokens/s")
    print(f"{count} streams             {all_of_them:8.0f} tokens/s   {all_of_them / one:.1f}×")
    print(f"each as alone          {same} of {count}")
    slowest, fastest = speeds[0], speeds[-1]
    print(
        f"slowest and fastest    {slowest:.1f}, {fastest:.1f} tokens/s   {fastest / slowest:.2f}×"
    )
    print(f"first token            median {firsts[count // 2]:.2f} s, last {firsts[-1]:.2f} s")
    return same == count


async def burst(url: str, count: int, tokens: int) -> bool:
    """More than there is room for: each is served whole or rejected with 503."""

    async def one(number: int) -> str:
        try:
            result = await stream(url, body(number, tokens))
        except (OSError, asyncio.IncompleteReadError) as error:
            return f"lost ({type(error).__name__})"
        if result.status == 503:
            return "503"
        return (
            "served" if result.status == 200 and result.tokens else f"status {result.status}, cut"
        )

    start = time.perf_counter()
    ends = Counter(await asyncio.gather(*(one(number) for number in range(count))))
    seconds = time.perf_counter() - start
    counts = ", ".join(f"{end}: {number}" for end, number in sorted(ends.items()))
    print(f"{count} at once            {counts}   ({seconds:.1f} s)")
    return set(ends) <= {"served", "503"} and ends["served"] > 0


async def aborts(url: str, count: int, tokens: int) -> bool:
    """Streams that are dropped at random: all their slots and memory must be freed."""
    draws = random.Random(0)
    before = await settled(url)
    for _ in range(count // 20):
        await asyncio.gather(
            *(stream(url, body(n, tokens), draws.randint(1, tokens // 2)) for n in range(20))
        )
    after = await settled(url)
    for name, of in (("texts_running", "texts"), ("running_bytes", "bytes of keys and values")):
        print(
            f"after {count} aborts       {of}: {before[name]:.0f} before, {after[name]:.0f} after"
        )
    return all(before[name] == after[name] for name in ("texts_running", "running_bytes"))


async def measure(url: str, options: argparse.Namespace) -> bool:
    good = [await side_by_side(url, options.streams, options.tokens)]
    await settled(url)
    good.append(await burst(url, options.requests, 16))
    await settled(url)
    good.append(await aborts(url, options.aborts, options.tokens))
    return all(good)


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    url: str
    pid: int


@contextlib.contextmanager
def serving(
    slots: int, queue: int, more: Sequence[str] = (), prompts: Path | None = None
) -> Iterator[Server]:
    """`softlore serve` with the storyteller, and prompts of a folder, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        code = "from softlore.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", "--port", str(port)]
        command += ["--prompts", str(prompts or folder)]
        command += ["--stories", f"{folder}/stories", "--lorebooks", f"{folder}/books"]
        command += ["--slots", str(slots), "--queue", str(queue), *more]
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(url, server)
            yield Server(url, server.pid)
        except BaseException:
            log.seek(0)
            print(log.read()[-4000:], file=sys.stderr)
            raise
        finally:
            server.terminate()
            server.wait(60)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit("the server did not answer; see its output above")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=100, help="of each stream")
    parser.add_argument("--requests", type=int, default=500, help="in the burst")
    parser.add_argument("--aborts", type=int, default=200)
    options = parser.parse_args()
    if options.url:
        return int(not asyncio.run(measure(options.url, options)))
    with serving(options.streams, 64) as server:
        return int(not asyncio.run(measure(server.url, options)))


if __name__ == "__main__":
    sys.exit(main())
