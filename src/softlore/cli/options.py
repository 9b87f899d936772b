"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from softlore.errors import ConfigError
from softlore.settings import SamplingParams, Setting, Settings, table

if TYPE_CHECKING:
    from softlore.model import FrozenModel
    from softlore.prompts import PromptLibrary

Command = TypeVar("Command", bound=Callable[..., Any])


def setting_options(settings: type[Settings], *names: str) -> Callable[[Command], Command]:
    """An option for each of some settings, all of them by default; None where it is not given."""
    declared = table(settings)

    def add(function: Command) -> Command:
        for name in reversed(names or tuple(declared)):
            function = setting_option(declared[name])(function)
        return function

    return add


def setting_option(setting: Setting) -> Callable[[Command], Command]:
    """The option of one setting, with its type, choices, default and help."""
    more: dict[str, Any] = {}
    if setting.type is bool:
        more["is_flag"] = True
    elif setting.choices:
        more["type"] = click.Choice([str(choice) for choice in setting.choices])
    else:
        more |= {"type": _Value(setting), "multiple": setting.type is tuple}
    return click.option(setting.flag, setting.name, default=None, help=_help(setting), **more)


def _help(setting: Setting) -> str:
    notes = [setting.unit] if setting.unit else []
    if setting.default not in (None, (), False):
        default = setting.default
        notes.append(f"default: {f'{default:g}' if setting.type is float else default}")
    return setting.help + (f"  [{'; '.join(notes)}]" if notes else "")


class _Value(click.ParamType[Any]):
    """A setting's value; its bounds are checked with all other settings, by their class."""

    def __init__(self, setting: Setting) -> None:
        self.name = {int: "integer", float: "number"}.get(setting.type, "text")
        self._setting = setting

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._setting.parse(value) if isinstance(value, str) else value
        except ValueError:
            raise self._setting.error(value, self._setting.flag) from None


def model_options(function: Command) -> Command:
    """`--model`, `--dtype`, `--device`."""
    for option in (
        click.option("--device", help="Where to run, such as cuda.  [default: a GPU if any]"),
        click.option("--dtype", help="float32, bfloat16 or float16.  [default: by device]"),
        click.option("--model", "model_name", help="Hub id or folder.  [default: storyteller]"),
    ):
        function = option(function)
    return function


def prompts_option(function: Command) -> Command:
    """`--prompts`, given to the command as `folder`."""
    return click.option(
        "--prompts",
        "folder",
        type=click.Path(path_type=Path),
        help="Folder of prompt files.  [default: see `softlore inspect`]",
    )(function)


def json_option(function: Command) -> Command:
    """`--json`, given to the command as `json_path`."""
    return click.option(
        "--json", "json_path", help="Write a JSON report to this file; - is standard output."
    )(function)


def code_option(function: Command) -> Command:
    """`--code NAME[=STRENGTH]`, given to the command as `codes`; see `dose`."""
    return click.option(
        "--code",
        "codes",
        multiple=True,
        metavar="NAME[=STRENGTH]",
        help="Control code to write under: one of the model's, or a soft prompt. May be given "
        "often; 1 is the code as it is, 0 nothing, below 0 away from it.",
    )(function)


_no_copy_option = click.option(
    "--no-copy",
    type=click.IntRange(min=0),
    metavar="N",
    help="Steer off what would repeat N tokens of the training responses word for word.",
)
_sampler_option = click.option(
    "--sampler",
    "samplers",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any sampler of docs/sampling.md, such as dry_base=1.5; may be given often. Of "
    "banned_strings and dry_breakers one string at a time.",
)


def sampling_options(function: Command) -> Command:
    """How tokens are chosen, given to the command as `sampling`: settings that were given, by name.

    The samplers that the studio has a slider for have an option each; `--sampler NAME=VALUE` takes
    all of them.
    """
    common = [name for name, setting in table(SamplingParams).items() if setting.slider]

    @functools.wraps(function)
    def gathered(*args: Any, samplers: tuple[str, ...], **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in ("no_copy", *common)}
        sampling = {name: value for name, value in given.items() if value is not None}
        for name, value in sampler_settings(samplers).items():
            if name in sampling:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{name} is given twice; expected {flag} or --sampler {name}=…; leave one out"
                )
            sampling[name] = value
        return function(*args, sampling=sampling, **kwargs)

    command: Any = _sampler_option(_no_copy_option(gathered))
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
        ConfigError: the strength is no number.
    """
    name, _, strength = clean(code, "--code").rpartition("=")
    try:
        return (name, float(strength)) if name else (code, 1.0)
    except ValueError:
        raise ConfigError(
            f"--code {code!r} has strength {strength!r}; expected a number, such as {name}=1.5; "
            "mend it"
        ) from None


def load_model(name: str | None, dtype: str | None, device: str | None) -> FrozenModel:
    """The model that `model_options` names, or the default one."""
    from softlore.model import DEFAULT_MODEL, FrozenModel

    return FrozenModel.from_pretrained(
        DEFAULT_MODEL if name is None else name, dtype=dtype, device=device
    )


def library(folder: Path | None, new: bool = False) -> PromptLibrary:
    """The folder that was named, or the default one, which need not be there yet.

    Args:
        new: prompts are to be put there: it is made if need be.

    Raises:
        ConfigError: a folder was named that is not there.
    """
    from softlore.prompts import PromptLibrary

    if folder is not None and not new and not folder.exists():
        raise ConfigError(
            f"there is no folder {str(folder)!r}; expected one of prompt files; check --prompts"
        )
    return PromptLibrary(folder)


def write_json(report: Any, path: str | None) -> None:
    """Writes a report where `--json` says, if it says anything."""
    if path is None:
        return
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if path == "-":
        click.echo(text)
        return
    from softlore.disk import write_atomically

    write_atomically(path, (text + "\n").encode())


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
        ConfigError: bytes that are no UTF-8.
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


def interactive() -> bool:
    """Whether somebody watches."""
    return sys.stderr.isatty()


def check_free(path: Path, force: bool) -> None:
    """Nothing is at a path, or it may be written over.

    Raises:
        ConfigError: something is.
    """
    if os.path.lexists(path) and not force:
        raise ConfigError(
            f"{str(path)!r} is there already; expected nothing to be lost; name another path "
            "(--out), or write over it (--force)"
        )
