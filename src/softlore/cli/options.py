"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.model import FrozenModel
    from softlore.prompts import PromptLibrary

Command = TypeVar("Command", bound=Callable[..., Any])


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


def library(folder: Path | None) -> PromptLibrary:
    """The folder that was named, or the default one."""
    from softlore.prompts import PromptLibrary

    return PromptLibrary(folder)


def write_json(report: Any, path: str | None) -> None:
    """Writes a report where `--json` says, if it says anything."""
    if path is None:
        return
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if path == "-":
        click.echo(text)
        return
    from softlore.disk import write_whole

    write_whole(path, (text + "\n").encode())


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


def interactive() -> bool:
    """Whether somebody watches."""
    return sys.stderr.isatty()
