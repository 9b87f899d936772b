"""The ways of telling a model what an entry says: each makes a head for every entry of a book."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from softlore.context.compose import ContextLike
from softlore.control import codes_of
from softlore.control.hard import Template
from softlore.control.search import Scorer, Searcher
from softlore.lore import Entry, Lorebook
from softlore.lore.styles import STYLES
from softlore.measure import recall
from softlore.measure.evaluate import plain_text
from softlore.measure.score import fits
from softlore.model import FrozenModel
from softlore.tune import WorldInfoTrainer

# Wordings in use among writers, of which the one with the best recall of the training calls is
# taken for each entry.
TEMPLATES = {
    "as it is": "{{ entry.text }}\n",
    "named": "{{ entry.name }}: {{ entry.text }}\n",
    "in brackets": "[ {{ entry.name }}: {{ entry.text }} ]\n",
    "facts": "{% for fact in entry.text | sentences %}- {{ fact }}\n{% endfor %}",
    "told": "Everybody knew this of {{ entry.name }}. {{ entry.text }}\n",
}
SEARCHED_TOKENS = 16
SOFT = (("prefix", 4), ("prefix", 16), ("embedding", 16))
SEARCH_SHARE = 0.25  # of the time for making; the rest is for soft prompts
RATES: dict[str, dict[str, Any]] = {"embedding": {"drift_guard": 1.25}}


@dataclass(frozen=True)
class MethodResult:
    """A way's heads by entry, and the seconds that each took on average."""

    way: str
    kind: str
    conditionings: dict[str, ContextLike]
    seconds: float


Make = Callable[[], Mapping[str, ContextLike]]


def make_all(
    model: FrozenModel,
    book: Lorebook,
    seed: int,
    time_budget: float,
    tell: Callable[[str], None],
) -> list[MethodResult]:
    """Every way's heads for the entries of a book.

    Args:
        time_budget: seconds for all that is searched and trained.
    """
    per_search = time_budget * SEARCH_SHARE / max(1, sum(bool(e.blocks) for e in book))
    per_training = time_budget * (1 - SEARCH_SHARE) / len(SOFT)
    ways: list[tuple[str, str, Make]] = [
        ("nothing", "none", lambda: dict.fromkeys((e.name for e in book), "")),
        ("text", "hard", lambda: {e.name: plain_text(e) for e in book if e.text}),
        ("best template", "hard", lambda: _each(book, lambda e: best_template(model, e))),
        (
            f"searched, {SEARCHED_TOKENS}",
            "hard",
            lambda: _each(book, lambda e: searched(model, e, seed, per_search)),
        ),
        ("control code", "code", lambda: _each(book, lambda e: best_code(model, e))),
    ]
    for kind, n_tokens in SOFT:
        if kind == "embedding" or model.takes_prefix:
            ways.append(
                (
                    f"{kind}, {n_tokens}",
                    kind,
                    _soft(model, book, kind, n_tokens, seed, per_training),
                )
            )
    made = []
    for name, kind, make in ways:
        tell(name)
        start = time.monotonic()
        conditionings = dict(make())
        seconds = (time.monotonic() - start) / max(1, len(conditionings))
        if conditionings:
            made.append(MethodResult(name, kind, conditionings, seconds if kind != "none" else 0.0))
    return made


def make_styles(
    model: FrozenModel,
    book: Lorebook,
    seed: int,
    time_budget: float,
    tell: Callable[[str], None],
    **training: Any,
) -> list[MethodResult]:
    """Prefixes of one length from the same texts, each authoring style's blocks and distillation.

    The entries' own calls are asked of all of them, and belong to none but the last. `training`:
    further settings of the trainer, the same for all.
    """
    texts = [e.model_copy(update={"blocks": [], "held_out": []}) for e in book if e.text]
    own = [e for e in book if e.blocks]
    tries: list[tuple[str, list[Entry], dict[str, Any]]] = [
        *((style, texts, {"style": style, "distil_weight": 0.0}) for style in STYLES),
        ("distilled", texts, {}),
        ("own calls", own, {"distil_weight": 0.0}),
    ]
    made = [MethodResult("nothing", "none", {e.name: "" for e in book}, 0.0)]
    for name, entries, settings in tries:
        if not entries:
            continue
        tell(name)
        start = time.monotonic()
        trainer = WorldInfoTrainer(
            model,
            entries=entries,
            seed=seed,
            time_budget=time_budget / len(tries),
            **(training | settings),
        )
        conditionings: dict[str, ContextLike] = trainer.train()
        seconds = (time.monotonic() - start) / len(conditionings)
        made.append(
            MethodResult(name, "prefix" if name != "own calls" else "code", conditionings, seconds)
        )
    return made


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


def searched(model: FrozenModel, entry: Entry, seed: int, seconds: float) -> str | None:
    """A hard prompt found by GCG for an entry's training calls."""
    if not entry.blocks:
        return None
    scorer = Scorer(model, entry.blocks)
    found = Searcher(scorer, "gcg", SEARCHED_TOKENS, seconds=seconds, seed=seed).search()
    return found.text + "\n"


def _soft(
    model: FrozenModel, book: Lorebook, kind: str, n_tokens: int, seed: int, seconds: float
) -> Make:
    def make() -> Mapping[str, ContextLike]:
        settings: dict[str, Any] = {"kind": kind, "n_tokens": n_tokens, "max_spacing": 96}
        # Entries with pairs are asked for those alone, as what is measured asks for them.
        settings |= {"distil_weight": 0.0} if all(e.blocks for e in book) else {}
        trainer = WorldInfoTrainer(
            model,
            entries=book.entries,
            seed=seed,
            time_budget=seconds,
            **(settings | RATES.get(kind, {})),
        )
        prompts: dict[str, ContextLike] = trainer.train()
        return prompts

    return make


def _each(book: Lorebook, make: Callable[[Entry], ContextLike | None]) -> dict[str, ContextLike]:
    found = {entry.name: make(entry) for entry in book}
    return {name: conditioning for name, conditioning in found.items() if conditioning is not None}
