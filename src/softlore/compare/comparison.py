"""Compares methods on one lorebook: effect and cost of each, over several seeds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
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
    """

    lorebook: str
    model: str
    seeds: list[int]
    distances: list[int]
    rows: list[Row]
    seconds: float
    story_tokens: int = 60

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
) -> Comparison:
    """Makes every method's conditionings for a lorebook, and measures them all alike.

    Args:
        seeds: each makes and measures everything once.
        time_budget: seconds for all searching and training, of all seeds together.
        make: makes the conditionings: `methods.make_all` or `methods.make_styles`.
        path: JSON lines of the rows; seeds in the file are not measured again.
        on_progress: called with the share that is done and what is being done.

    Raises:
        LoreError: a lorebook without entries.
        ConfigError: a setting out of range.
    """
    if not book.entries:
        raise LoreError(f"lorebook {book.name!r} has no entries; expected at least one; add one")
    if not 0 < time_budget < math.inf:
        raise ConfigError(
            f"time_budget is {time_budget}; expected a number of seconds above 0; change it"
        )
    distances = check_settings(stories, story_tokens, distances)
    start = time.monotonic()
    report = on_progress or (lambda done, doing: None)
    seeds = list(seeds)

    def measure(seed: int) -> Iterator[Row]:
        done, budget = seeds.index(seed) / len(seeds), time_budget / len(seeds)
        made = make(model, book, seed, budget, lambda name: report(done, f"seed {seed}: {name}"))
        report(done + 0.7 / len(seeds), f"seed {seed}: measuring")
        material = gather(model, max(distances), seed)
        evaluator = ConditioningEvaluator(model, material, distances)
        story_evaluator = StoryEvaluator(model, material, book, stories, story_tokens, seed)
        for method in made:
            measured = {
                entry: measures
                for entry, conditioning in method.conditionings.items()
                if (measures := evaluator.measure(book[entry], conditioning)) is not None
            }
            written = story_evaluator.measure({e: method.conditionings[e] for e in measured})
            for entry, measures in measured.items():
                yield _row(method, entry, measures, written[entry])

    rows = run_cases(grid(seed=seeds), measure, path)
    report(1.0, "done")
    seconds = time.monotonic() - start
    return Comparison(book.name, model.name, seeds, distances, rows, seconds, story_tokens)


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
