"""Measures how prompts of a large lorebook get on: recall against how many are active.

    python tools/measure_world.py runs/world.yaml storyteller --prompts runs/world
    python tools/measure_world.py runs/world.yaml storyteller --prompts runs/world --peft 4

Sets of entries are drawn by chance; the smaller sets are the beginnings of the larger ones. Each is
active at once: as soft prompts, as their texts one after another, as none, and with --peft as
PEFT's prompt tuning, trained for so many seconds each and joined as PEFT joins them. `recall` is of
their own responses and `held_out` of calls that were not trained on; `wrong` is recall where as
many other entries are active instead. Prints Markdown; --plot draws it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from measuring import Keep, Seed, main, measure
from peft_training import joined, train_peft
from softlore import FrozenModel, Lorebook, PromptLibrary, SoftPrompt
from softlore.compare.harness import Row, interval
from softlore.compare.plots import need_extra
from softlore.context.compose import ContextLike
from softlore.errors import ConfigError
from softlore.lore import Entry
from softlore.measure.conditioning import ConditioningEvaluator
from softlore.measure.evaluate import plain_text
from softlore.measure.material import gather, passage_tokens
from softlore.measure.score import fits_after, recall_at
from softlore.prompts import Context
from softlore.settings import TrainingConfig

Method = Literal["none", "text", "soft", "peft"]
FIGURES = {
    "recall": "recall",
    "worst": "worst entry",
    "held_out": "held out",
    "wrong": "wrong prompts",
    "drift": "drift",
    "tokens": "places",
}


def company(
    lorebook: Path,
    model: str,
    /,
    *,
    prompts: Annotated[Path, "folder of the trained prompts"],
    active: Annotated[list[int], "how many at once"] = [1, 4, 8, 16],  # noqa: B006 - read only
    sets: Annotated[int, "drawn by chance"] = 16,
    distance: Annotated[int, "tokens of story before the call"] = 0,
    peft: Annotated[float | None, "seconds of PEFT's prompt tuning for each entry drawn"] = None,
    dtype: Annotated[str | None, "such as bfloat16"] = None,
    seed: Seed = 0,
    plot: Annotated[Path | None, "SVG or PNG of recall against the number active"] = None,
    out: Keep = None,
) -> None:
    """A table of means over the sets, with 95 % intervals."""
    if plot is not None:
        need_extra()  # before the work, not after it
    frozen = FrozenModel.from_pretrained(model, dtype=dtype)
    book = Lorebook.load(lorebook)
    bench = CompanyBench(frozen, book, PromptLibrary(prompts), active, distance, peft or 0.0, seed)
    methods = ("none", "text", "soft", *(("peft",) if peft else ()))
    of = f"{lorebook}, {model}, {prompts}, {distance} tokens, {peft or 0:g} s of PEFT"
    cases = [
        {"of": of, "seed": seed, "set": number, "active": count, "method": method}
        for number in range(sets)
        for count in active
        for method in methods
    ]
    rows = measure(cases, bench.measure, out)
    print(table(rows, active, methods))
    if plot is not None:
        plot_recall(rows, active, methods, plot)


class CompanyBench:
    """Measures sets of a lorebook's entries that are active at once."""

    def __init__(
        self,
        model: FrozenModel,
        book: Lorebook,
        prompts: Mapping[str, SoftPrompt],
        active: Sequence[int],
        distance: int,
        peft: float,
        seed: int,
    ) -> None:
        self._model, self._prompts, self._peft_seconds = model, prompts, peft
        self._entries = [e for e in book if e.name in prompts and e.text and e.blocks]
        self._distance, self._seed = distance, seed
        if len(self._entries) < 2 * max(active):
            raise ConfigError(
                f"{len(self._entries)} entries have a prompt, a text and calls; expected "
                f"{2 * max(active)}, as many again as are active; lower --active, or train more"
            )
        self._evaluator = ConditioningEvaluator(model, gather(model, distance, seed), [distance])
        self._peft = cache(self._train_peft)

    def measure(self, of: str, seed: int, set: int, active: int, method: Method) -> Iterator[Row]:
        """One row; none where a set does not fit the model's context."""
        draw = random.Random(f"{seed}/{set}")
        order = draw.sample(self._entries, len(self._entries))
        chosen, others = order[:active], order[-active:]
        right = self._evaluator.measure(chosen, self._joined(chosen, method))
        before = self._joined(others, method)
        row: Row = dict.fromkeys(FIGURES)
        if all(right) and fits_after(self._model, before, passage_tokens(self._model)):
            cases = [(entry.blocks, self._distance) for entry in chosen]
            wrong = recall_at(self._model, before, cases, self._evaluator.material.fillers)
            recalls = [m.recall[self._distance] for m in right if m]
            row = {
                "recall": fmean(recalls),
                "worst": max(recalls),
                "held_out": fmean(m.held_out for m in right if m),
                "wrong": fmean(wrong),
                "drift": right[0] and right[0].drift,
                "tokens": right[0] and right[0].tokens,
            }
        yield row

    def _joined(self, entries: Sequence[Entry], method: Method) -> ContextLike:
        join: dict[Method, Callable[[], ContextLike]] = {
            "none": lambda: "",
            "text": lambda: "".join(map(plain_text, entries)),
            "soft": lambda: Context(self._prompts[entry.name] for entry in entries),
            "peft": lambda: joined([self._peft(entry.name) for entry in entries]),
        }
        return join[method]()

    def _train_peft(self, name: str) -> SoftPrompt:
        entry = next(entry for entry in self._entries if entry.name == name)
        n_tokens = TrainingConfig().n_tokens
        seconds = self._peft_seconds
        return train_peft(self._model, entry, "embedding", n_tokens, seconds, self._seed).prompt


def table(rows: Sequence[Row], active: Sequence[int], methods: Sequence[str]) -> str:
    """Markdown: a line for each number and method."""
    lines = [
        "| active | method | " + " | ".join(FIGURES.values()) + " |",
        "|---:|---|" + "---:|" * len(FIGURES),
    ]
    for count in active:
        for method in methods:
            of = [r for r in rows if (r["active"], r["method"]) == (count, method)]
            cells = [_cell([r[figure] for r in of]) for figure in FIGURES]
            lines.append(f"| {count} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[Any]) -> str:
    if any(value is None for value in values):
        return "does not fit" if all(value is None for value in values) else "not all fit"
    return str(interval(values))


def plot_recall(
    rows: Sequence[Row], active: Sequence[int], methods: Sequence[str], path: Path
) -> None:
    """Recall against the number active, a curve for each method, with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method in methods:
        points = [
            (count, interval(values))
            for count in active
            if (
                values := [
                    r["recall"]
                    for r in rows
                    if (r["active"], r["method"]) == (count, method) and r["recall"] is not None
                ]
            )
        ]
        axes.errorbar(
            [count for count, _ in points],
            [point.mean for _, point in points],
            [point.half or 0.0 for _, point in points],
            marker="o",
            capsize=3,
            label=method,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(active), list(map(str, active)))
    axes.set_xlabel("entries active at once")
    axes.set_ylabel("recall, nats a token (lower is better)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main(__doc__, company)
