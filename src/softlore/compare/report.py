"""The demo's report: one HTML file that needs nothing else, and the same findings as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from softlore.compare.demo import Demo, Trained
from softlore.compare.plots import drift_bars, loss_curves, need_extra, recall_by_distance
from softlore.compare.samples import first_of_each, marked
from softlore.compare.tables import HEAD_NAMES, number
from softlore.disk import write_atomically

TEMPLATE = "report.html.j2"
PICTURED = 4  # samples in the picture


def write_report(demo: Demo, out: Path) -> Demo:
    """Writes report.html, demo.json and demo.png into a folder; returns the demo with their paths.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed.
        StorageError: the disk refuses.
    """
    need_extra()
    from softlore.compare.panel import panel_png

    files = {name: out / name for name in ("report.html", "demo.json", "demo.png")}
    write_atomically(files["report.html"], render(demo).encode())
    write_atomically(files["demo.json"], json.dumps(demo.to_dict(), ensure_ascii=False).encode())
    write_atomically(files["demo.png"], panel_png(first_of_each(demo.samples)[:PICTURED]))
    return replace(demo, files=files)


def render(demo: Demo) -> str:
    """The report as HTML."""
    main = demo.trained[0]
    plots = [
        (
            "Recall at a distance",
            "How much the right responses surprise the model, all entries together, with more and "
            "more story between prompt and question. Lower is better: at 0 it would know them by "
            "heart.",
            recall_by_distance(main.evaluation, "Recall at a distance"),
        ),
        (
            "Drift",
            "How far text that has nothing to do with the lore is bent. Lower is better: 0 is not "
            "at all.",
            drift_bars(main.evaluation, "Drift"),
        ),
        *((f"Training: {one.way.title}", _curve_note(one), _curves(one)) for one in demo.trained),
    ]
    return page(
        TEMPLATE,
        demo=demo,
        main=main,
        marked=marked,
        plots=plots,
        head_names=HEAD_NAMES,
        total=main.evaluation.total(),
        costs=_costs(demo),
    )


def page(template: str, **values: Any) -> str:
    """A page of ours, filled in; what is filled in is escaped."""
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


def _curves(one: Trained) -> str:
    return loss_curves(one.curves, f"Training: {one.way.title}")


def _curve_note(one: Trained) -> str:
    return f"{one.updates} updates, {one.seconds:.0f} s with the reading of the lore."


def _costs(demo: Demo) -> list[dict[str, Any]]:
    """A row for each prompt: what it takes of the context and of the disk, and what it gives."""
    rows = []
    for one in demo.trained:
        entries = {entry.name: entry for entry in one.evaluation.entries}
        for name, prompt in one.prompts.items():
            conditionings = entries[name].conditionings
            text = conditionings["text"]
            rows.append(
                {
                    "name": prompt.name,
                    "kind": prompt.kind,
                    "tokens": len(prompt),
                    "text_tokens": text.tokens if text else None,
                    "kilobytes": prompt.tensor.numel() * 4 / 1024,
                    "seconds": one.seconds / len(one.prompts),
                    "heads": conditionings,
                }
            )
    return rows
