"""The demo: a small lorebook trained, measured, and shown in stories beside its plain text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from softlore import demo as data
from softlore.compare.harness import OnProgress
from softlore.compare.methods import TrainedMethod, TrainingObserver, train_method
from softlore.context.compose import ContextLike
from softlore.disk import storage_error
from softlore.lore import Entry, Lorebook
from softlore.measure import Evaluation, evaluate
from softlore.measure.evaluate import plain_text
from softlore.measure.stories import write_stories
from softlore.model import FrozenModel
from softlore.prompts import PromptLibrary, SoftPrompt

TIME_BUDGET = 280.0  # seconds in all
TRAINING_SHARE = 0.57  # of the time budget; the rest is for measuring and for the samples
SAMPLE_TOKENS = 40
LARGE = 50_000_000  # parameters; larger models learn fewer entries, by one method
SHOWN = ("Marta", "Tobias", "Captain Rook")  # entries of a large model
MEASURES: dict[str, Any] = {"stories": 6}
LARGE_MEASURES: dict[str, Any] = {"stories": 2, "story_tokens": 40, "distances": (0, 64, 256)}
QUICK_MEASURES: dict[str, Any] = {"stories": 1, "story_tokens": 8, "distances": (0, 8)}


@dataclass(frozen=True)
class DemoObserver:
    """Callbacks for progress.

    Attributes:
        say: called with a line when a step begins.
        training: makes a context that gives what observes a training.
        measuring: makes a context that gives what `evaluate` calls.
    """

    say: Callable[[str], None] = lambda line: None
    training: Callable[[], AbstractContextManager[TrainingObserver | None]] = nullcontext
    measuring: Callable[[], AbstractContextManager[OnProgress | None]] = nullcontext


@dataclass(frozen=True)
class DemoMethod:
    """A method of training, and its entries.

    Attributes:
        share: of the time budget.
        suffix: added to the entries' names to name the prompts.
    """

    name: str
    title: str
    entries: Sequence[Entry]
    settings: dict[str, Any]
    share: float
    suffix: str = ""


@dataclass(frozen=True)
class DemoResult:
    """The prompts of a method, by entry, and their measures."""

    method: DemoMethod
    trained: TrainedMethod
    prompts: dict[str, SoftPrompt]
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        curves = {
            name: {term: [round(loss, 4) for loss in losses] for term, losses in terms.items()}
            for name, terms in self.trained.curves.items()
        }
        return {
            "name": self.method.name,
            "title": self.method.title,
            "settings": self.method.settings,
            "prompts": {
                entry: {"name": prompt.name, "kind": prompt.kind, "n_tokens": len(prompt)}
                for entry, prompt in self.prompts.items()
            },
            "updates": self.trained.updates,
            "seconds": round(self.trained.seconds, 1),
            "curves": curves,
            "evaluation": self.evaluation.to_dict(),
        }


@dataclass(frozen=True)
class Sample:
    """The same opening continued after nothing, the plain text and a soft prompt.

    Attributes:
        prompt: name of the soft prompt.
        without, text, soft: the continuations, sampled with the same seed.
        lore_words: words of the lore, which are marked in all three.
        tokens: of the plain text and of the soft prompt.
    """

    prompt: str
    opening: str
    without: str
    text: str
    soft: str
    lore_words: list[str]
    tokens: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Demo:
    """The demo's results.

    Attributes:
        seconds: from the first update to the last sample.
        files: of the report, by name.
    """

    book: Lorebook
    model: str
    parameters: int
    seed: int
    results: list[DemoResult]
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
            "trained": [result.to_dict() for result in self.results],
            "samples": [asdict(sample) for sample in self.samples],
        }


def demo_methods(book: Lorebook, large: bool = False, quick: bool = False) -> list[DemoMethod]:
    """What is trained: prefixes in company; with a small model also one of each other kind."""
    small: dict[str, Any] = {"max_steps": 2, "distil_passages": 4} if quick else {}
    if large:
        settings = {
            "kind": "prefix",
            "n_tokens": 16,
            "distil_weight": 0.0,
        }
        entries = [book[name] for name in (SHOWN[:2] if quick else SHOWN)]
        return [DemoMethod("company", "prefixes, in company", entries, settings | small, 1.0)]
    rook, marta = book["Captain Rook"], book["Marta"]
    in_company = {
        "kind": "prefix",
        "n_tokens": 12,
        "max_steps": 250,
        "pairs_per_step": 8,
        "distil_weight": 0.0,
    }
    distilled = {"kind": "prefix", "n_tokens": 16, "max_steps": 150, "distil_passages": 128}
    rows = {"kind": "embedding", "n_tokens": 24, "max_steps": 150, "distil_weight": 0.0}
    return [
        DemoMethod(
            "company",
            "all entries as prefixes, in company",
            [marta, rook] if quick else list(book),
            in_company | small,
            0.68,
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
    observer: DemoObserver | None = None,
) -> Demo:
    """Trains, measures and writes samples; saves the prompts under `out`.

    Args:
        quick: two entries and two updates: a test that it runs, without useful prompts.
        time_budget: about how many seconds it may take.

    Raises:
        StorageError: a file or folder can't be written.
    """
    observer = observer or DemoObserver()
    book = Lorebook.load(data.lorebook_path())
    start = time.monotonic()
    library = PromptLibrary(_make_folder(out / "prompts"))
    results = []
    parameters = sum(p.numel() for p in model.hf.parameters())
    large = parameters > LARGE
    measures = QUICK_MEASURES if quick else LARGE_MEASURES if large else MEASURES
    for method in demo_methods(book, large, quick):
        observer.say(f"training {method.title}")
        seconds = time_budget * TRAINING_SHARE * method.share
        result = _run_method(model, book, method, seed, seconds, measures, observer)
        for prompt in result.prompts.values():
            library.save(prompt)
        results.append(result)
    observer.say("writing the samples")
    samples = _write_samples(model, book, results, seed, 8 if quick else SAMPLE_TOKENS)
    seconds = time.monotonic() - start
    return Demo(book, model.name, parameters, seed, results, samples, seconds)


def _make_folder(folder: Path) -> Path:
    """Makes the folder before the training, so that a failure costs no time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the folder", folder, error) from error
    return folder


def _run_method(
    model: FrozenModel,
    book: Lorebook,
    method: DemoMethod,
    seed: int,
    time_budget: float,
    measures: dict[str, Any],
    observer: DemoObserver,
) -> DemoResult:
    trained = train_method(
        model,
        method.name,
        observer.training,
        entries=method.entries,
        seed=seed,
        time_budget=time_budget,
        **method.settings,
    )
    prompts = trained.conditionings
    trained_book = book.model_copy(update={"entries": [book[name] for name in prompts]})
    with observer.measuring() as show:
        evaluation = evaluate(model, trained_book, prompts, seed=seed, on_progress=show, **measures)
    renamed = {name: p.replace(name=name + method.suffix) for name, p in prompts.items()}
    return DemoResult(method, trained, renamed, evaluation)


def _write_samples(
    model: FrozenModel, book: Lorebook, results: Sequence[DemoResult], seed: int, tokens: int
) -> list[Sample]:
    """Continues the demo's openings after nothing, their entry's text, and each of its prompts."""
    cases: list[tuple[SoftPrompt, str, str, list[str]]] = []
    for result in results:
        keywords = {entry.name: entry.keywords for entry in result.evaluation.entries}
        cases += [
            (result.prompts[entry], plain_text(book[entry]), opening, keywords[entry])
            for entry, opening in data.openings()
            if entry in result.prompts
        ]

    def generate(conditionings: Sequence[ContextLike]) -> list[str]:
        ids = [[model.encode(opening)] for _, _, opening, _ in cases]
        jobs = list(zip(conditionings, ids, strict=True))
        written = write_stories(model, jobs, tokens, seed)
        return [_printable(model.decode(texts[0])) if texts else "" for texts in written]

    bare = generate([""] * len(cases))
    informed = generate([text for _, text, _, _ in cases])
    soft = generate([prompt for prompt, _, _, _ in cases])
    samples = []
    for i, (prompt, text, opening, words) in enumerate(cases):
        sizes = (len(model.encode(text)), len(prompt))
        samples.append(Sample(prompt.name, opening, bare[i], informed[i], soft[i], words, sizes))
    return samples


def _printable(text: str) -> str:
    """Replaces control characters, which small models sometimes write and HTML can't hold."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def first_of_each(samples: Sequence[Sample]) -> list[Sample]:
    """The first sample of each prompt."""
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.prompt, sample)
    return list(first.values())
