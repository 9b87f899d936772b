"""Progress on standard error: a table of losses while training, bars for other work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING

from softlore.cli import common
from softlore.cli.loading import LINE_SECONDS, LineTimer

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from softlore.tune import TrainablePrompt, TrainingProgress
    from softlore.tune.group_run import GroupEvent

SHOWN = 12  # entries in the table
GROUP_NAMES = 4  # entries of a group that are named
SHORT_SECONDS = 1.0  # a shorter phase is not mentioned where there is no terminal


@contextmanager
def progress_bar(title: str, total: float = 1.0) -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal, else lines at intervals; called with the share done and the item."""
    if not common.interactive():
        yield _progress_lines(title, total)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done, doing: progress.update(task, completed=done, description=title + doing)


def _progress_lines(title: str, total: float) -> Callable[[float, str], None]:
    timer = LineTimer(first=LINE_SECONDS)

    def show(done: float, doing: str) -> None:
        if timer.is_due():
            common.say(f"{title}{doing}: {done / total:.0%}")

    return show


class TrainingView:
    """Shows a training as it goes: lines, the first of each phase at once, then at intervals.

    Its methods are what `WorldInfoTrainer` calls.
    """

    def __init__(self) -> None:
        self._phase, self._timer = "", LineTimer()

    def on_phase(self, name: str, done: float) -> None:
        """Shows how much of a phase other than updates is done, 0 to 1."""
        if self._phase != "training":  # between updates its own lines go on, in their intervals
            self._enter(name, SHORT_SECONDS)
        if self._timer.is_due():
            common.say(f"{name}: {done:.0%}" if done else name)

    def on_step(self, progress: TrainingProgress) -> None:
        """Shows the state after an update."""
        self._enter("training")
        if self._timer.is_due(anyway=progress.done == 1):
            left = "" if progress.done == 1 else f"  at most {duration(progress.seconds_left)} left"
            losses = _losses_in_a_line(progress)
            common.say(f"{progress.done:4.0%}  update {progress.step}  loss: {losses}{left}")

    def _enter(self, phase: str, first: float = 0.0) -> None:
        if phase != self._phase:
            self._phase, self._timer = phase, LineTimer(first)


class LiveTrainingView(TrainingView):
    """The same on a terminal: a bar, and a table of the entries' losses."""

    def __init__(self, live: Live) -> None:
        from rich import progress as bars

        super().__init__()
        self._live = live
        self._bar = bars.Progress(
            "{task.description}",
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TextColumn("{task.fields[left]}"),
        )
        self._task = self._bar.add_task("preparing", total=1.0, left="")
        self._table: Table | None = None
        self._done, self._left = 0.0, ""
        self._draw()

    def on_phase(self, name: str, done: float) -> None:
        # Between updates the bar stays where it is.
        share = self._done if self._table else done
        self._bar.update(self._task, completed=share, description=name, left=self._left)
        self._draw()

    def on_step(self, progress: TrainingProgress) -> None:
        self._done, self._table = progress.done, _table(progress)
        self._left = f"at most {duration(progress.seconds_left)} left"
        self._bar.update(self._task, completed=self._done, description="training", left=self._left)
        self._draw()

    def _draw(self) -> None:
        from rich.console import Group

        self._live.update(Group(self._bar, *([self._table] if self._table else [])))


@contextmanager
def watch(interactive: bool) -> Iterator[TrainingView]:
    """A view of a training: a live table on a terminal, else lines at intervals."""
    if not interactive:
        yield TrainingView()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=4) as live:
        yield LiveTrainingView(live)


def duration(seconds: float | None) -> str:
    """A time in words: "40 s", "2.5 min", "1.2 h"; "?" if it is not known."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _table(progress: TrainingProgress) -> Table:
    from rich.table import Table

    from softlore.tune import LOSSES

    histories = [prompt.history for prompt in progress.trainables.values()]
    used = [name for name in LOSSES if any(history[name] for history in histories)]
    labels = [LOSSES[name].label for name in used]
    table = Table("entry", "update", *labels, "", box=None)
    for name, prompt in _first_entries(progress):
        numbers = [_number(prompt.history.recent(loss)) for loss in used]
        table.add_row(name, str(prompt.steps), *numbers, prompt.stopped or "")
    hidden = len(progress.trainables) - SHOWN
    if hidden > 0 or progress.waiting:
        table.add_row(f"and {max(0, hidden)} more, {progress.waiting} waiting")
    return table


def _first_entries(progress: TrainingProgress) -> list[tuple[str, TrainablePrompt]]:
    """As many entries as the table shows, those still in training first."""
    ordered = sorted(progress.trainables.items(), key=lambda item: item[1].stopped is not None)
    return ordered[:SHOWN]


def _losses_in_a_line(progress: TrainingProgress) -> str:
    """Each entry's loss; of more than the table shows, their mean, and the worst."""
    losses = {name: _shown_loss(prompt) for name, prompt in progress.trainables.items()}
    if len(losses) + progress.waiting <= SHOWN:
        return "  ".join(f"{name} {_number(losses[name])}" for name, _ in _first_entries(progress))
    known = {name: loss for name, loss in losses.items() if loss is not None}
    if not known:
        return "–"
    worst = max(known, key=lambda name: known[name])
    count = f"{len(known)} of {len(losses) + progress.waiting} entries"
    return f"{fmean(known.values()):.2f} on average ({count}), at most {known[worst]:.2f} ({worst})"


def _shown_loss(prompt: TrainablePrompt) -> float | None:
    loss = prompt.history.shown()
    return None if loss is None else prompt.history.recent(loss)


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
    timers: dict[int, LineTimer] = defaultdict(LineTimer)

    def show(event: GroupEvent) -> None:
        if timers[event.report.number].is_due(anyway=event.event != "update"):
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
