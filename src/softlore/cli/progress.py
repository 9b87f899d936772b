"""Progress on standard error: a table of losses while training, bars for other work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from softlore.cli import common

if TYPE_CHECKING:
    from rich.table import Table

    from softlore.tune import TrainablePrompt, TrainingProgress
    from softlore.tune.group_run import GroupEvent

SHOWN = 12  # entries in the table
GROUP_NAMES = 4  # entries of a group that are named
PLAIN_SECONDS = 10.0  # between lines where there is no terminal


@contextmanager
def progress_bar(title: str, total: float = 1.0) -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal, else nothing; called with the share done and the current item."""
    if not common.interactive():
        yield lambda done, doing: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done, doing: progress.update(task, completed=done, description=title + doing)


@contextmanager
def working(on: str, interactive: bool) -> Iterator[None]:
    """Shows a spinner and a title on a terminal during the block."""
    if not interactive:
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{on} ..."):
        yield


@contextmanager
def watch(interactive: bool) -> Iterator[Callable[[TrainingProgress], None]]:
    """A function to call after each update: a live table on a terminal, else lines at intervals."""
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


def _plain() -> Callable[[TrainingProgress], None]:
    last = 0.0

    def show(progress: TrainingProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_SECONDS and progress.done < 1:
            return
        last = now
        losses = "  ".join(f"{n} {_shown_loss(p)}" for n, p in _first_entries(progress))
        common.say(f"{progress.done:4.0%}  update {progress.step}  loss: {losses}")

    return show


def _table(progress: TrainingProgress) -> Table:
    from rich.table import Table

    from softlore.tune import LOSSES

    labels = [loss.label for loss in LOSSES.values()]
    table = Table("entry", "update", *labels, "", box=None)
    for name, prompt in _first_entries(progress):
        numbers = [_number(prompt.history.recent(loss)) for loss in LOSSES]
        table.add_row(name, str(prompt.steps), *numbers, prompt.stopped or "")
    hidden = len(progress.trainables) - SHOWN
    if hidden > 0 or progress.waiting:
        table.add_row(f"and {max(0, hidden)} more, {progress.waiting} waiting")
    return table


def _first_entries(progress: TrainingProgress) -> list[tuple[str, TrainablePrompt]]:
    """As many entries as the table shows, those still in training first."""
    ordered = sorted(progress.trainables.items(), key=lambda item: item[1].stopped is not None)
    return ordered[:SHOWN]


def _shown_loss(prompt: TrainablePrompt) -> str:
    loss = prompt.history.shown()
    return _number(None if loss is None else prompt.history.recent(loss))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


@contextmanager
def watch_groups(interactive: bool) -> Iterator[Callable[[GroupEvent], None]]:
    """A function to call with events of groups: a bar for each in training, lines for the rest."""
    if not interactive:
        yield _plain_groups()
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TextColumn("{task.fields[losses]}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as shown:
        tasks: dict[int, bars.TaskID] = {}

        def show(event: GroupEvent) -> None:
            number = event.report.number
            if number not in tasks:
                tasks[number] = shown.add_task(_group_name(event), total=1.0, losses="")
            shown.update(tasks[number], completed=event.report.done, losses=_losses(event))
            if event.event not in ("begun", "update"):
                shown.console.print(_line(event), markup=False, highlight=False)
            if event.event in ("done", "failed"):
                shown.remove_task(tasks.pop(number))

        yield show


def _plain_groups() -> Callable[[GroupEvent], None]:
    last: dict[int, float] = {}

    def show(event: GroupEvent) -> None:
        now, number = time.monotonic(), event.report.number
        if event.event == "update" and now - last.get(number, 0.0) < PLAIN_SECONDS:
            return
        last[number] = now
        common.say(_line(event))

    return show


def _line(event: GroupEvent) -> str:
    report = event.report
    lines = {
        "begun": f"starts at update {report.step}",
        "update": f"{report.done:4.0%}  update {report.step}  loss: {_losses(event)}",
        "done": f"done after {report.step} updates  loss: {_losses(event)}",
        "lost": f"has lost its worker; continues from its checkpoint ({event.reason})",
        "failed": f"has failed: {event.reason}",
    }
    return f"{_group_name(event)}: {lines[event.event]}"


def _group_name(event: GroupEvent) -> str:
    more = len(event.names) - GROUP_NAMES
    names = ", ".join(event.names[:GROUP_NAMES]) + (f" and {more} more" if more > 0 else "")
    return f"group {event.report.number} ({names})"


def _losses(event: GroupEvent) -> str:
    losses = list(event.report.losses.items())[:GROUP_NAMES]
    return "  ".join(f"{name} {value:.2f}" for name, value in losses)
