"""The demo: a small lorebook trained in three ways, measured, and shown in a story."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softlore import demo as data
from softlore.compare.samples import Sample, write_samples
from softlore.disk import storage_error
from softlore.lore import Entry, Lorebook
from softlore.measure import Evaluation, evaluate
from softlore.model import FrozenModel
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.tune import TrainingProgress, WorldInfoTrainer

TIME_BUDGET = 190.0  # seconds of updates
SAMPLE_TOKENS = 40
# How much is measured.
SIZES: dict[str, Any] = {"stories": 6}
QUICK_SIZES: dict[str, Any] = {"stories": 1, "story_tokens": 8, "distances": (0, 8)}

OnStep = Callable[[TrainingProgress], "bool | None"]
OnProgress = Callable[[float, str], None]


@dataclass(frozen=True)
class DemoObserver:
    """Who is told how far the demo is.

    Attributes:
        say: called with a line on what begins.
        training: a context that gives what the trainer calls after each update.
        measuring: a context that gives what `evaluate` calls.
    """

    say: Callable[[str], None] = lambda line: None
    training: Callable[[], AbstractContextManager[OnStep | None]] = nullcontext
    measuring: Callable[[], AbstractContextManager[OnProgress | None]] = nullcontext


@dataclass(frozen=True)
class DemoMethod:
    """One way of training, and on what.

    Attributes:
        share: of the time budget.
        suffix: added to the names of the prompts, which else are their entries'.
    """

    name: str
    title: str
    entries: Sequence[Entry]
    settings: dict[str, Any]
    share: float
    suffix: str = ""


@dataclass(frozen=True)
class Trained:
    """What came of a way of training.

    Attributes:
        curves: by entry, the losses of each update (nats a token): response, guard, distil.
        evaluation: of its prompts, under the names of their entries.
        seconds: of training, the reading of the lore included.
    """

    way: DemoMethod
    prompts: dict[str, SoftPrompt]
    curves: dict[str, dict[str, list[float]]]
    evaluation: Evaluation
    updates: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        rounded = {
            name: {kind: [round(loss, 4) for loss in losses] for kind, losses in kinds.items()}
            for name, kinds in self.curves.items()
        }
        return {
            "name": self.way.name,
            "title": self.way.title,
            "settings": self.way.settings,
            "prompts": {
                entry: {"name": prompt.name, "kind": prompt.kind, "n_tokens": len(prompt)}
                for entry, prompt in self.prompts.items()
            },
            "updates": self.updates,
            "seconds": round(self.seconds, 1),
            "curves": rounded,
            "evaluation": self.evaluation.to_dict(),
        }


@dataclass(frozen=True)
class Demo:
    """All that the demo found.

    Attributes:
        samples: openings written on without and with the prompt of their entry.
        seconds: from the first update to the last sample.
    """

    book: Lorebook
    model: str
    parameters: int
    seed: int
    trained: list[Trained]
    samples: list[Sample]
    seconds: float
    files: dict[str, Path] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "lorebook": self.book.name,
            "model": self.model,
            "parameters": self.parameters,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "trained": [one.to_dict() for one in self.trained],
            "samples": [sample.to_dict() for sample in self.samples],
        }


def demo_methods(book: Lorebook, quick: bool = False) -> list[DemoMethod]:
    """The three ways of the demo: in company, from the text alone, and as embedding rows."""
    rook, marta = book["Captain Rook"], book["Marta"]
    entries = [marta, rook] if quick else list(book)
    small: dict[str, Any] = {"max_steps": 2, "distil_passages": 4} if quick else {}
    in_company = {
        "kind": "prefix",
        "n_tokens": 12,
        "max_steps": 250,
        "max_spacing": 96,
        "pairs_per_step": 8,
        "distil_weight": 0.0,
    }
    distilled = {"kind": "prefix", "n_tokens": 16, "max_steps": 150, "distil_passages": 128}
    rows = {"kind": "embedding", "n_tokens": 24, "max_steps": 150, "distil_weight": 0.0}
    return [
        DemoMethod(
            "company", "all entries as prefixes, in company", entries, in_company | small, 0.68
        ),
        DemoMethod(
            "distilled",
            f"{rook.name} as a prefix, from the text alone",
            [rook.model_copy(update={"blocks": []})],
            distilled | small,
            0.16,
            " from text",
        ),
        DemoMethod(
            "embedding",
            f"{marta.name} as embedding rows",
            [marta],
            rows | small,
            0.16,
            " as rows",
        ),
    ]


def run_demo(
    model: FrozenModel,
    out: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    time_budget: float = TIME_BUDGET,
    onlooker: DemoObserver | None = None,
) -> Demo:
    """Trains, measures, writes; saves the prompts under `out`.

    Args:
        quick: two entries and updates, to see that it runs; the prompts are good for nothing.
        time_budget: most seconds of updates.

    Raises:
        StorageError: the disk refuses.
    """
    told = onlooker or DemoObserver()
    book = Lorebook.load(data.lorebook_path())
    start = time.monotonic()
    library = PromptLibrary(_made(out / "prompts"))
    trained = []
    for way in demo_methods(book, quick):
        told.say(f"training {way.title}")
        found = _train(model, book, way, seed, quick, time_budget * way.share, told)
        for prompt in found.prompts.values():
            library.save(prompt)
        trained.append(found)
    told.say("writing the samples")
    samples = _samples(model, trained, seed, 8 if quick else SAMPLE_TOKENS)
    parameters = sum(p.numel() for p in model.hf.parameters())
    seconds = time.monotonic() - start
    return Demo(book, model.name, parameters, seed, trained, samples, seconds)


def _made(folder: Path) -> Path:
    """The folder, made now: a disk that refuses is better met before the training than after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the folder", folder, error) from error
    return folder


def _train(
    model: FrozenModel,
    book: Lorebook,
    way: DemoMethod,
    seed: int,
    quick: bool,
    time_budget: float,
    told: DemoObserver,
) -> Trained:
    start = time.monotonic()
    trainer = WorldInfoTrainer(
        model, entries=way.entries, seed=seed, time_budget=time_budget, **way.settings
    )
    trainer.prepare()
    with told.training() as trainer.on_step:
        made: dict[str, SoftPrompt] = trainer.train()
    seconds = time.monotonic() - start
    prompts = {name: one.replace(name=name + way.suffix) for name, one in made.items()}
    of_these = book.model_copy(update={"entries": [book[name] for name in made]})
    with told.measuring() as show:
        sizes = QUICK_SIZES if quick else SIZES
        evaluation = evaluate(model, of_these, made, seed=seed, on_progress=show, **sizes)
    curves = {name: vars(one.history) for name, one in trainer.trainables.items()}
    return Trained(way, prompts, curves, evaluation, trainer.step, seconds)


def _samples(
    model: FrozenModel, trained: Sequence[Trained], seed: int, tokens: int
) -> list[Sample]:
    """The demo's openings, with each prompt of their entry."""
    lore_words: dict[str, list[str]] = {}
    asked: list[tuple[SoftPrompt, str]] = []
    for one in trained:
        words = {entry.name: entry.keywords for entry in one.evaluation.entries}
        lore_words |= {prompt.name: words[name] for name, prompt in one.prompts.items()}
        asked += [
            (one.prompts[name], opening) for name, opening in data.openings() if name in one.prompts
        ]
    return write_samples(model, asked, lore_words, tokens, seed)
