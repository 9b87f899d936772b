"""Compares methods on one lorebook: effect and cost of each, over several seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from softlore.compare.harness import Interval, OnProgress, Row, grid, run_cases, summarize
from softlore.compare.methods import Maker, MethodResult, make_all
from softlore.errors import ConfigError, LoreError
from softlore.lore import Lorebook
from softlore.measure.conditioning import ConditioningEvaluator
from softlore.measure.evaluate import check_settings
from softlore.measure.material import gather
from softlore.measure.results import Measures, StoryMeasures
from softlore.measure.stories import StoryEvaluator
from softlore.model import FrozenModel

COLUMNS = ("held_out", "drift", "lore_words", "copy", "perplexity", "tokens", "seconds")


@dataclass(frozen=True)
class Comparison:
    """The measures of every method.

    Attributes:
        distances: tokens of story between conditioning and call.
        rows: one for each method, entry and seed: its figures by column (recall by its distance),
            the conditioning where it is text, and the first story.
        seconds: how long all of it took.
        story_tokens: length of the stories.
        left_out: what was not measured for want of time, in words; "" for nothing.
    """

    lorebook: str
    model: str
    seeds: list[int]
    distances: list[int]
    rows: list[Row]
    seconds: float
    story_tokens: int = 60
    left_out: str = ""

    @property
    def has_recall(self) -> bool:
        """Whether any entry has calls and responses, by which recall is measured."""
        recalls = [f"recall_{distance}" for distance in self.distances]
        return any(row[recall] is not None for row in self.rows for recall in recalls)

    @property
    def methods(self) -> dict[str, str]:
        """The methods and their kinds, in the order they were tried."""
        return {row["method"]: row["kind"] for row in self.rows}

    @property
    def columns(self) -> list[str]:
        return [*(f"recall_{distance}" for distance in self.distances), *COLUMNS]

    @cached_property
    def total(self) -> dict[str, dict[str, Interval | None]]:
        """By method and column: the mean of all entries, with its interval over the seeds."""
        return summarize(self.rows, "method", "seed", self.columns)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "lorebook": self.lorebook,
            "model": self.model,
            "seeds": self.seeds,
            "seconds": round(self.seconds, 1),
            "story_tokens": self.story_tokens,
            "left_out": self.left_out,
            "total": {
                method: {column: mean and asdict(mean) for column, mean in means.items()}
                for method, means in self.total.items()
            },
            "results": self.rows,
        }


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
    path: Path | None = None,
    on_progress: OnProgress | None = None,
    started: float | None = None,
) -> Comparison:
    """Makes every method's conditionings for a lorebook, and measures them all alike.

    Args:
        seeds: each makes and measures everything once.
        time_budget: seconds that all of it may take, from `started` on. Where they are short,
            seeds and entries are left out; one entry is measured in any case.
        started: the time on `time.monotonic` from which they count; by default now.
        make: makes the conditionings: `methods.make_all` or `methods.make_styles`.
        path: JSON lines of the rows; seeds in the file are not measured again.
        on_progress: called with the share that is done and what is being done.

    Raises:
        LoreError: a lorebook without entries.
        ConfigError: a setting out of range.
    """
    book = book.resolved()
    if not book.entries:
        raise LoreError(f"lorebook {book.name!r} has no entries; expected at least one; add one")
    if not 0 < time_budget < math.inf:
        raise ConfigError(
            f"time_budget is {time_budget}; expected a number of seconds above 0; change it"
        )
    distances = check_settings(stories, story_tokens, distances)
    clock = _Clock(time_budget, len(seeds := list(seeds)), started)
    report = on_progress or (lambda done, doing: None)

    def measure(seed: int) -> Iterator[Row]:
        if not clock.has_time():
            return
        clock.begin_seed()

        def tell(doing: str) -> None:
            report(clock.done, f"seed {seed}: {doing}")

        made = make(model, book, seed, clock.making_seconds, tell)
        tell("measuring")
        material = gather(model, max(distances), seed)
        evaluator = ConditioningEvaluator(model, material, distances)
        story_evaluator = StoryEvaluator(model, material, book, stories, story_tokens, seed)
        rows_of = partial(_rows, book, made, evaluator, story_evaluator, tell)
        names = list(dict.fromkeys(name for method in made for name in method.conditionings))
        begun = time.monotonic()
        yield from rows_of(names[:1])
        fitting = clock.count_fitting(time.monotonic() - begun, len(names))
        yield from rows_of(names[1:fitting])
        clock.end_seed()

    rows = run_cases(grid(seed=seeds), measure, path)
    report(1.0, "done")
    if not rows:
        raise LoreError(
            f"no entry of {book.name!r} could be measured in {model.name!r}, which reads "
            f"{model.context_length} tokens; expected entries that leave room for a passage; "
            "shorten them"
        )
    measured = [seed for seed in seeds if any(row["seed"] == seed for row in rows)]
    left_out = _left_out(rows, seeds, measured, book, time_budget)
    return Comparison(
        book.name, model.name, measured, distances, rows, clock.seconds, story_tokens, left_out
    )


def _rows(
    book: Lorebook,
    made: Sequence[MethodResult],
    evaluator: ConditioningEvaluator,
    story_evaluator: StoryEvaluator,
    tell: Callable[[str], None],
    entries: Sequence[str],
) -> Iterator[Row]:
    """Measures every method's conditionings of the entries."""
    for method in made:
        tell(f"measuring {method.name}")
        measured = {
            entry: measures
            for entry in entries
            if entry in method.conditionings
            and (measures := evaluator.measure([book[entry]], method.conditionings[entry])[0])
        }
        written = story_evaluator.measure([(e, method.conditionings[e]) for e in measured])
        for (entry, measures), stories in zip(measured.items(), written, strict=True):
            yield _row(method, entry, measures, stories)


class _Clock:
    """Keeps a comparison within its time: how long things may take, and what still fits."""

    def __init__(self, seconds: float, seeds: int, started: float | None) -> None:
        self._started = time.monotonic() if started is None else started
        self._budget, self._seeds = seconds, seeds
        self._begun = self._longest = 0.0

    @property
    def seconds(self) -> float:
        """Seconds that have passed."""
        return time.monotonic() - self._started

    @property
    def done(self) -> float:
        """The share of the time that has passed, below 1."""
        return min(0.99, self.seconds / self._budget)

    @property
    def making_seconds(self) -> float:
        """Seconds that a seed's conditionings may take: half of its share of the time."""
        return max(1.0, (self._budget - self.seconds) / self._seeds / 2)

    def has_time(self) -> bool:
        """Whether one more seed fits, by those before it."""
        return self.seconds + self._longest <= self._budget

    def begin_seed(self) -> None:
        self._begun = self.seconds

    def end_seed(self) -> None:
        self._longest = max(self._longest, self.seconds - self._begun)
        self._seeds = max(1, self._seeds - 1)

    def count_fitting(self, seconds_each: float, entries: int) -> int:
        """How many entries can be measured: one at least."""
        left = self._budget - self.seconds
        return min(entries, 1 + max(0, int(left / max(seconds_each, 1e-9))))


def _left_out(
    rows: Sequence[Row],
    seeds: Sequence[int],
    measured: Sequence[int],
    book: Lorebook,
    budget: float,
) -> str:
    """What a comparison leaves out for want of time."""
    entries = min(len({r["entry"] for r in rows if r["seed"] == seed}) for seed in measured)
    parts = [f"{entries} of {len(book)} entries"] if entries < len(book) else []
    if len(measured) < len(seeds):
        parts.append(f"{len(measured)} of {len(seeds)} seeds")
    if not parts:
        return ""
    return (
        f"In {budget:.0f} s {' and '.join(parts)} could be measured; a longer --time-budget "
        "measures more."
    )


def _row(
    method: MethodResult, entry: str, measures: Measures, stories: StoryMeasures | None
) -> Row:
    """The row of an entry whose conditioning fits the model's context."""
    conditioning = method.conditionings[entry]
    return {
        "method": method.name,
        "kind": method.kind,
        "entry": entry,
        "conditioning": conditioning if isinstance(conditioning, str) else "",
        **{f"recall_{distance}": value for distance, value in measures.recall.items()},
        "held_out": measures.held_out,
        "drift": measures.drift,
        "lore_words": stories.lore_words.a_story if stories else None,
        "copy": float(stories.copy.run) if stories else None,
        "perplexity": stories.perplexity if stories else None,
        "tokens": float(measures.tokens),
        "seconds": method.seconds_each,
        "story": stories.first if stories else None,
    }
