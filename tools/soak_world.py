"""Soak test of a large lorebook: many stories at one server, each with ten prompts of a thousand.

    python tools/soak_world.py prompts --minutes 60 --json soak.json

Each story is written by turns from the KoboldAI API, with the tags of ten prompts in its memory,
and other ten after every third turn; after twelve turns another story begins. Of six minutes the
last one is without prompts, for the speed beside it. Between the turns a story sends greedy
requests whose text was written before, while nothing else ran: a different text means that texts
were mixed up, or that rounding in the running batch decided between two tokens as likely; the
report tells both apart. Exit code 1 when texts were mixed up, when a response is not 200, or when
memory grows by more than a tenth after the first quarter.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench_serve import OPENINGS, body, serving, stream
from soak import finish, growth, watch

TURNS, ACTIVE, KEPT_TURNS = 12, 10, 3
CYCLE = 6  # parts of which the last is without prompts
PROBES, PROBE_TOKENS = 96, 24
ROUNDING = 0.05  # the share of probes that may differ by rounding


@dataclass(frozen=True)
class Probe:
    """A greedy request, and the text that it has alone."""

    request: dict[str, Any]
    expected: str


class WorldSoak:
    """Stories at a server whose library holds a large lorebook's prompts, until time is up."""

    def __init__(self, url: str, names: list[str], seconds: float, stories: int) -> None:
        self.url, self.names, self.stories = url, names, stories
        self.seconds, self.part = seconds, min(60.0, seconds / CYCLE)
        self.start = time.monotonic()
        self.statuses: Counter[int] = Counter()
        self.tokens = 0
        self.parts: Counter[int] = Counter()  # tokens of each part of time
        self.probes: list[Probe] = []
        self.probed: Counter[str] = Counter()
        self.changed = 0  # probes whose prompts change their text
        self.woken: set[str] = set()

    @property
    def end(self) -> float:
        return self.start + self.seconds

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end

    @property
    def now(self) -> int:
        """The number of the part of time."""
        return int((time.monotonic() - self.start) / self.part)

    async def run(self) -> None:
        await asyncio.gather(*(self.story(number) for number in range(self.stories)))

    async def prepare(self) -> None:
        """The texts of the probes, one after another; the time starts after them."""
        draws = random.Random(0)
        for number in range(PROBES):
            memory = tags(draws.sample(self.names, ACTIVE))
            request = turn(number, memory, OPENINGS[number % len(OPENINGS)], PROBE_TOKENS)
            request |= {"temperature": 0, "rep_pen": 1}
            self.probes.append(Probe(request, await self.write(request)))
            bare = await self.write(request | {"memory": ""})
            self.changed += bare != self.probes[-1].expected
        self.statuses.clear()
        self.parts.clear()
        self.tokens, self.start = 0, time.monotonic()

    async def story(self, number: int) -> None:
        """Turns of one story after another, and a probe now and then."""
        draws = random.Random(1 + number)
        while not self.over:
            text, names = OPENINGS[number % len(OPENINGS)], list[str]()
            for count in range(TURNS):
                if self.over:
                    return
                if count % KEPT_TURNS == 0:
                    names = draws.sample(self.names, ACTIVE)
                plain = self.now % CYCLE == CYCLE - 1
                memory = "" if plain else tags(names)
                if not plain:
                    self.woken.update(names)
                speaker = names[count % ACTIVE]
                text += f"\nThen {speaker} came, and"
                text += await self.write(turn(draws.randrange(10**6), memory, text, 40))
                if draws.random() < 0.1 and not plain:
                    await self.probe(draws.choice(self.probes))

    async def probe(self, probe: Probe) -> None:
        text = await self.write(probe.request)
        if text == probe.expected:
            end = "as alone"
        elif any(text == other.expected for other in self.probes):
            end = "another's"
        else:
            same = sum(a == b for a, b in zip(text, probe.expected, strict=False))
            end = "differs late" if same > 8 else "differs from the start"
        self.probed[end] += 1

    async def write(self, request: dict[str, Any]) -> str:
        part = self.now
        result = await stream(self.url, request)
        self.statuses[result.status] += 1
        self.tokens += result.tokens
        if part == self.now:  # what ends in another part says nothing about either
            self.parts[part] += result.tokens
        return result.text


def tags(names: list[str]) -> str:
    return "".join(f"[[soft:{name}]]" for name in names)


def turn(seed: int, memory: str, text: str, tokens: int) -> dict[str, Any]:
    return body(seed, tokens) | {"prompt": text, "memory": memory, "max_context_length": 1024}


def speeds(soak: WorldSoak) -> dict[str, Any]:
    """Tokens a second with prompts and without, and the ratio in the middle of the cycles."""
    lore, plain, ratios = [], [], []
    for first in range(0, soak.now - CYCLE + 1, CYCLE):
        counts = [soak.parts[first + i] / soak.part for i in range(CYCLE)]
        lore.append(sum(counts[:-1]) / (CYCLE - 1))
        plain.append(counts[-1])
        ratios.append(lore[-1] / plain[-1] if plain[-1] else 0.0)
    if not ratios:
        return {}
    return {
        "tokens_per_second": round(median(lore), 1),
        "without_prompts": round(median(plain), 1),
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


async def run(url: str, pid: int, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    soak = WorldSoak(url, names, 60 * options.minutes, options.stories)
    await soak.prepare()
    samples = list[dict[str, float]]()
    await asyncio.gather(soak.run(), watch(soak, pid, samples, soak.part))
    grown = growth(samples)
    probed, total = soak.probed, max(1, soak.probed.total())
    mixed = probed["another's"] + probed["differs from the start"]
    return {
        "minutes": options.minutes,
        "stories": options.stories,
        "prompts": len(names),
        "woken": len(soak.woken),
        "tokens": soak.tokens,
        "answers": dict(sorted(soak.statuses.items())),
        "probes": dict(probed),
        "changed_by_prompts": f"{soak.changed} of {PROBES}",
        **speeds(soak),
        "memory_mb": [sample["memory_mb"] for sample in samples],
        "growth": round(grown, 4),
        "good": set(soak.statuses) == {200}
        and mixed + probed["differs late"] <= ROUNDING * total
        and not probed["another's"]
        and grown < 0.1,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("prompts", type=Path, help="a folder of prompts, as `softlore train` saves")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--stories", type=int, default=64, help="at once")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    options = parser.parse_args()
    from softlore import PromptLibrary

    names = sorted(PromptLibrary(options.prompts))
    more = ["--keep-mb", "256", "--log-level", "warning"]
    with serving(options.stories, 16, more, prompts=options.prompts) as server:
        report = asyncio.run(run(server.url, server.pid, names, options))
    return finish(report, options.json)


if __name__ == "__main__":
    sys.exit(main())
