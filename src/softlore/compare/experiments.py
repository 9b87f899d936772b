"""Experiments with hard prompts for people to read: a table, a page side by side, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from softlore.compare.plots import need_extra
from softlore.control.hard import Experiment, Outcome
from softlore.control.hard.assertions import Verdict
from softlore.disk import write_atomically

TEMPLATE = "experiment.html.j2"


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row for each prompt and model, the best first: how many cases passed, and the cost."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault((one.case.prompt, one.case.model), []).append(one)
    rows = []
    for (prompt, model), found in groups.items():
        kinds: dict[str, list[Verdict]] = {}
        for one in found:
            for name, verdict in one.verdicts:
                kinds.setdefault(name, []).append(verdict)
        rows.append(
            {
                "prompt": prompt,
                "model": model,
                "cases": len(found),
                "passed": sum(one.passed for one in found),
                "score": sum(one.score for one in found) / len(found),
                "tokens": sum(one.tokens for one in found) / len(found),
                "assertions": {name: _share(of_kind) for name, of_kind in kinds.items()},
                "values": {name: _value(of_kind) for name, of_kind in kinds.items()},
            }
        )
    return sorted(rows, key=lambda row: (-row["score"], row["tokens"]))


def _share(verdicts: Sequence[Verdict]) -> float:
    return sum(one.passed for one in verdicts) / len(verdicts)


def _value(verdicts: Sequence[Verdict]) -> float | None:
    """The mean of the numbers that an assertion went by."""
    values = [one.value for one in verdicts if one.value is not None]
    return sum(values) / len(values) if values else None


def summary_table(outcomes: Sequence[Outcome]) -> Table:
    """`summary` for the terminal."""
    rows = summary(outcomes)
    several = len({row["model"] for row in rows}) > 1
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["assertions"]))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("prompt")
    if several:
        table.add_column("model")
    for column in ("tokens", "passed", "score", *kinds):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [row["prompt"], *([row["model"]] if several else []), f"{row['tokens']:.0f}"]
        cells += [f"{row['passed']} of {row['cases']}", f"{row['score']:.2f}"]
        cells += [
            _cell(row["assertions"].get(kind, 0.0), row["values"].get(kind)) for kind in kinds
        ]
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))
    return table


def _cell(share: float, value: float | None) -> str:
    """What was measured, and how often it was enough where that is not always."""
    held = f"{share:.0%}"
    if value is None:
        return held
    return f"{value:.3g}" if share == 1 else f"{value:.3g} ({held})"


def to_dict(experiment: Experiment, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All cases, and the summary, as plain data."""
    return {
        "experiment": experiment.name,
        "passed": all(one.passed for one in outcomes),
        "summary": summary(outcomes),
        "cases": [one.to_dict() for one in outcomes],
    }


def to_csv(outcomes: Sequence[Outcome]) -> str:
    """A row a case; an assertion a column."""
    names = list(dict.fromkeys(name for one in outcomes for name in one.case.shown))
    kinds = list(dict.fromkeys(name for one in outcomes for name, _ in one.verdicts))
    text = io.StringIO()
    head = ["prompt", "model", *names, "sample", "tokens", "score", "passed", *kinds, "output"]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(head)
    for one in outcomes:
        case, held = one.case, dict(one.verdicts)
        cells: list[Any] = [case.prompt, case.model, *(case.shown[name] for name in names)]
        cells += [case.sample, one.tokens, f"{one.score:.4f}", int(one.passed)]
        cells += [int(held[kind].passed) for kind in kinds]
        rows.writerow([_harmless(cell) for cell in [*cells, one.output]])
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    """Spreadsheets run what begins so; a quote before it makes it text."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell


def write_page(experiment: Experiment, outcomes: Sequence[Outcome], path: Path) -> None:
    """Writes the outcomes as one HTML file: a row a combination, a column a prompt.

    Raises:
        ConfigError: jinja2 is not installed.
        StorageError: the disk refuses.
    """
    need_extra()
    from softlore.compare.report import page

    prompts = list(dict.fromkeys(one.case.prompt for one in outcomes))
    rows: dict[tuple[Any, ...], dict[str, Outcome]] = {}
    for one in outcomes:
        shown = tuple(one.case.shown.items())
        rows.setdefault((one.case.model, shown, one.case.sample), {})[one.case.prompt] = one
    html = page(
        TEMPLATE,
        experiment=experiment,
        prompts=prompts,
        rows=rows,
        summary=summary(outcomes),
        passed=sum(one.passed for one in outcomes),
        count=len(outcomes),
    )
    write_atomically(path, html.encode())
