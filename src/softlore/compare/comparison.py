"""The contest of ways on one lorebook: what each brings about and costs, over several seeds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from softlore.compare.methods import MethodResult, make_all
from softlore.errors import ConfigError, LoreError
from softlore.lore import Lorebook
from softlore.lore.keywords import lore_keywords, words
from softlore.measure.conditioning import ConditioningEvaluator
from softlore.measure.evaluate import check_settings
from softlore.measure.material import Material, gather
from softlore.measure.results import Measures, StoryMeasures
from softlore.measure.stories import judge, story_openings, write_stories
from softlore.model import FrozenModel

# Two-sided 95 % points of Student's t, by degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
Maker = Callable[[FrozenModel, Lorebook, int, float, Callable[[str], None]], list[MethodResult]]
COLUMNS = ("held_out", "drift", "lore_words", "copy", "perplexity", "tokens", "seconds")


@dataclass(frozen=True)
class MethodScores:
    """One way's measures for one entry, under one seed."""

    way: str
    kind: str
    entry: str
    seed: int
    seconds: float
    measures: Measures
    conditioning: str

    def figures(self) -> dict[str, float | None]:
        """The figures of the tables, by column; recall by its distance."""
        one, told = self.measures, self.measures.stories
        found: dict[str, float | None] = {f"recall_{d}": v for d, v in one.recall.items()}
        return found | {
            "held_out": one.held_out,
            "drift": one.drift,
            "lore_words": told.lore_words.a_story if told else None,
            "copy": float(told.copy.run) if told else None,
            "perplexity": told.perplexity if told else None,
            "tokens": float(one.tokens),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and half the width of its 95 % interval; None for a single seed."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ±{self.half:.2f}" if self.half else "")


@dataclass(frozen=True)
class Comparison:
    """All that a comparison found.

    Attributes:
        distances: tokens of story between head and call.
        seconds: how long all of it took.
        story_tokens: how long stories are.
    """

    lorebook: str
    model: str
    seeds: list[int]
    distances: list[int]
    results: list[MethodScores]
    seconds: float
    story_tokens: int = 60

    @property
    def asked(self) -> bool:
        """Whether anything has calls and responses, which recall is measured by."""
        return any(v is not None for one in self.results for v in one.measures.recall.values())

    @property
    def ways(self) -> dict[str, str]:
        """The ways and their kinds, in the order they were tried."""
        return {one.way: one.kind for one in self.results}

    @property
    def columns(self) -> list[str]:
        return [*(f"recall_{distance}" for distance in self.distances), *COLUMNS]

    def total(self) -> dict[str, dict[str, Interval | None]]:
        """By way and column: the mean of all entries, with its interval over the seeds."""
        return {
            way: {column: self._interval(way, column) for column in self.columns}
            for way in self.ways
        }

    def of_entry(self, entry: str) -> dict[str, dict[str, Interval | None]]:
        """`total` for one entry."""
        return {
            way: {column: self._interval(way, column, entry) for column in self.columns}
            for way in self.ways
        }

    def _interval(self, way: str, column: str, entry: str | None = None) -> Interval | None:
        by_seed = []
        for seed in self.seeds:
            values = [
                value
                for one in self.results
                if (one.way, one.seed) == (way, seed) and entry in (None, one.entry)
                if (value := one.figures()[column]) is not None
            ]
            if values:
                by_seed.append(statistics.fmean(values))
        return interval(by_seed) if by_seed else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "lorebook": self.lorebook,
            "model": self.model,
            "seeds": self.seeds,
            "seconds": round(self.seconds, 1),
            "story_tokens": self.story_tokens,
            "total": {
                way: {column: one and asdict(one) for column, one in columns.items()}
                for way, columns in self.total().items()
            },
            "results": [
                {
                    "way": one.way,
                    "kind": one.kind,
                    "entry": one.entry,
                    "seed": one.seed,
                    "head": one.conditioning,
                    **one.figures(),
                    "story": one.measures.stories.first if one.measures.stories else None,
                }
                for one in self.results
            ],
        }


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of a few values, by Student's t."""
    count = len(values)
    if count < 2:
        return Interval(values[0], None)
    t = _T95[min(count - 1, len(_T95)) - 1]
    return Interval(statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(count))


def run_comparison(
    model: FrozenModel,
    book: Lorebook,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    time_budget: float = 300.0,
    distances: Sequence[int] = (0, 64, 256),
    stories: int = 4,
    story_tokens: int = 60,
    make: Maker = make_all,
    on_progress: Callable[[float, str], None] | None = None,
) -> Comparison:
    """Makes every way's heads for a lorebook, and measures them all alike.

    Args:
        seeds: each makes and measures everything once.
        time_budget: seconds for all searching and training, of all seeds together.
        make: what makes the ways: `ways.make_all`, or `ways.make_styles`.
        on_progress: called with the share that is done and a word on what comes next.

    Raises:
        LoreError: a lorebook without entries.
        ConfigError: a setting out of range.
    """
    if not book.entries:
        raise LoreError(f"lorebook {book.name!r} has no entries; expected at least one; add one")
    if not 0 < time_budget < math.inf:
        raise ConfigError(f"time_budget is {time_budget}; expected seconds above 0; give it some")
    start = time.monotonic()
    tell = on_progress or (lambda done, doing: None)
    distances = check_settings(stories, story_tokens, distances)
    results: list[MethodScores] = []
    for number, seed in enumerate(seeds):
        done = number / len(seeds)

        def told(way: str, done: float = done, seed: int = seed) -> None:
            tell(done, f"seed {seed}: {way}")

        made = make(model, book, seed, time_budget / len(seeds), told)
        tell(done + 0.7 / len(seeds), f"seed {seed}: measuring")
        results += _measured(model, book, made, seed, distances, stories, story_tokens)
    tell(1.0, "done")
    seconds = time.monotonic() - start
    return Comparison(book.name, model.name, list(seeds), distances, results, seconds, story_tokens)


def _measured(
    model: FrozenModel,
    book: Lorebook,
    made: Sequence[MethodResult],
    seed: int,
    distances: list[int],
    stories: int,
    story_tokens: int,
) -> list[MethodScores]:
    material = gather(model, max(distances), seed)
    bench = ConditioningEvaluator(model, material, distances)
    openings = _openings(book, stories)
    found: list[MethodScores] = []
    for way in made:
        results = []
        for name, conditioning in way.conditionings.items():
            measures = bench.measure(book[name], conditioning)
            if measures is not None:
                shown = conditioning if isinstance(conditioning, str) else ""
                results.append(
                    MethodScores(way.way, way.kind, name, seed, way.seconds, measures, shown)
                )
        told = _stories(model, book, way, results, openings, material, story_tokens, seed)
        found += [
            replace(one, measures=replace(one.measures, stories=stories))
            for one, stories in zip(results, told, strict=True)
        ]
    return found


def _stories(
    model: FrozenModel,
    book: Lorebook,
    way: MethodResult,
    results: Sequence[MethodScores],
    openings: Mapping[str, list[str]],
    material: Material,
    tokens: int,
    seed: int,
) -> list[StoryMeasures | None]:
    """What came of stories under a way's heads; the same draws for every way."""
    begun = [openings[one.entry] for one in results]
    if not any(begun):
        return [None] * len(results)
    jobs = [
        (way.conditionings[one.entry], [model.encode(opening) for opening in mine])
        for one, mine in zip(results, begun, strict=True)
    ]
    told: list[StoryMeasures | None] = []
    for one, mine, written in zip(
        results, begun, write_stories(model, jobs, tokens, seed), strict=True
    ):
        entry = book[one.entry]
        keywords = lore_keywords(entry, material.known.union(*map(words, mine)))
        told.append(None if written is None else judge(model, entry, mine, written, keywords))
    return told


def _openings(book: Lorebook, count: int) -> dict[str, list[str]]:
    found = {}
    for entry in book:
        begun = story_openings(entry)
        found[entry.name] = [begun[i % len(begun)] for i in range(count)]
    return found
