"""Measures softlore on real models, beside plain text and PEFT: the first section of
docs/results.md, one command.

    python tools/measure_real.py smollm2 gemma-3-270m.gguf --seconds 120 --out runs/real.jsonl
    python tools/measure_real.py storyteller --quick         # to see that all of it runs

For each model and seed: nothing, the lore as text, PEFT's prompt tuning and prefix tuning, each
with all of an entry's calls in an update and with four of them, and softlore's default soft
prompts. Those that are trained get the same pairs and the same
seconds: softlore trains the entries together, PEFT one after another. With --processor the seconds
are the processor's, of one thread, so that the figures of a busy machine can be compared. Each is
measured alone and in company with three others: softlore's prompts side by side, as they were
trained; text and PEFT's prompts one after another. All is measured on the same story text, stories
and passages.

The first seed of everything is measured first. With --out, an interrupted run resumes.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch

from measuring import main
from peft_training import PeftResult, joined, train_peft
from real_tables import ALONE, LOADING, TOGETHER, model_section
from softlore import demo
from softlore.compare.harness import Row, read_rows, run_cases
from softlore.compare.methods import train_method
from softlore.context.compose import ContextLike
from softlore.lore import Lorebook
from softlore.measure.conditioning import (
    ConditioningEvaluator,
    FidelityEvaluator,
    fidelity_evaluators,
)
from softlore.measure.evaluate import COMPANY, check_settings, plain_text
from softlore.measure.material import gather
from softlore.measure.results import Measures
from softlore.measure.stories import StoryEvaluator
from softlore.model import FrozenModel
from softlore.prompts import Context, SoftPrompt
from softlore.settings import TrainingConfig
from softlore.tune import TrainingProgress

SMALL = 4  # calls of an entry in a small update
RECALLED = 0.4  # nats a token: a response that is known
# By method, the kind of prompt, and how many calls an update has; None: all.
PEFT: dict[str, tuple[str, int | None]] = {
    "PEFT's prompt tuning": ("embedding", None),
    "PEFT's prompt tuning, small updates": ("embedding", SMALL),
    "PEFT's prefix tuning": ("prefix", None),
    "PEFT's prefix tuning, small updates": ("prefix", SMALL),
}
METHODS = ("nothing", "text", *PEFT, "soft")
TRAINED = (*PEFT, "soft")


@dataclass(frozen=True)
class Plan:
    """What is measured, for every model, seed and method.

    Attributes:
        seconds: of training, for each method and seed, all entries together.
        processor: the seconds are the processor's, of one thread.
        story: text for distances and drift, in place of samples of the bare model.
        training: settings of softlore's training that are not the defaults.
    """

    book: Lorebook
    seconds: float
    distances: Sequence[int]
    stories: int
    story_tokens: int
    dtype: str | None = None
    story: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    processor: bool = False

    @property
    def clock(self) -> Callable[[], float]:
        """What the seconds are of."""
        return time.process_time if self.processor else time.monotonic

    @property
    def summary(self) -> str:
        """All that decides the figures; rows of another plan in the file are not taken for ours."""
        seconds = f"{self.seconds:g} s{' of the processor' if self.processor else ''}"
        return (
            f"{self.book.name}: {', '.join(entry.name for entry in self.book)}; "
            f"{seconds}; distances {' '.join(map(str, self.distances))}; "
            f"{self.stories} stories of {self.story_tokens} tokens; "
            f"{'given' if self.story else 'sampled'} story; {self.dtype or 'default'} dtype"
        )

    def cases(self, models: Sequence[str], seeds: int, methods: Sequence[str]) -> list[Row]:
        """The first seed of everything, then the next one."""
        return [
            {"model": model, "seed": seed, "method": method, "plan": self.summary}
            for seed in range(seeds)
            for model in models
            for method in (LOADING, *methods)
        ]


@dataclass(frozen=True)
class Made:
    """What a method puts before an entry's calls: alone, and in company by entry."""

    alone: Mapping[str, ContextLike]
    together: Mapping[str, ContextLike]
    figures: Mapping[str, Row]  # by entry: seconds, updates and seconds to recall


class ModelBench:
    """One model and seed: makes each method's conditionings and measures them on one material."""

    def __init__(self, model: FrozenModel, plan: Plan, seed: int) -> None:
        self.model, self.plan, self.seed = model, plan, seed
        self.entries = plan.book.entries
        # Each entry with the next three, so that every company is of four.
        size, ring = min(COMPANY, len(self.entries)), [*self.entries, *self.entries]
        self.companies = {
            entry.name: [other.name for other in ring[i : i + size]]
            for i, entry in enumerate(self.entries)
        }

    def measure(self, method: str) -> Iterator[Row]:
        """A row for each entry, alone and in company; figures are None where it does not fit."""
        made = self._make(method)
        for setting, conditionings in ((ALONE, made.alone), (TOGETHER, made.together)):
            yield from self._measure(setting, conditionings, made.figures)

    # what is measured --------------------------------------------------------------------------

    def _make(self, method: str) -> Made:
        if method == "nothing":
            return Made({entry.name: "" for entry in self.entries}, {}, {})
        if method == "text":
            texts = {entry.name: plain_text(entry) for entry in self.entries if entry.text}
            return Made(texts, self._in_company(texts, "".join), {})
        if method == "soft":
            return self._train_soft()
        return self._train_with_peft(*PEFT[method])

    def _in_company(
        self, alone: Mapping[str, Any], join: Callable[[list[Any]], ContextLike]
    ) -> dict[str, ContextLike]:
        """Each entry's company joined; left out where one of them is missing."""
        return {
            name: join([alone[other] for other in company])
            for name, company in self.companies.items()
            if len(company) > 1 and all(other in alone for other in company)
        }

    def _train_soft(self) -> Made:
        reached: dict[str, float] = {}
        start = self.plan.clock()

        def on_step(progress: TrainingProgress) -> None:
            for name, trainable in progress.trainables.items():
                recent = trainable.history.recent("response")
                if recent is not None and recent <= RECALLED:
                    reached.setdefault(name, self.plan.clock() - start)

        @contextlib.contextmanager
        def observe() -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(on_step=on_step, on_phase=lambda name, done: None)

        trained = train_method(
            self.model,
            "soft",
            observe,
            self.plan.seconds,
            self.plan.clock,
            entries=self.entries,
            seed=self.seed,
            **self.plan.training,
        )
        prompts = trained.conditionings
        figures = {
            name: _figures(trained.seconds, trained.updates, reached.get(name)) for name in prompts
        }
        return Made(prompts, self._in_company(prompts, Context), figures)

    def _train_with_peft(self, kind: str, in_update: int | None) -> Made:
        """Every entry for an equal share of the seconds."""
        n_tokens, share = TrainingConfig().n_tokens, self.plan.seconds / len(self.entries)
        results: dict[str, PeftResult] = {
            entry.name: train_peft(
                self.model,
                entry,
                kind,
                n_tokens,
                share,
                self.seed,
                RECALLED,
                clock=self.plan.clock,
                in_update=in_update,
            )
            for entry in self.entries
            if entry.blocks
        }
        prompts: dict[str, SoftPrompt] = {name: made.prompt for name, made in results.items()}
        seconds, before, figures = sum(made.seconds for made in results.values()), 0.0, {}
        for name, made in results.items():
            reached = None if made.to_recall is None else before + made.to_recall
            figures[name] = _figures(seconds, made.updates, reached)
            before += made.seconds
        return Made(prompts, self._in_company(prompts, joined), figures)

    # measuring ---------------------------------------------------------------------------------

    @cached_property
    def _evaluators(self) -> tuple[ConditioningEvaluator, StoryEvaluator]:
        plan = self.plan
        material = gather(self.model, max(plan.distances), self.seed, plan.story)
        stories = StoryEvaluator(
            self.model, material, self.entries, plan.stories, plan.story_tokens, self.seed
        )
        return ConditioningEvaluator(self.model, material, plan.distances), stories

    @cached_property
    def _fidelities(self) -> dict[str, FidelityEvaluator]:
        texts = [(entry, plain_text(entry) if entry.text else "") for entry in self.entries]
        return fidelity_evaluators(self.model, texts, self.seed)

    def _measure(
        self, setting: str, conditionings: Mapping[str, ContextLike], figures: Mapping[str, Row]
    ) -> Iterator[Row]:
        evaluator, stories = self._evaluators
        shared: dict[int, list[str]] = {}  # entries by the conditioning that they have in common
        for name, conditioning in conditionings.items():
            shared.setdefault(id(conditioning), []).append(name)
        measured: dict[str, Measures | None] = {}
        for names in shared.values():
            entries = [self.plan.book[name] for name in names]
            measures_of = evaluator.measure(entries, conditionings[names[0]])
            measured |= zip(names, measures_of, strict=True)
        fitting = [name for name in conditionings if measured[name] and self.plan.stories]
        written = stories.measure([(name, conditionings[name]) for name in fitting])
        stories_of = dict(zip(fitting, written, strict=True))
        for name in conditionings:
            measures, of_entry = measured[name], stories_of.get(name)
            yield {
                "setting": setting,
                "entry": name,
                **{f"recall_{d}": measures and measures.recall[d] for d in self.plan.distances},
                "tokens": measures and float(measures.tokens),
                "held_out": measures and measures.held_out,
                "drift": measures and measures.drift,
                "fidelity": measures and self._fidelities[name].measure(conditionings[name]),
                "lore_words": of_entry and of_entry.lore_words.a_story,
                **(figures.get(name) or _figures(0.0, 0, None)),
            }


def _figures(seconds: float, updates: int, to_recall: float | None) -> Row:
    """Columns of training; None where there was none, or where recall was not reached."""
    return {
        "seconds": seconds or None,
        "updates": updates or None,
        "to_recall": to_recall,
    }


class Grid:
    """Measures cases one by one, with the model that was loaded last kept in memory."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._key: tuple[str, int] | None = None
        self._bench: ModelBench | None = None

    def measure(self, model: str, seed: int, method: str, plan: str) -> list[Row]:
        start = time.monotonic()
        if self._key != (model, seed):
            self._bench = None  # its memory is free before the next one is loaded
            loaded = FrozenModel.from_pretrained(model, dtype=self.plan.dtype)
            self._key, self._bench = (model, seed), ModelBench(loaded, self.plan, seed)
        assert self._bench is not None
        if method == LOADING:
            context = self._bench.model.context_length
            return [{"load_seconds": time.monotonic() - start, "context_length": context}]
        return list(self._bench.measure(method))


class Progress:
    """Says on standard error what is measured next, and about how long the rest takes."""

    def __init__(self, cases: Sequence[Row], path: Path | None, seconds: float) -> None:
        saved = read_rows(path)
        self.open = [c for c in cases if not any(c.items() <= row.items() for row in saved)]
        self.total, self.seconds = len(self.open), seconds
        self.trained = 0  # cases so far that train
        self.started = time.monotonic()
        trained = sum(case["method"] in TRAINED for case in self.open)
        say(
            f"{self.total} of {len(cases)} cases to measure; {trained} of them train for "
            f"{seconds:g} s each, {_duration(self._training())} in total; measuring comes on top, "
            "and is estimated after the first cases"
        )

    def __call__(self, share: float, case: str) -> None:
        """Called before a case that is not in the file."""
        number, spent = self.total - len(self.open), time.monotonic() - self.started
        left = "; unknown how much is left"
        if number:
            each = max(0.0, spent - self.trained * self.seconds) / number
            left = f"; about {_duration(self._training() + each * len(self.open))} left"
        current = self.open.pop(0)
        self.trained += current["method"] in TRAINED
        say(
            f"[{number + 1}/{self.total}] {current['model']}, seed {current['seed']}, "
            f"{current['method']}; {_duration(spent)} so far{left}"
        )

    def _training(self) -> float:
        """Seconds of training that are still to come."""
        return self.seconds * sum(case["method"] in TRAINED for case in self.open)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def real(
    models: Annotated[list[str], "short names, folders, hub ids or GGUF files"],
    /,
    *,
    entries: Annotated[int, "of the lorebook, from its beginning"] = 7,
    seeds: Annotated[int, "of everything that is drawn and trained"] = 3,
    seconds: Annotated[float, "of training, for each method and seed"] = 120.0,
    methods: Annotated[list[str], "which of these"] = list(METHODS),  # noqa: B006 - read only
    processor: Annotated[bool, "the seconds are the processor's, of one thread"] = False,
    distances: Annotated[list[int], "tokens of story before the call"] = [0, 64, 256, 1000],  # noqa: B006 - read only
    stories: Annotated[int, "for each entry and method"] = 8,
    story_tokens: Annotated[int, "length of each"] = 60,
    lorebook: Annotated[Path | None, "in place of the demo's"] = None,
    story: Annotated[Path | None, "text for distances and drift, else sampled"] = None,
    dtype: Annotated[str | None, "such as bfloat16"] = None,
    out: Annotated[Path | None, "JSON lines; cases in the file are not measured again"] = None,
    quick: Annotated[bool, "tiny settings, to see that it runs"] = False,
) -> None:
    """Markdown tables: means with 95 % intervals over the seeds, and the worst prompt."""
    if quick:
        entries, seeds, seconds = min(entries, 2), min(seeds, 1), min(seconds, 1.0)
        distances, stories, story_tokens = [0, 16], min(stories, 2), min(story_tokens, 8)
    if unknown := set(methods) - set(METHODS):
        raise SystemExit(f"no method {min(unknown)!r}; expected of: {', '.join(METHODS)}")
    book = Lorebook.load(lorebook or demo.lorebook_path())
    book = book.model_copy(update={"entries": book.entries[:entries]})
    plan = Plan(
        book,
        seconds,
        check_settings(stories, story_tokens, distances),
        stories,
        story_tokens,
        dtype,
        story.read_text(encoding="utf-8") if story else None,
        {"distil_passages": 8} if quick else {},
        processor,
    )
    if processor:
        torch.set_num_threads(1)
    cases = plan.cases(models, seeds, methods)
    rows = run_cases(cases, Grid(plan).measure, out, on_progress=Progress(cases, out, seconds))
    for model in models:
        print(model_section(model, [row for row in rows if row["model"] == model], plan.distances))


if __name__ == "__main__":
    main(__doc__, real)
