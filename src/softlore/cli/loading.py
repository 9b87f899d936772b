"""Shows which model is loaded: a line at once, then seconds; and downloads it with a bar."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from softlore.model.finding import FoundModel

LINE_SECONDS = 10.0  # between lines where there is no terminal
SMALL = 64 * 2**20  # bytes of a model that loads in about the time that its libraries take


class LineTimer:
    """Says when the next line of progress is due, where there is no terminal.

    Args:
        first: seconds until the first line.
    """

    def __init__(self, first: float = 0.0) -> None:
        self._next = time.monotonic() + first

    def is_due(self, anyway: bool = False) -> bool:
        """Whether to print a line now, `anyway` or by the time; then counts from here."""
        now = time.monotonic()
        if now < self._next and not anyway:
            return False
        self._next = now + LINE_SECONDS
        return True


@contextmanager
def found_model(name: str | None, own: str | None, brief: bool) -> Iterator[str]:
    """Finds a model, downloads it if need be, and shows that it is loaded during the block.

    Args:
        name: given by the user.
        own: of the lorebook or the story, if the user gave none.
        brief: no line for a small model where there is no terminal, as scripts call the command
            often.

    Raises:
        ModelError: it is missing. ConfigError: the config file can't be read.
    """
    from softlore.errors import ModelError
    from softlore.model.default import choose_model
    from softlore.model.finding import find_model

    choice = choose_model(name, own)
    try:
        found = fetch(find_model(choice.name))
    except ModelError as error:
        raise choice.explain(error) from error
    with showing(_title(found), quiet=brief and found.bytes <= SMALL):
        yield found.name


@contextmanager
def gguf_file(path: Path, brief: bool) -> Iterator[None]:
    """Shows during the block that a GGUF file is loaded."""
    size = path.stat().st_size if path.is_file() else 0
    with showing(f"loading {path.name} ({shown_bytes(size)})", quiet=brief and size <= SMALL):
        yield


def _title(found: FoundModel) -> str:
    """What is loaded: its name, size and file."""
    facts = [f"{found.known.parameters} parameters"] if found.known else []
    if found.path is not None:
        facts.append({"included": "included", "cache": "from the hub's cache"}.get(
            found.where, found.path.name if found.path.is_file() else "a folder"))  # fmt: skip
    if not found.known and found.bytes:
        facts.append(shown_bytes(found.bytes))
    return f"loading {found.display_name} ({', '.join(facts)})"


def shown_bytes(count: int) -> str:
    """A size in MB or GB: "98 MB", "3.4 GB", "0.2 MB"."""
    megabytes = count / 1e6
    if megabytes >= 1000:
        return f"{megabytes / 1000:.1f} GB"
    return f"{megabytes:.0f} MB" if megabytes >= 10 else f"{megabytes:.1f} MB"


@contextmanager
def showing(title: str, quiet: bool = False) -> Iterator[None]:
    """A spinner with seconds during the block; without a terminal a line now and at intervals."""
    if not sys.stderr.isatty():
        with _lines(title) if not quiet else _nothing():
            yield
        return
    from rich import progress as bars
    from rich.console import Console
    from rich.errors import LiveError

    columns = (bars.SpinnerColumn(), bars.TextColumn("{task.description}", markup=False),
               bars.TimeElapsedColumn())  # fmt: skip
    spinner = bars.Progress(*columns, console=Console(stderr=True), transient=True)
    spinner.add_task(title, total=None)
    try:
        spinner.start()
    except LiveError:  # a bar is shown already
        click.echo(f"{title} …", err=True)
    try:
        yield
    finally:
        spinner.stop()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _lines(title: str) -> Iterator[None]:
    """The title now, and again every ten seconds with the time."""
    click.echo(f"{title} …", err=True)
    start, ended = time.monotonic(), threading.Event()

    def repeat() -> None:
        while not ended.wait(LINE_SECONDS):
            click.echo(f"{title}: {time.monotonic() - start:.0f} s", err=True)

    thread = threading.Thread(target=repeat, name="loading", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def fetch(found: FoundModel) -> FoundModel:
    """The model on this machine: from the hub, with a bar or lines, if it is there only.

    Raises:
        ModelError: it can't be downloaded.
    """
    if found.path is not None:
        return found
    absent = f"{found.name} is not on this machine"
    click.echo(f"{absent}: asking the hub for {found.hub_id} …", err=True)
    with _download_bar(found.hub_id) as show:
        return found.fetch(on_bytes=show)


@contextmanager
def _download_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with the bytes so far and in all."""
    if not sys.stderr.isatty():
        yield _download_lines(title)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (bars.TextColumn("{task.description}", markup=False), bars.BarColumn(),
               bars.DownloadColumn(), bars.TransferSpeedColumn(),
               bars.TimeRemainingColumn())  # fmt: skip
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _download_lines(title: str) -> Callable[[int, int], None]:
    """A line at the beginning, every ten seconds, and at the end."""
    timer = LineTimer()

    def show(done: int, total: int) -> None:
        if timer.is_due(anyway=done == total):
            of = f"{shown_bytes(done)} of {shown_bytes(total)}"
            click.echo(f"downloading {title}: {of}", err=True)

    return show
