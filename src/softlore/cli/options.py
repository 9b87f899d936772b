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

if TYPE_CHECKING:
    from softlore.model import FrozenModel
    from softlore.prompts import PromptLibrary

Command = TypeVar("Command", bound=Callable[..., Any])

# Samplers with an option of their own: field of `Sampling`, default, help.
SAMPLERS: tuple[tuple[str, float, str], ...] = (
    ("temperature", 0.8, "0 is greedy."),
    ("top_k", 40, "Keep so many tokens; 0: all."),
    ("top_p", 1.0, "Keep the likeliest, to this sum."),
    ("min_p", 0.0, "Drop below this share of the best."),
    ("typical", 1.0, "Keep the most expected, to this sum."),
    ("repetition_penalty", 1.0, "Above 1: repeat less."),
    ("penalized", 1.0, "CTRL's penalty: 1.2, with a low temperature, is its authors' choice."),
)


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


def sampling_options(function: Command) -> Command:
    """How tokens are chosen, given to the command as `sampling`, fields of `Sampling`.

    An option each for the common ones, and `--sampler NAME=VALUE` for all others.
    """

    @functools.wraps(function)
    def gathered(*args: Any, samplers: tuple[str, ...], **kwargs: Any) -> Any:
        sampling = {name: kwargs.pop(name) for name, _, _ in SAMPLERS}
        no_copy = kwargs.pop("no_copy")
        if no_copy is not None:  # else a story's own may stand
            sampling["no_copy"] = no_copy
        return function(*args, sampling=sampling | sampler_settings(samplers), **kwargs)

    options = [
        click.option(
            "--no-copy",
            type=click.IntRange(min=0),
            metavar="N",
            help="Steer off what would repeat N tokens of the training responses word for word.",
        ),
        click.option(
            "--sampler",
            "samplers",
            multiple=True,
            metavar="NAME=VALUE",
            help="Any other sampler, such as dry_multiplier=0.8; may be given often. Of "
            "banned_strings and dry_breakers one string at a time. All are in docs/sampling.md.",
        ),
    ]
    for name, default, told in reversed(SAMPLERS):
        option = "--" + name.replace("_", "-")
        options.append(click.option(option, name, default=default, show_default=True, help=told))
    command: Any = gathered
    for one in options:
        command = one(command)
    return command


def sampler_settings(given: Sequence[str]) -> dict[str, Any]:
    """Fields of `Sampling` from `NAME=VALUE`; several values of a list add up.

    Raises:
        ConfigError: a name that is none, or has an option of its own, or a value of another kind.
    """
    found: dict[str, Any] = {}
    for one in given:
        name, _, value = clean(one, "--sampler").partition("=")
        values = _sampler_value(name.replace("-", "_"), value)
        for field, new in values.items():
            found[field] = (found.get(field, ()) + new) if isinstance(new, tuple) else new
    return found


def _sampler_value(name: str, value: str) -> dict[str, Any]:
    """One field with its value; a list as a tuple."""
    import dataclasses

    from softlore.decode.samplers.params import SamplingParams, check_sampler

    if name in {"no_copy", *(own for own, _, _ in SAMPLERS)}:
        option = "--" + name.replace("_", "-")
        raise ConfigError(f"{name} has an option of its own; expected {option} VALUE; use that")
    check_sampler(name)
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
    kind: Callable[[str], Any] = _READ.get(name, type(defaults[name]))
    try:
        return {name: kind(value)}
    except ValueError:
        shown = _EXAMPLES.get(name, defaults[name])
        raise ConfigError(
            f"--sampler {name} is {value!r}; expected a value such as {name}={shown}; mend it"
        ) from None


def _escaped(value: str) -> tuple[str, ...]:
    """A string, in which \\n stands for a newline and \\t for a tab."""
    return (value.replace("\\n", "\n").replace("\\t", "\t"),)


def _bias(value: str) -> tuple[tuple[int, float], ...]:
    ids = (pair.split(":") for pair in value.split(","))
    return tuple((int(i), float(bias)) for i, bias in ids)


# How the values that are no numbers are read, and an example of each.
_READ: dict[str, Callable[[str], Any]] = {
    "banned": lambda value: tuple(int(i) for i in value.split(",")),
    "banned_strings": _escaped,
    "dry_breakers": _escaped,
    "logit_bias": _bias,
    "order": lambda value: tuple(name.strip() for name in value.split(",")),
}
_EXAMPLES = {
    "banned": "5,17",
    "banned_strings": "somehow",
    "dry_breakers": "\\n",
    "logit_bias": "42:-5",
    "order": "top_k,temperature",
}


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
