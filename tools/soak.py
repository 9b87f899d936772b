"""Soak test: simulated writers at one server; its memory must not grow.

    python tools/soak.py --minutes 60 --json soak.json

Some write story after story in the studio, others stream from the KoboldAI API, some disconnect,
and some send invalid requests. Once a minute the memory of the server and of its keys and values is
recorded. Exit code 1 when a response is a 5xx other than 503, or when memory grows by more than a
tenth after the first quarter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil

from bench_serve import body, load, serving, stream

WRITERS = 6
TURNS = 12  # of a story, before it is deleted and another is started


class Soak:
    """Writers at a server, until time is up."""

    def __init__(self, url: str, seconds: float) -> None:
        self.url = url
        self.end = time.monotonic() + seconds
        self.statuses: Counter[int] = Counter()
        self.tokens = 0

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end

    async def run(self) -> None:
        """All of them at once."""
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
            writers = [self.writer(client, number) for number in range(WRITERS)]
            readers = [self.reader(number) for number in range(WRITERS)]
            await asyncio.gather(*writers, *readers, self.stranger(client))

    async def writer(self, client: httpx.AsyncClient, number: int) -> None:
        """Stories in the studio: turns, retries, undo, and then another story."""
        draws, story = random.Random(number), 0
        while not self.over:
            name = f"story {number} {story}"
            story += 1
            await self.call(client, "POST", "/studio/api/stories", {"name": name})
            path = f"/studio/api/stories/{name}"
            for turn in range(TURNS):
                if self.over:
                    break
                what: dict[str, Any] = {"tokens": draws.randint(10, 60)}
                if turn and draws.random() < 0.2:
                    what["retry"] = True
                else:
                    what["text"] = f" Turn {turn} of {name}: the old house stood by the sea."
                await self.call(client, "POST", f"{path}/write", what)
                if draws.random() < 0.2:
                    await self.call(client, "POST", f"{path}/undo", {})
                    await self.call(client, "POST", f"{path}/redo", {})
            await self.call(client, "DELETE", path)

    async def reader(self, number: int) -> None:
        """Streams of the KoboldAI API, some of which are dropped."""
        draws = random.Random(-1 - number)
        while not self.over:
            until = draws.choice([5, 20, 10**9])
            result = await stream(
                self.url, body(draws.randrange(10**6), draws.randint(5, 80)), until
            )
            self.statuses[result.status] += 1
            self.tokens += result.tokens

    async def stranger(self, client: httpx.AsyncClient) -> None:
        """Invalid requests."""
        odd: list[tuple[str, str, Any]] = [
            ("POST", "/v1/completions", {"prompt": "[[soft:nobody]]"}),
            ("POST", "/v1/chat/completions", {"messages": "?"}),
            ("POST", "/api/v1/generate", {"prompt": "x" * 100_000, "max_length": 3}),
            ("POST", "/studio/api/stories", {"name": "../../etc/passwd"}),
            ("GET", "/studio/api/stories/nobody", None),
            ("POST", "/studio/api/prompts/import?filename=x.zip&name=x", {"not": "a prompt"}),
        ]
        for number in range(10**9):
            if self.over:
                return
            await self.call(client, *odd[number % len(odd)])
            await asyncio.sleep(1)

    async def call(
        self, client: httpx.AsyncClient, method: str, path: str, what: Any = None
    ) -> None:
        reply = await client.request(method, path, json=what)
        self.statuses[reply.status_code] += 1
        self.tokens += reply.text.count("event: token")


class Timed(Protocol):
    """A run of requests that ends at a time, with what it has written."""

    url: str
    tokens: int

    @property
    def end(self) -> float: ...

    @property
    def over(self) -> bool: ...


async def watch(soak: Timed, pid: int, samples: list[dict[str, float]], every: float) -> None:
    """Records the server's memory every so many seconds."""
    process, start = psutil.Process(pid), time.monotonic()
    while not soak.over:
        await asyncio.sleep(min(every, max(0.1, soak.end - time.monotonic())))
        now = {
            "minutes": round((time.monotonic() - start) / 60, 2),
            "memory_mb": round(process.memory_info().rss / 2**20, 1),
            "kept_mb": round((await load(soak.url))["kept_bytes"] / 2**20, 1),
            "tokens": soak.tokens,
        }
        samples.append(now)
        print(json.dumps(now), file=sys.stderr, flush=True)


def growth(samples: list[dict[str, float]]) -> float:
    """By what share memory grew after the first quarter."""
    later = samples[len(samples) // 4 :]
    return later[-1]["memory_mb"] / later[0]["memory_mb"] - 1


async def run(url: str, pid: int, minutes: float) -> dict[str, Any]:
    soak, samples = Soak(url, 60 * minutes), list[dict[str, float]]()
    await asyncio.gather(soak.run(), watch(soak, pid, samples, min(60, 60 * minutes / 20)))
    grown = growth(samples)
    bad = {status: n for status, n in soak.statuses.items() if status >= 500 and status != 503}
    return {
        "minutes": minutes,
        "tokens": soak.tokens,
        "answers": dict(sorted(soak.statuses.items())),
        "memory_mb": [sample["memory_mb"] for sample in samples],
        "growth": round(grown, 4),
        "good": not bad and grown < 0.1,
    }


def finish(report: dict[str, Any], path: Path | None) -> int:
    """Prints a report, and writes it to a file if one is given; returns the exit code."""
    text = json.dumps(report, indent=1)
    print(text)
    if path:
        path.write_text(text + "\n", encoding="utf-8")
    return int(not report["good"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--json", type=Path, help="write the report to this file")
    options = parser.parse_args()
    with serving(slots=16, queue=16, more=["--keep-mb", "64", "--log-level", "warning"]) as server:
        report = asyncio.run(run(server.url, server.pid, options.minutes))
    return finish(report, options.json)


if __name__ == "__main__":
    sys.exit(main())
