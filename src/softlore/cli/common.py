"""Helpers of several commands: loading a model, reading and writing files, printing, errors."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from softlore.cli.loading import found_model, gguf_file
from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.lore import Lorebook
    from softlore.model import FrozenModel
    from softlore.prompts import PromptLibrary
    from softlore.settings import Names

NOTHING_KEPT = (
    "stopped before the first update: nothing new is kept, and what was trained before is as it "
    "was; the same command starts again"
)
SAME_COMMAND = "stopped; progress is saved: the same command continues from here"
SHOWN = 12  # lines of many that are alike


def use_threads(threads: int | None) -> None:
    """Sets the processor threads of this process's models, where a number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


class ModelSource(NamedTuple):
    """The model that the options of `with_model` name.

    Attributes:
        shown: that it is loaded has been said; see `loading`.
    """

    name: str | None
    dtype: str | None
    device: str | None
    quantize: str | None = None
    shown: bool = False

    def choose(self, own: str | None = None) -> ModelSource:
        """A copy with a name: that given, `own` of the lorebook or story, or the default."""
        from softlore.model.default import choose_model

        return self._replace(name=choose_model(self.name, own).name)

    @contextlib.contextmanager
    def loading(
        self, own: str | None = None, *, gguf: Path | None = None, brief: bool = False
    ) -> Iterator[ModelSource]:
        """Shows during the block that the model is loaded; gives the source to load it from.

        The line comes before torch is imported, so imports that need it belong into the block. A
        model that is on the hub only is downloaded first.

        Args:
            own: the model of the lorebook or story.
            gguf: a file that llama.cpp runs instead; the model named is its tokenizer's then.
            brief: no line for a small model where there is no terminal.

        Raises:
            ModelError: there is no such model.
            ConfigError: options that have no effect on what llama.cpp runs.
        """
        if gguf is not None:
            self.refuse_options()
            with gguf_file(gguf, brief):
                yield self._replace(shown=True)
            return
        with found_model(self.name, own, brief) as name:
            yield self._replace(name=name, shown=True)

    def refuse_options(self) -> None:
        """Raises ConfigError for options that have no effect on a file that llama.cpp runs."""
        given = {"--dtype": self.dtype, "--device": self.device, "--quantize": self.quantize}
        for option, value in given.items():
            if value is not None:
                raise ConfigError(
                    f"{option} is {value!r}, and --gguf names a file that llama.cpp runs as it is; "
                    f"expected one of the two; leave {option} out, or name the file with --model"
                )

    def load_named(self, name: str) -> FrozenModel:
        """Another model, by the same options. Raises as `load` does."""
        return self._replace(name=name).load()

    def load(self, own: str | None = None, brief: bool = False) -> FrozenModel:
        """The model named, or `own` of a lorebook or story, or the default one.

        Raises:
            ModelError: there is no such model, or it can't be read.
        """
        if not self.shown:
            with self.loading(own, brief=brief) as source:
                return source.load(own)
        from softlore.model import FrozenModel
        from softlore.model.default import choose_model

        name = choose_model(self.name).name
        return FrozenModel.from_pretrained(name, self.dtype, self.device, self.quantize)


def library(folder: Path | None, new: bool = False) -> PromptLibrary:
    """The folder that was named, or the default one, which need not exist yet.

    Args:
        new: prompts will be written there, so it is made if need be.

    Raises:
        ConfigError: a folder was named that does not exist.
    """
    if folder is not None and not new and not folder.exists():
        raise ConfigError(
            f"there is no folder {str(folder)!r}; expected one of prompt files; check --prompts"
        )
    from softlore.prompts import PromptLibrary

    return PromptLibrary(folder)


def write_json(report: Any, path: str | None) -> None:
    """Writes a report where `--json` says, if it was given."""
    if path is None:
        return
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if path == "-":
        click.echo(text)
        return
    from softlore.disk import write_atomically

    write_atomically(path, (text + "\n").encode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: bool = False) -> None:
    """Prints a table; cells are shown as they are. `right`: aligns all but the first column."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if right and number else "left")
    for row in rows:
        shown.add_row(*map(Text, row))
    Console().print(shown)


def say(message: str) -> None:
    """Prints a line on standard error."""
    click.echo(message, err=True)


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 entry", "2 entries"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def say_some(lines: Sequence[str], more: str, at_most: int = SHOWN) -> None:
    """Prints the first of many lines, and how many there are `more`, as in "and {} more"."""
    for line in lines[:at_most]:
        say(line)
    if len(lines) > at_most:
        say(more.format(len(lines) - at_most))


def say_warnings(book: Lorebook, include: Sequence[str] = (), at_most: int = SHOWN) -> None:
    """Prints what is probably a mistake in a lorebook; `include`: of these entries only."""
    from softlore.lore import check

    left = [entry for entry in book if not include or entry.name in include]
    warnings = check(book.model_copy(update={"entries": left})) if left else []
    more = "check: and {} more; softlore lore show lists them all"
    say_some([f"check: {warning}" for warning in warnings], more, at_most)


def load_book(path: Path, names: Names) -> Lorebook:
    """A lorebook, with `names` in place of its own where they are given.

    Raises:
        LoreError: there is none, or it can't be read.
    """
    from softlore.lore import Lorebook

    return Lorebook.load(path).model_copy(update=names.given())


def read_text(path: Path, what: str) -> str:
    """Reads a UTF-8 text file.

    Raises:
        ConfigError: missing, a folder, or not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{what} {str(path)!r} can't be read ({why}); expected a UTF-8 text file; check it"
        ) from error


def check_utf8(text: str, what: str) -> str:
    """The text, as it was typed.

    Raises:
        ConfigError: bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{what} {text!r:.60} holds bytes that are not UTF-8; expected text; type it again"
        ) from error
    return text


def given_text(text: str) -> str:
    """A text argument, or standard input where it is "-".

    Raises:
        ConfigError: it is not UTF-8.
    """
    if text != "-":
        return check_utf8(text, "the text")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"standard input is not UTF-8 text ({error.reason}); expected text; check what is "
            "piped in"
        ) from error


@contextlib.contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Wraps imports of packages that come with one of softlore's extras.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("softlore"):
            raise
        raise ConfigError(
            f"{error.name} is not installed; expected the packages of softlore's extra `{extra}`; "
            f"run: pip install 'softlore[{extra}]'"
        ) from None


@contextlib.contextmanager
def resumable(message: str | Callable[[], str]) -> Iterator[None]:
    """Turns Ctrl-C into exit code 130 with a message that says what is saved."""
    try:
        yield
    except KeyboardInterrupt:
        told = message if isinstance(message, str) else message()
        raise click.exceptions.Abort(told) from None


def interactive() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


def check_free(path: Path, force: bool) -> None:
    """Raises ConfigError if something is at a path and may not be overwritten."""
    if os.path.lexists(path) and not force:
        raise ConfigError(
            f"{str(path)!r} exists already; expected a new file; name another path "
            "(--out), or overwrite it (--force)"
        )
