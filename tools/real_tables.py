"""Markdown tables of the rows of measure_real.py, as docs/results.md has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from softlore.compare.harness import Interval, Row, interval, summarize
from softlore.measure import Measures

ALONE, TOGETHER = "alone", "in company"
LOADING = "loading"  # a case of its own, whose row has the seconds
ABSENT = ""
FIGURES = {
    "held_out": "held-out calls",
    "drift": "drift",
    "fidelity": "fidelity",
    "lore_words": "lore words a story",
    "seconds": "training seconds",
}


def figures_of(measures: Measures) -> Row:
    """Recall at each distance and the other figures of one conditioning, as fields of a row."""
    return {
        **{f"recall_{distance}": recall for distance, recall in measures.recall.items()},
        "held_out": measures.held_out,
        "drift": measures.drift,
        "fidelity": measures.fidelity,
        "lore_words": measures.stories and measures.stories.lore_words.a_story,
    }


def print_means(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Prints, for each model, a heading and the means of each label over entries and seeds."""
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == model]
        lines = [
            [label, *(str(mean) if mean else ABSENT for mean in means.values())]
            for label, means in summarize(of_model, "label", "seed", columns).items()
        ]
        print(f"\n### {Path(model).stem}\n\n{markdown(['', *columns], lines)}")


def model_section(model: str, rows: Sequence[Row], distances: Sequence[int]) -> str:
    """A heading, the means of each method, and the worst prompt at each distance."""
    loading = [row for row in rows if row["method"] == LOADING]
    measured = [row | {"label": _label(row)} for row in rows if row["method"] != LOADING]
    fitting = [d for d in distances if any(row[_recall(d)] is not None for row in measured)]
    seeds = len({row["seed"] for row in measured})
    seconds = interval([row["load_seconds"] for row in loading])
    facts = [
        f"{len({row['entry'] for row in measured})} entries",
        "one seed" if seeds == 1 else f"{seeds} seeds, ± is half a 95 % interval over them",
        f"loading {_shown(seconds, 1)} s",
    ]
    if left_out := [d for d in distances if d not in fitting]:
        context = loading[0]["context_length"]
        names = ", ".join(map(str, left_out))
        facts.append(f"a distance of {names} does not fit its context of {context} tokens")
    parts = [
        f"### {Path(model).stem if model.endswith('.gguf') else Path(model).name}",
        "; ".join(facts) + ".",
        _means(measured, fitting),
        "The worst prompt of any entry and seed, by its recall:",
        _worst(measured, fitting),
        _to_recall(measured),
    ]
    return "\n\n".join(parts) + "\n"


def _label(row: Row) -> str:
    return row["method"] if row["setting"] == ALONE else f"{row['method']}, {TOGETHER}"


def _recall(distance: int) -> str:
    return f"recall_{distance}"


def _means(rows: Sequence[Row], distances: Sequence[int]) -> str:
    titles = ["", "tokens", *(_title(i, d) for i, d in enumerate(distances)), *FIGURES.values()]
    columns = ["tokens", *map(_recall, distances), *FIGURES]
    means = summarize(rows, "label", "seed", columns)
    lines = [
        [label, *(_shown(of_label[c], 0 if c in ("tokens", "seconds") else 2) for c in columns)]
        for label, of_label in means.items()
    ]
    return markdown(titles, lines)


def _worst(rows: Sequence[Row], distances: Sequence[int]) -> str:
    titles = ["", *(_title(i, d) for i, d in enumerate(distances))]
    lines = []
    for label in dict.fromkeys(row["label"] for row in rows):
        of_label = [row for row in rows if row["label"] == label]
        lines.append([label, *(_worst_of(of_label, _recall(d)) for d in distances)])
    return markdown(titles, lines)


def _worst_of(rows: Iterable[Row], column: str) -> str:
    having = [row for row in rows if row[column] is not None]
    if not having:
        return ABSENT
    row = max(having, key=lambda row: float(row[column]))
    return f"{row[column]:.2f} ({row['entry']}, seed {row['seed']})"


def _to_recall(rows: Sequence[Row]) -> str:
    """Seconds until an entry was recalled in training, of the entries that were."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows if row["updates"]):
        of_method = [r for r in rows if r["method"] == method and r["setting"] == ALONE]
        reached = [row for row in of_method if row["to_recall"] is not None]
        mean = summarize(reached, "method", "seed", ["to_recall"])[method] if reached else {}
        last = max((row["to_recall"] for row in reached), default=None)
        updates = interval([float(row["updates"]) for row in of_method])
        lines.append(
            [
                method,
                f"{updates.mean:.0f}",
                f"{len(reached)} of {len(of_method)}",
                _shown(mean.get("to_recall"), 0),
                ABSENT if last is None else f"{last:.0f}",
            ]
        )
    titles = ["trained", "updates of an entry", "recalled in training", "after seconds", "the last"]
    return markdown(titles, lines)


def _title(index: int, distance: int) -> str:
    return f"recall at {distance}" if index == 0 else f"at {distance}"


def _shown(mean: Interval | None, digits: int = 2) -> str:
    if mean is None:
        return ABSENT
    half = f" ± {mean.half:.{digits}f}" if mean.half is not None else ""
    return f"{mean.mean:.{digits}f}{half}"


def markdown(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; a `|` in a cell is escaped."""
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    )
