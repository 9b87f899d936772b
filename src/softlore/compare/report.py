"""Reports as HTML pages that load nothing else: the demo's, comparisons' and experiments'."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from softlore.compare.comparison import Comparison
from softlore.compare.demo import Demo
from softlore.compare.hard import summarize_prompts
from softlore.compare.harness import Interval, Row
from softlore.compare.plots import (
    drift_bars,
    loss_curves,
    need_extra,
    recall_by_distance,
    samples_png,
    scatter,
)
from softlore.compare.samples import first_of_each
from softlore.compare.tables import (
    CONDITIONING_NAMES,
    NO_RECALL,
    column_title,
    comparison_note,
    mark_lore_words,
    number,
    shown,
)
from softlore.control.hard import Experiment
from softlore.disk import write_atomically

PICTURED = 4  # samples in the demo's picture
SAMPLED_ENTRIES = 3  # entries whose stories a comparison shows
Means = Mapping[str, Mapping[str, Interval | None]]  # by method and column


def render_page(template: str, **values: Any) -> str:
    """Renders one of the templates; values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("softlore.compare", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = number
    html: str = environment.get_template(template).render(**values)
    return html


# the demo --------------------------------------------------------------------------------------


def write_demo_report(demo: Demo, out: Path) -> Demo:
    """Writes report.html, demo.json and demo.png into a folder; returns the demo with their paths.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed.
        StorageError: a file can't be written.
    """
    need_extra()
    files = {name: out / name for name in ("report.html", "demo.json", "demo.png")}
    write_atomically(files["report.html"], render_demo(demo).encode())
    write_atomically(files["demo.json"], json.dumps(demo.to_dict(), ensure_ascii=False).encode())
    write_atomically(files["demo.png"], samples_png(first_of_each(demo.samples)[:PICTURED]))
    return replace(demo, files=files)


def render_demo(demo: Demo) -> str:
    """The demo's report as HTML."""
    evaluation = demo.results[0].evaluation
    return render_page(
        "demo.html.j2",
        demo=demo,
        prompts=shlex.quote(str(demo.prompts_folder)),
        evaluation=evaluation,
        total=evaluation.total(),
        conditioning_names=CONDITIONING_NAMES,
        mark_lore_words=mark_lore_words,
        recall_by_distance=recall_by_distance,
        drift_bars=drift_bars,
        loss_curves=loss_curves,
    )


# comparisons -----------------------------------------------------------------------------------


def write_comparison_page(comparison: Comparison, path: Path) -> None:
    """Writes a comparison as one HTML file.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed.
        StorageError: the file can't be written.
    """
    need_extra()
    write_atomically(path, render_comparison(comparison).encode())


def render_comparison(comparison: Comparison) -> str:
    """A comparison as HTML."""
    near = f"recall_{comparison.distances[0]}"
    return render_page(
        "comparison.html.j2",
        comparison=comparison,
        total=comparison.total,
        best=_best(comparison, (near, "held_out", "lore_words")),
        near=near,
        scatter=partial(_scatter, comparison),
        title=column_title,
        shown=shown,
        note=comparison_note(comparison),
        warning="" if comparison.has_recall else NO_RECALL,
        samples=dict(islice(_samples(comparison), SAMPLED_ENTRIES)),
    )


def _scatter(comparison: Comparison, name: str, x: str, y: str, log: bool = False) -> str:
    """The methods as points, by two columns; "" where no method has both figures."""
    points = []
    for method, kind in comparison.methods.items():
        at, value = comparison.total[method][x], comparison.total[method][y]
        if at is not None and value is not None:
            points.append((method, kind, at.mean, value.mean))
    labels = {"drift": "drift, nats a token", "held_out": "held-out calls, nats a token"}
    x_label, y_label = labels.get(x, x), labels.get(y, "recall, nats a token")
    return scatter(points, x_label, y_label, name, log) if points else ""


def _best(comparison: Comparison, columns: Sequence[str]) -> dict[str, tuple[str, Interval]]:
    """By column: the method with the lowest (lore words: highest) figure.

    None is named where nothing does as well: the bare model is what methods are compared with.
    """
    best = {}
    for column in columns:
        sign = -1 if column == "lore_words" else 1
        means = {name: mean for name, row in comparison.total.items() if (mean := row[column])}
        bare = [means[n].mean * sign for n, kind in comparison.methods.items()
                if kind == "none" and n in means]  # fmt: skip
        made = [n for n, kind in comparison.methods.items() if kind != "none" and n in means]
        method = min(made, key=lambda name: means[name].mean * sign, default="")
        if method and all(means[method].mean * sign < value for value in bare):
            best[column] = (method, means[method])
        elif method:
            best[column] = ("", means[method])
    return best


def _samples(comparison: Comparison) -> Iterator[tuple[str, list[Row]]]:
    """By entry: the rows of the first seed that have a story."""
    rows = [row for row in comparison.rows if row["seed"] == comparison.seeds[0] and row["story"]]
    for entry in dict.fromkeys(row["entry"] for row in rows):
        yield entry, [row for row in rows if row["entry"] == entry]


# experiments with hard prompts -----------------------------------------------------------------


def write_experiment_page(experiment: Experiment, rows: Sequence[Row], path: Path) -> None:
    """Writes an experiment as one HTML file: a line for each combination, a column for each prompt.

    Raises:
        ConfigError: jinja2 is not installed.
        StorageError: the file can't be written.
    """
    need_extra()
    combinations: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        variables = tuple(row["variables"].items())
        key = (row["model"], variables, row["sample"])
        combinations.setdefault(key, {})[row["prompt"]] = row
    html = render_page(
        "experiment.html.j2",
        experiment=experiment,
        prompts=list(dict.fromkeys(row["prompt"] for row in rows)),
        combinations=combinations,
        summary=summarize_prompts(rows),
        passed=sum(row["passed"] for row in rows),
        count=len(rows),
    )
    write_atomically(path, html.encode())
