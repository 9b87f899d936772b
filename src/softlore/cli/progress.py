"""Live views: of a training a bar, and loss and drift for each entry; of other work a bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from softlore.cli.options import interactive

if TYPE_CHECKING:
    from rich.table import Table

    from softlore.compare.harness import Row
    from softlore.control.search import Searcher
    from softlore.tune import TrainablePrompt, TrainingProgress
    from softlore.tune.group_run import GroupEvent

Watcher = Callable[["TrainingProgress"], "bool | None"]
SHOWN = 12  # entries in the table
GROUP_NAMES = 4  # entries of a group that are named
PLAIN_SECONDS = 10.0  # between lines where there is no terminal


@contextmanager
def watch(interactive: bool) -> Iterator[Watcher]:
    """A function to call after each update: a live table, or a line now and then elsewhere."""
    if not interactive:
        yield _plain()
        return
    from rich import progress as bars
    from rich.console import Console, Group
    from rich.live import Live

    bar = bars.Progress(
        "training", bars.BarColumn(), bars.TaskProgressColumn(), bars.TimeRemainingColumn()
    )
    task = bar.add_task("training", total=1.0)
    with Live(bar, console=Console(stderr=True), refresh_per_second=4) as live:

        def show(progress: TrainingProgress) -> None:
            bar.update(task, completed=progress.done)
            live.update(Group(bar, _table(progress)))

        yield show


@contextmanager
def working(on: str, interactive: bool) -> Iterator[None]:
    """Says on a terminal what takes its time; nothing of it stays."""
    if not interactive:
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{on} ..."):
        yield


def _plain() -> Watcher:
    last = [0.0]

    def show(progress: TrainingProgress) -> None:
        now = time.monotonic()
        if now - last[0] < PLAIN_SECONDS and progress.done < 1:
            return
        last[0] = now
        line = "  ".join(f"{name} {_shown_loss(one)}" for name, one in _some(progress))
        click.echo(f"{progress.done:4.0%}  update {progress.step}  loss: {line}", err=True)

    return show


@contextmanager
def watch_groups(interactive: bool) -> Iterator[Callable[[GroupEvent], None]]:
    """A function to call with news of groups: a bar for each that trains, and lines of the rest."""
    if not interactive:
        yield _plain_groups()
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TextColumn("{task.fields[told]}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as shown:
        tasks: dict[int, bars.TaskID] = {}

        def show(news: GroupEvent) -> None:
            number = news.report.number
            if number not in tasks:
                tasks[number] = shown.add_task(_of_group(news), total=1.0, told="")
            shown.update(tasks[number], completed=news.report.done, told=_losses(news))
            if news.event not in ("begun", "update"):
                shown.console.print(_line(news), markup=False, highlight=False)
            if news.event in ("done", "failed"):
                shown.remove_task(tasks.pop(number))

        yield show


def _plain_groups() -> Callable[[GroupEvent], None]:
    last: dict[int, float] = {}

    def show(news: GroupEvent) -> None:
        now, number = time.monotonic(), news.report.number
        if news.event == "update" and now - last.get(number, 0.0) < PLAIN_SECONDS:
            return
        last[number] = now
        click.echo(_line(news), err=True)

    return show


def _line(news: GroupEvent) -> str:
    said = {
        "begun": f"begins at update {news.report.step}",
        "update": f"{news.report.done:4.0%}  update {news.report.step}  loss: {_losses(news)}",
        "done": f"done after {news.report.step} updates  loss: {_losses(news)}",
        "lost": f"has lost its worker, and is taken up again from its checkpoint ({news.reason})",
        "failed": f"has failed: {news.reason}",
    }
    return f"{_of_group(news)}: {said[news.event]}"


def _of_group(news: GroupEvent) -> str:
    more = len(news.names) - GROUP_NAMES
    names = ", ".join(news.names[:GROUP_NAMES]) + (f" and {more} more" if more > 0 else "")
    return f"group {news.report.number} ({names})"


def _losses(news: GroupEvent) -> str:
    some = list(news.report.losses.items())[:GROUP_NAMES]
    return "  ".join(f"{name} {value:.2f}" for name, value in some)


def _table(progress: TrainingProgress) -> Table:
    from rich.table import Table

    from softlore.tune import LOSSES

    labels = [loss.label for loss in LOSSES.values()]
    table = Table("entry", "update", *labels, "", box=None)
    for name, one in _some(progress):
        numbers = [_number(one.history.recent(loss)) for loss in LOSSES]
        table.add_row(name, str(one.steps), *numbers, one.stopped or "")
    hidden = len(progress.trainables) - SHOWN
    if hidden > 0 or progress.waiting:
        table.add_row(f"and {max(0, hidden)} more, {progress.waiting} waiting")
    return table


def _some(progress: TrainingProgress) -> list[tuple[str, TrainablePrompt]]:
    """The entries still learning first, as many as the table shows."""
    ordered = sorted(progress.trainables.items(), key=lambda item: item[1].stopped is not None)
    return ordered[:SHOWN]


def _shown_loss(trainable: TrainablePrompt) -> str:
    loss = trainable.history.shown()
    return _number(None if loss is None else trainable.history.recent(loss))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


@contextmanager
def search_bar(name: str) -> Iterator[Callable[[Searcher], None]]:
    """A bar of the budget with the best loss so far on a terminal, else nothing."""
    if not interactive():
        yield lambda searcher: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=1.0)

        def show(searcher: Searcher) -> None:
            best = "" if searcher.best is None else f" {searcher.best[1]:.2f}"
            progress.update(task, completed=searcher.done, description=name + best)

        yield show


@contextmanager
def case_bar(count: int) -> Iterator[Callable[[Row], None]]:
    """A progress bar on a terminal's standard error, else nothing."""
    if not interactive():
        yield lambda row: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("trying", total=count)
        yield lambda row: progress.update(task, advance=1, description=row["prompt"])
