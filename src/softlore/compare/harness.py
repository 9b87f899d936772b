"""The experiment harness: runs and resumes grids of cases, and averages rows with intervals.

An experiment is a grid of cases, such as method × entry × seed. Each case is measured once and
gives one row or more: plain dicts of settings and figures, ready for JSON and CSV.

    grid(kind=["prefix", "embedding"], seed=[0, 1])          the cases
        │  run_cases(cases, measure, path)                   measured; rows saved after each
        ▼
    [{"kind": "prefix", "seed": 0, "recall": 1.2}, …]        the rows
        │  summarize(rows, by="kind", over="seed")           means with 95 % intervals
        ▼
    {"prefix": {"recall": Interval(1.3, 0.4)}, …}            tables, plots and pages

`softlore compare`, `softlore hard run`, the demo and the tools/measure*.py scripts run on it.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlore.disk import write_atomically
from softlore.errors import ConfigError

# Two-sided 95 % points of Student's t, by degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
Row = dict[str, Any]
OnProgress = Callable[[float, str], None]  # share done, and what is being done


# cases and rows --------------------------------------------------------------------------------


def grid(**axes: Iterable[Any]) -> list[Row]:
    """Every combination of the axes' values; the last axis varies fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run_cases(
    cases: Iterable[Mapping[str, Any]],
    measure: Callable[..., Row | Iterable[Row]],
    path: Path | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_progress: OnProgress | None = None,
) -> list[Row]:
    """Measures each case, and returns the rows of all, each with its case's settings first.

    Args:
        measure: called with a case's settings as keyword arguments; returns a row or several.
        path: JSON lines. Cases with rows in the file are not measured again, and the file is
            written after each case, so that an interrupted experiment resumes.
        on_row: called with each new row.
        on_progress: called with the share that is done and the case that is measured next.

    Raises:
        ConfigError: the file holds something other than rows.
        StorageError: the file can't be written.
    """
    cases, saved = list(cases), read_rows(path)
    rows: list[Row] = []
    for number, case in enumerate(cases):
        made = [row for row in saved if case.items() <= row.items()]
        if not made:
            if on_progress is not None:
                on_progress(number / len(cases), describe_case(case))
            measured = measure(**case)
            made = [
                {**case, **row} for row in ([measured] if isinstance(measured, dict) else measured)
            ]
            if path is not None:
                saved += made
                write_atomically(path, "".join(json.dumps(row) + "\n" for row in saved).encode())
            if on_row is not None:
                for row in made:
                    on_row(row)
        rows += made
    return rows


def read_rows(path: Path | None) -> list[Row]:
    """The rows of a file of JSON lines; none if there is no file.

    Raises:
        ConfigError: the file holds something else.
    """
    if path is None or not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ConfigError(
            f"{str(path)!r} can't be read as rows ({error}); expected JSON lines of an earlier "
            "run; delete it, or name another file"
        ) from error
    return rows


def describe_case(case: Mapping[str, Any]) -> str:
    """A case in words: `seed 0, kind prefix`."""
    return ", ".join(f"{name} {value}" for name, value in case.items())


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV. Text that a spreadsheet would run as a formula is quoted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_inert(cell) for cell in row] for row in [columns, *rows])
    return text.getvalue()


def _inert(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell


# means and intervals ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean, and half the width of its 95 % interval; None where there is a single value."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ±{self.half:.2f}" if self.half else "")


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of one value or more, by Student's t."""
    count = len(values)
    if count < 2:
        return Interval(values[0], None)
    t = _T95[min(count - 1, len(_T95)) - 1]
    return Interval(statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(count))


def summarize(
    rows: Iterable[Row], by: str, over: str, columns: Sequence[str]
) -> dict[Any, dict[str, Interval | None]]:
    """Means of each column, by the value of `by`, with intervals over the values of `over`.

    Rows that share both values are averaged first. Rows whose figure is None are left out of its
    mean; where no row has it, the mean is None.
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(row)
    return {
        value: {column: _interval_over(group, over, column) for column in columns}
        for value, group in groups.items()
    }


def _interval_over(rows: Iterable[Row], over: str, column: str) -> Interval | None:
    samples: dict[Any, list[float]] = {}
    for row in rows:
        if row[column] is not None:
            samples.setdefault(row[over], []).append(row[column])
    return interval([statistics.fmean(values) for values in samples.values()]) if samples else None
