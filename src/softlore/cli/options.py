"""Options that several commands share, and what commands do with them: load, read, write."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from softlore.errors import ConfigError
from softlore.settings import SamplingParams, Setting, Settings, table

if TYPE_CHECKING:
    from softlore.model import FrozenModel
    from softlore.prompts import PromptLibrary

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


class Finite(click.FloatRange):
    """A number within a range, and never nan or inf, which click lets pass any range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class ModelSource(NamedTuple):
    """The model that the options of `with_model` name."""

    name: str | None
    dtype: str | None
    device: str | None

    def or_else(self, default: str | None) -> ModelSource:
        """The same, with a default name where none was given."""
        return self if self.name is not None else self._replace(name=default)

    def load(self, default: str | None = None) -> FrozenModel:
        """The model named, or `default`, which may be that of a lorebook, or softlore's default."""
        return load_model(self.or_else(default).name, self.dtype, self.device)


def model_options(function: Command) -> Command:
    """`--model`, `--dtype`, `--device`, given as `model_name`, `dtype` and `device`."""
    for option in (
        click.option("--device", help="Device to run on, such as cuda.  [default: a GPU if any]"),
        click.option("--dtype", help="float32, bfloat16 or float16.  [default: by device]"),
        click.option("--model", "model_name", help="Hub id or folder.  [default: storyteller]"),
    ):
        function = option(function)
    return function


def with_model(function: Command) -> Command:
    """The same, given to the command as `source`, a `ModelSource`."""

    @functools.wraps(function)
    def gathered(
        *args: Any, model_name: str | None, dtype: str | None, device: str | None, **kwargs: Any
    ) -> Any:
        return function(*args, source=ModelSource(model_name, dtype, device), **kwargs)

    command: Any = gathered
    return model_options(command)


prompts_option = click.option(
    "--prompts", "folder", type=PATH,
    help="Folder of prompt files.  [default: see `softlore inspect`]",
)  # fmt: skip
json_option = click.option(
    "--json", "json_path", help="Write a JSON report to this file; - is standard output."
)
force_option = click.option("--force", is_flag=True, help="Overwrite what is there.")
seed_option = click.option("--seed", default=0, show_default=True, help="Seed of all random draws.")
code_option = click.option(
    "--code", "codes", multiple=True, metavar="NAME[=STRENGTH]",
    help="Control code to write under: one of the model's, or a soft prompt. May be given often; "
    "1 is the code as it is, 0 nothing, below 0 away from it.",
)  # fmt: skip


# From declared settings ---------------------------------------------------------------------------


def setting_options(settings: type[Settings], *names: str) -> Callable[[Command], Command]:
    """An option for each of some settings, all of them by default; None where it is not given."""
    declared = table(settings)

    def add(function: Command) -> Command:
        for name in reversed(names or tuple(declared)):
            function = _option(declared[name])(function)
        return function

    return add


def _option(setting: Setting) -> Callable[[Command], Command]:
    """The option of one setting, with its type, choices, unit, default and help."""
    notes = [setting.unit] if setting.unit else []
    if setting.default not in (None, (), False):
        notes.append(f"default: {setting.default}")
    help = setting.help + (f"  [{'; '.join(notes)}]" if notes else "")
    more: dict[str, Any] = {}
    if setting.type is bool:
        more["is_flag"] = True
    else:
        if setting.choices:
            more["metavar"] = f"[{'|'.join(setting.choices)}]"
        more |= {"type": _Value(setting), "multiple": setting.type is tuple}
    if setting.env:
        more |= {"envvar": setting.env, "show_envvar": True}
    return click.option(setting.flag, setting.name, default=None, help=help, **more)


class _Value(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.1
    """A setting's value; its bounds are checked with all other settings, by their class."""

    def __init__(self, setting: Setting) -> None:
        self.name = {int: "integer", float: "number"}.get(setting.type, "text")
        self._setting = setting

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            read = self._setting.parse(value) if isinstance(value, str) else value
        except ValueError:
            read = None
        if read is None or (self._setting.choices and read not in self._setting.choices):
            self.fail(str(self._setting.error(value)), param, ctx)
        return read


def chosen(given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; lists of lists, as options that may be given often, as one."""
    settings = {name: value for name, value in given.items() if value not in (None, ())}
    return {
        name: sum(value, ()) if isinstance(value, tuple) else value
        for name, value in settings.items()
    }


def sampling_options(function: Command) -> Command:
    """How tokens are chosen, given to the command as `sampling`: settings that were given, by name.

    The samplers that the studio has a slider for have an option each; `--sampler NAME=VALUE` takes
    all of them.
    """
    common = [name for name, setting in table(SamplingParams).items() if setting.slider]

    @functools.wraps(function)
    def gathered(*args: Any, samplers: tuple[str, ...], **kwargs: Any) -> Any:
        sampling = chosen({name: kwargs.pop(name) for name in ("no_copy", *common)})
        for name, value in sampler_settings(samplers).items():
            if name in sampling:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{name} is given twice; expected {flag} or --sampler {name}=…; leave one out"
                )
            sampling[name] = value
        return function(*args, sampling=sampling, **kwargs)

    command: Any = gathered
    for option in (
        click.option("--no-copy", type=click.IntRange(min=0), metavar="N",
                     help="Steer off what would repeat N tokens of the training responses word for "
                     "word."),
        click.option("--sampler", "samplers", multiple=True, metavar="NAME=VALUE",
                     help="Any sampler of docs/sampling.md, such as dry_base=1.5; may be given "
                     "often. Of banned_strings and dry_breakers one string at a time."),
    ):  # fmt: skip
        command = option(command)
    return setting_options(SamplingParams, *common)(command)


def sampler_settings(given: Sequence[str]) -> dict[str, Any]:
    """Settings of the samplers from `NAME=VALUE`; several values of a list add up.

    Raises:
        ConfigError: a name that is none, or a value of another kind.
    """
    values: dict[str, Any] = {}
    for text in given:
        name, _, value = clean(text, "--sampler").partition("=")
        name = name.replace("-", "_")
        if name == "no_copy":
            raise ConfigError(
                "no_copy has an option of its own; expected --no-copy VALUE; use that"
            )
        SamplingParams.check_name(name)
        setting = table(SamplingParams)[name]
        try:
            new = setting.parse(value)
        except ValueError:
            example = setting.textual.example if setting.textual else setting.default
            raise ConfigError(
                f"--sampler {name} is {value!r}; expected a value such as {name}={example}; fix it"
            ) from None
        values[name] = values.get(name, ()) + new if isinstance(new, tuple) else new
    return values


def dose(code: str) -> tuple[str, float]:
    """`NAME=STRENGTH`, or a name alone, which has strength 1.

    Raises:
        ConfigError: the strength is not a number.
    """
    name, _, strength = clean(code, "--code").rpartition("=")
    try:
        return (name, float(strength)) if name else (code, 1.0)
    except ValueError:
        raise ConfigError(
            f"--code {code!r} has strength {strength!r}; expected a number, such as {name}=1.5; "
            "fix it"
        ) from None


# What commands do with them -----------------------------------------------------------------------


def load_model(name: str | None, dtype: str | None, device: str | None) -> FrozenModel:
    """The model that `model_options` name, or the default one."""
    from softlore.model import DEFAULT_MODEL, FrozenModel

    return FrozenModel.from_pretrained(
        DEFAULT_MODEL if name is None else name, dtype=dtype, device=device
    )


def library(folder: Path | None, new: bool = False) -> PromptLibrary:
    """The folder that was named, or the default one, which need not exist yet.

    Args:
        new: prompts will be written there, so it is made if need be.

    Raises:
        ConfigError: a folder was named that does not exist.
    """
    from softlore.prompts import PromptLibrary

    if folder is not None and not new and not folder.exists():
        raise ConfigError(
            f"there is no folder {str(folder)!r}; expected one of prompt files; check --prompts"
        )
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
    """A line on standard error."""
    click.echo(message, err=True)


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 entry", "2 entries"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def read_text(path: Path, what: str) -> str:
    """A text file as UTF-8.

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


def clean(text: str, what: str) -> str:
    """The text, as it was typed.

    Raises:
        ConfigError: bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{what} {text!r:.60} holds bytes that are not UTF-8; expected text; type it anew"
        ) from error
    return text


def given_text(text: str) -> str:
    """A text argument, or standard input where it is "-".

    Raises:
        ConfigError: it is not UTF-8.
    """
    if text != "-":
        return clean(text, "the text")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"standard input is not UTF-8 text ({error.reason}); expected text; check what is "
            "piped in"
        ) from error


@contextlib.contextmanager
def wanting(extra: str) -> Iterator[None]:
    """Imports of what comes with one of softlore's extras.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("softlore"):
            raise
        raise ConfigError(
            f"{error.name} is not installed; expected what comes with softlore's extra `{extra}`; "
            f"run: pip install 'softlore[{extra}]'"
        ) from None


@contextlib.contextmanager
def resumable(message: str) -> Iterator[None]:
    """Turns Ctrl-C into exit code 130 with a message that says what is saved."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Abort(message) from None


SAME_COMMAND = "stopped; progress is saved: the same command continues from here"


def interactive() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


def check_free(path: Path, force: bool) -> None:
    """Raises ConfigError if something is at a path and may not be overwritten."""
    if os.path.lexists(path) and not force:
        raise ConfigError(
            f"{str(path)!r} is there already; expected nothing to be lost; name another path "
            "(--out), or overwrite it (--force)"
        )
