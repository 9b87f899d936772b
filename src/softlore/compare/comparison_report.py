"""The contest for people to read: a table, a page with plots and samples, and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from softlore.compare.comparison import Comparison, Interval
from softlore.compare.plots import need_extra, scattered
from softlore.compare.report import page
from softlore.compare.tables import ABSENT
from softlore.disk import write_atomically

TEMPLATE = "contest.html.j2"
SAMPLED = 3  # entries whose stories are shown
TITLES = {
    "held_out": "held-out",
    "drift": "drift",
    "lore_words": "lore words",
    "copy": "copy",
    "perplexity": "perplexity",
    "tokens": "tokens",
    "seconds": "seconds",
}
_NOTE = (
    "recall (at 0, …: after so many tokens of story) and held-out calls: nats a token that the "
    "right responses cost; less is better. drift: nats a token that unrelated text is bent; less "
    "is better. lore words: keywords of the lore in a story of {length}. copy: the longest run of "
    "tokens in common with the responses. perplexity: of the stories, under the bare model. "
    "tokens: of the context. seconds: to make one."
)
UNASKED = (
    "No entry has calls with responses, so recall and held-out calls are not measured, and nothing "
    "is searched. Write some (`blocks` of an entry: a call, and what should follow it), or have "
    "them made of the texts: softlore compare LOREBOOK --style sentences."
)


def note(contest: Comparison) -> str:
    """What the columns mean."""
    length = f"{contest.story_tokens} {'token' if contest.story_tokens == 1 else 'tokens'}"
    return _NOTE.format(length=length)


def title(column: str) -> str:
    """A column's heading."""
    return TITLES.get(column, column.replace("recall_", "at "))


def comparison_table(contest: Comparison) -> Table:
    """The means of all entries for the terminal; intervals, which are wide, are on the page."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("given", no_wrap=True)
    for column in contest.columns:
        table.add_column(title(column), justify="right")
    for way, figures in contest.total().items():
        means = {column: one and Interval(one.mean, None) for column, one in figures.items()}
        table.add_row(way, *(shown(means[column], column) for column in contest.columns))
    return table


def shown(one: Interval | None, column: str = "") -> str:
    """A figure with its interval; a dash where there is none."""
    if one is None:
        return ABSENT
    return f"{one.mean:.0f}" if column in ("tokens", "seconds", "copy", "perplexity") else str(one)


def write_comparison_page(contest: Comparison, path: Path) -> None:
    """Writes the contest as one HTML file that needs nothing else.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed.
        StorageError: the disk refuses.
    """
    need_extra()
    write_atomically(path, render(contest).encode())


def render(contest: Comparison) -> str:
    """The page."""
    total, near = contest.total(), f"recall_{contest.distances[0]}"
    plots = [
        (
            "Recall against drift",
            "The right responses (down is better) against what it does to text that has nothing to "
            "do with them (left is better).",
            _plot(contest, total, "drift", near, "drift, nats a token", "Recall against drift"),
        ),
        (
            "Recall against tokens",
            "What it takes of the context, on a logarithmic scale: left is cheaper.",
            _plot(contest, total, "tokens", near, "tokens", "Recall against tokens", log=True),
        ),
        (
            "Held-out calls against tokens",
            "The same, asked in words that nothing was searched or trained on.",
            _plot(contest, total, "tokens", "held_out", "tokens", "Held-out calls", log=True),
        ),
    ]
    return page(
        TEMPLATE,
        contest=contest,
        total=total,
        best=_best(contest, total),
        plots=[plot for plot in plots if plot[2]],
        title=title,
        shown=shown,
        note=note(contest),
        unasked="" if contest.asked else UNASKED,
        samples=_samples(contest),
    )


def _plot(
    contest: Comparison,
    total: dict[str, dict[str, Interval | None]],
    x: str,
    y: str,
    label: str,
    name: str,
    log: bool = False,
) -> str:
    points = []
    for way, kind in contest.ways.items():
        at, value = total[way][x], total[way][y]
        if at is not None and value is not None:
            points.append((way, kind, at.mean, value.mean))
    said = "held-out calls" if y == "held_out" else "recall"
    return scattered(points, label, f"{said}, nats a token", name, log) if points else ""


def _best(
    contest: Comparison, total: dict[str, dict[str, Interval | None]]
) -> dict[str, tuple[str, Interval]]:
    """For a few columns, the way with the lowest (lore words: highest) figure."""
    found = {}
    for column in (f"recall_{contest.distances[0]}", "held_out", "lore_words"):
        there = {way: one for way, figures in total.items() if (one := figures[column])}
        if there:
            sign = -1 if column == "lore_words" else 1
            way = min(there, key=lambda name: sign * there[name].mean)
            found[column] = (way, there[way])
    return found


def _samples(contest: Comparison) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """By entry: way, head as text, and the first story; of the first seed, none picked."""
    by_entry: dict[str, list[tuple[str, str, str]]] = {}
    for one in contest.results:
        told: Any = one.measures.stories
        if told is not None and one.seed == contest.seeds[0]:
            by_entry.setdefault(one.entry, []).append(
                (one.way, one.conditioning.strip(), told.first)
            )
    return list(by_entry.items())[:SAMPLED]
