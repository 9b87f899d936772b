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
from softlore.compare.samples import Sample, SampleWriter
from softlore.disk import storage_error
from softlore.lore import Entry, Lorebook
from softlore.measure.evaluate import LorebookEvaluator
from softlore.measure.results import Evaluation
from softlore.model import FrozenModel
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.tune.lorebook_training import FEW_UPDATES, too_few_updates

TIME_BUDGET = 280.0  # seconds in all
ENOUGH = 900.0  # on a busy machine
LEAST_TRAINING = 0.5  # of the time budget, however long measuring takes
PROMPTS_SHARE = 0.5  # seconds of measuring with prompts for each one of measuring without
SAMPLE_TOKENS = 40
LARGE = 50_000_000  # parameters; larger models learn fewer entries, by one method
SHOWN = ("Marta", "Tobias", "Captain Rook")  # entries of a large model
MEASURES: dict[str, Any] = {"stories": 6}
LARGE_MEASURES: dict[str, Any] = {
    "stories": 2,
    "story_tokens": 40,
    "distances": (0, 64, 256),
    "passages": 8,
}
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

    def prompt_name(self, entry: str) -> str:
        """The name of an entry's prompt, which differs between methods."""
        return entry + self.suffix


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
class Demo:
    """The demo's results.

    Attributes:
        seconds: that it took, to the last sample.
        prompts_folder: where the prompts are.
        files: of the report, by name.
    """

    book: Lorebook
    model: str
    parameters: int
    seed: int
    results: list[DemoResult]
    samples: list[Sample]
    seconds: float
    prompts_folder: Path
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """What a reader must know of the training: "" unless the time was too short for it."""
        updates = too_few_updates(list(self.results[0].prompts.values()))
        if updates is None:
            return ""
        return (
            f"The time was enough for {updates} update{'s' * (updates != 1)}, too few to show what "
            f"trained prompts do; expected {FEW_UPDATES} or more; give more, such as softlore demo "
            f"--time-budget {ENOUGH:g}, or let nothing else run."
        )

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
    started: float | None = None,
    observer: DemoObserver | None = None,
) -> Demo:
    """Trains, measures and writes samples; saves the prompts under `out`.

    What needs no prompts is measured first. By the time that it takes the training is given what
    the budget leaves after the rest of the measuring.

    Args:
        quick: two entries and two updates: a test that it runs, without useful prompts.
        time_budget: about how many seconds it may take.
        started: the time on `time.monotonic` from which the budget counts; by default now.

    Raises:
        StorageError: a file or folder can't be written.
    """
    observer = observer or DemoObserver()
    start = time.monotonic() if started is None else started
    book = Lorebook.load(data.lorebook_path())
    library = PromptLibrary(_make_folder(out / "prompts"))
    parameters = sum(p.numel() for p in model.hf.parameters())
    large = parameters > LARGE
    methods = demo_methods(book, large, quick)
    measures = QUICK_MEASURES if quick else LARGE_MEASURES if large else MEASURES
    observer.say("measuring without prompts, and with the plain text")
    before = time.monotonic()
    evaluators = [_evaluator(model, book, method, seed, measures, observer) for method in methods]
    cases = [
        (method.prompt_name(name), book[name], opening)
        for method in methods
        for name, opening in data.openings()
        if name in {entry.name for entry in method.entries}
    ]
    writer = SampleWriter(model, cases, seed, 8 if quick else SAMPLE_TOKENS)
    rest = PROMPTS_SHARE * (time.monotonic() - before)
    seconds = max(LEAST_TRAINING * time_budget, time_budget - (time.monotonic() - start) - rest)
    results = []
    for method, evaluator in zip(methods, evaluators, strict=True):
        observer.say(f"training {method.title}")
        result = _run_method(model, method, evaluator, seed, seconds * method.share, observer)
        for prompt in result.prompts.values():
            library.save(prompt)
        results.append(result)
    observer.say("writing the samples")
    trained = {p.name: p for result in results for p in result.prompts.values()}
    keywords = {
        result.method.prompt_name(entry.name): entry.keywords
        for result in results
        for entry in result.evaluation.entries
    }
    samples = writer.write(trained, keywords)
    seconds = time.monotonic() - start
    folder = library.folder
    return Demo(book, model.name, parameters, seed, results, samples, seconds, folder)


def _evaluator(
    model: FrozenModel,
    book: Lorebook,
    method: DemoMethod,
    seed: int,
    measures: dict[str, Any],
    observer: DemoObserver,
) -> LorebookEvaluator:
    """Of a method's entries, with all measured that needs no prompts."""
    entries = [book[entry.name] for entry in method.entries]
    own = book.model_copy(update={"entries": entries})
    with observer.measuring() as show:
        if show is not None:
            show(0.0, "unrelated text")
        evaluator = LorebookEvaluator(model, own, seed=seed, **measures)
        evaluator.measure_text(show)
    return evaluator


def _make_folder(folder: Path) -> Path:
    """Makes the folder before the training, so that a failure costs no time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the folder", folder, error) from error
    return folder


def _run_method(
    model: FrozenModel,
    method: DemoMethod,
    evaluator: LorebookEvaluator,
    seed: int,
    time_budget: float,
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
    with observer.measuring() as show:
        evaluation = evaluator.measure_prompts(prompts, on_progress=show)
    renamed = {
        entry: prompt.replace(name=method.prompt_name(entry)) for entry, prompt in prompts.items()
    }
    return DemoResult(method, trained, renamed, evaluation)
