"""Methods of conditioning a model on a lorebook: text, templates, search, codes, soft prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from softlore.context.compose import ContextLike
from softlore.control import codes_of, contrast_of_contexts, train_vector
from softlore.control.hard import Template
from softlore.control.search import Scorer, Searcher
from softlore.errors import ContextError
from softlore.lore import Entry, Lorebook
from softlore.lore.styles import STYLES
from softlore.measure import recall
from softlore.measure.evaluate import plain_text
from softlore.measure.score import fits
from softlore.model import FrozenModel
from softlore.prompts import Context, SoftPrompt
from softlore.tune import Execution, TrainingProgress, WorldInfoTrainer

# Wordings in use among writers; each entry gets the one with the best recall of its training calls.
TEMPLATES = {
    "as it is": "{{ entry.text }}\n",
    "named": "{{ entry.name }}: {{ entry.text }}\n",
    "in brackets": "[ {{ entry.name }}: {{ entry.text }} ]\n",
    "facts": "{% for fact in entry.text | sentences %}- {{ fact }}\n{% endfor %}",
    "reported": "Everybody knew this of {{ entry.name }}. {{ entry.text }}\n",
}
SEARCHED_TOKENS = 16
VECTOR_PASSAGES = 16  # that a control vector is trained on
SOFT = (("prefix", 4), ("prefix", 16), ("embedding", 16))
SEARCH_SHARE = 0.25  # of the time budget; the rest is for soft prompts
LEAST_SECONDS = 1.0  # of a training
TEXT_SHARE = 0.6  # of the time budget, for all made of text: entries beyond it are left out
DRIFT_GUARDS = {"prefix": 1.0, "embedding": 1.25}


class TrainingObserver(Protocol):
    """What is told of a training's progress; see `WorldInfoTrainer`."""

    def on_step(self, progress: TrainingProgress) -> bool | None: ...

    def on_phase(self, name: str, done: float) -> None: ...


@dataclass(frozen=True)
class MethodResult:
    """What a method made for the entries of a lorebook.

    Attributes:
        kind: none, hard, code, vector, prefix or embedding; plots show each by a color and a
            marker.
        conditionings: by entry.
        seconds: spent on all of them.
    """

    name: str
    kind: str
    conditionings: Mapping[str, ContextLike]
    seconds: float = 0.0

    @property
    def seconds_each(self) -> float:
        return self.seconds / max(1, len(self.conditionings))


@dataclass(frozen=True)
class TrainedMethod(MethodResult):
    """Soft prompts that were trained together.

    Attributes:
        curves: by entry, the losses of each update (nats a token), by their names in `LOSSES`.
    """

    conditionings: Mapping[str, SoftPrompt]
    updates: int = 0
    curves: Mapping[str, dict[str, list[float]]] = field(default_factory=dict)


# Makes every method's conditionings, given a model, a lorebook, a seed, a time budget in seconds
# for all that is searched and trained, and a function that is called with each method's name.
Maker = Callable[[FrozenModel, Lorebook, int, float, Callable[[str], None]], list[MethodResult]]


def train_method(
    model: FrozenModel,
    name: str,
    observe: Callable[[], AbstractContextManager[TrainingObserver | None]] = nullcontext,
    time_budget: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> TrainedMethod:
    """Trains soft prompts together, and times it.

    Args:
        observe: makes a context that gives what observes the training.
        time_budget: seconds.
        clock: what they are of, see `Execution`.
        settings: `WorldInfoTrainer`'s: entries, corpus or conditionings, and how they are trained.
    """
    start = clock()
    # A clock of this process's own time would not count that of its copies.
    processes = torch.get_num_threads() if clock is time.monotonic else 1
    execution = Execution(time_budget, clock=clock, started=start, processes=processes)
    trainer = WorldInfoTrainer(model, execution=execution, **settings)
    with observe() as observer:
        if observer is not None:
            trainer.on_step, trainer.on_phase = observer.on_step, observer.on_phase
        prompts = trainer.train()
    seconds = clock() - start
    curves = {name: dict(trainable.history) for name, trainable in trainer.trainables.items()}
    kind = settings.get("kind", "prefix")
    return TrainedMethod(name, kind, prompts, seconds, trainer.step, curves)


def make_all(
    model: FrozenModel,
    book: Lorebook,
    seed: int,
    time_budget: float,
    on_method: Callable[[str], None],
) -> list[MethodResult]:
    """Every method of `softlore compare` that applies to the model and the book. See `Maker`.

    All are made for the same entries: for fewer than the book's where the time is short.
    """
    began = time.monotonic()
    search_seconds = time_budget * SEARCH_SHARE / max(1, sum(bool(e.blocks) for e in book))
    makers: list[tuple[str, str, Callable[[Entry], ContextLike | None]]] = [
        ("nothing", "none", lambda entry: ""),
        ("text", "hard", lambda entry: plain_text(entry) if entry.text else None),
        ("best template", "hard", lambda entry: best_template(model, entry)),
        (
            f"searched, {SEARCHED_TOKENS}",
            "hard",
            lambda entry: search_text(model, entry, seed, search_seconds),
        ),
        ("control code", "code", lambda entry: best_code(model, entry)),
        ("control vector", "vector", lambda entry: vector_of_text(model, entry, seed)),
    ]
    made: dict[str, dict[str, ContextLike]] = {name: {} for name, _, _ in makers}
    seconds = dict.fromkeys(made, 0.0)
    entries: list[Entry] = []
    for entry in book:
        for name, _, make in makers:
            on_method(f"{name}, {entry.name}")
            start = time.monotonic()
            if (value := make(entry)) is not None:
                made[name][entry.name] = value
            seconds[name] += time.monotonic() - start
        entries.append(entry)
        spent = time.monotonic() - began
        if spent * (1 + 1 / len(entries)) > time_budget * TEXT_SHARE:  # with one more entry
            break
    results: list[MethodResult] = [
        MethodResult(name, kind, made[name], seconds[name])
        for name, kind, _ in makers
        if made[name]
    ]
    # Recall needs calls and responses; if all entries have them, they are trained on them only.
    settings: dict[str, Any] = {"entries": entries, "seed": seed}
    settings |= {"distil_weight": 0.0} if all(entry.blocks for entry in book) else {}
    for number, (kind, n_tokens) in enumerate(SOFT):
        if kind == "embedding" or model.takes_prefix:
            left = time_budget - (time.monotonic() - began)
            settings["time_budget"] = max(LEAST_SECONDS, left / (len(SOFT) - number))
            name, guard = f"{kind}, {n_tokens}", DRIFT_GUARDS[kind]
            on_method(name)
            results.append(
                train_method(
                    model, name, kind=kind, n_tokens=n_tokens, drift_guard=guard, **settings
                )
            )
    return results


def make_styles(
    model: FrozenModel,
    book: Lorebook,
    seed: int,
    time_budget: float,
    on_method: Callable[[str], None],
    **training: Any,
) -> list[MethodResult]:
    """Prefixes of the same texts by each authoring style's blocks, and by distillation.

    All are measured on the entries' own calls, which only the last method is trained on. See
    `Maker`.

    Args:
        training: further settings of the trainer, the same for all.
    """
    texts = [e.model_copy(update={"blocks": [], "held_out": []}) for e in book if e.text]
    methods: list[tuple[str, list[Entry], dict[str, Any]]] = [
        *((style, texts, {"style": style, "distil_weight": 0.0}) for style in STYLES),
        ("distilled", texts, {"style": "none"}),
        ("own calls", [e for e in book if e.blocks], {"distil_weight": 0.0}),
    ]
    results = [MethodResult("nothing", "none", {e.name: "" for e in book})]
    for name, entries, settings in methods:
        if entries:
            on_method(name)
            budget = time_budget / len(methods)
            common: dict[str, Any] = {"entries": entries, "seed": seed, "time_budget": budget}
            results.append(train_method(model, name, **common, **(training | settings)))
    return results


def best_template(model: FrozenModel, entry: Entry) -> str | None:
    """The wording of an entry's text with the best recall of its training calls."""
    if not entry.text or not entry.blocks:
        return None
    data = {"entry": entry.data() | {"name": entry.name, "text": entry.text}}
    texts = [Template(source, name).render(data) for name, source in TEMPLATES.items()]
    fitting = [text for text in texts if fits(model, text, entry.blocks)]
    return min(fitting, key=lambda text: recall(model, text, entry.blocks), default=None)


def best_code(model: FrozenModel, entry: Entry) -> ContextLike | None:
    """The model's control code with the best recall of an entry's training calls."""
    conditionings = [code.conditioning for code in codes_of(model).values()]
    if not conditionings or not entry.blocks:
        return None
    return min(conditionings, key=lambda conditioning: recall(model, conditioning, entry.blocks))


def vector_of_text(model: FrozenModel, entry: Entry, seed: int) -> Context | None:
    """A control vector of what an entry's text does, at strength 1."""
    if not entry.text:
        return None
    text = plain_text(entry)
    try:
        contrast = contrast_of_contexts(model, [text], passages=VECTOR_PASSAGES, seed=seed)
        return Context("", [(train_vector(model, entry.name, contrast), 1.0)])
    except ContextError:  # text and passage do not fit
        return None


def search_text(model: FrozenModel, entry: Entry, seed: int, seconds: float) -> str | None:
    """A hard prompt that GCG finds for an entry's training calls."""
    if not entry.blocks:
        return None
    scorer = Scorer(model, entry.blocks)
    result = Searcher(scorer, "gcg", SEARCHED_TOKENS, seconds=seconds, seed=seed).search()
    return result.text + "\n"
