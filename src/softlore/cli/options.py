"""Options that several commands share, some made from the declarations of settings."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from softlore.cli.common import ModelSource, check_utf8
from softlore.errors import ConfigError
from softlore.settings import Names, SamplingParams, Setting, Settings, table
from softlore.settings.sampler_values import MAX_GRAMMAR

if TYPE_CHECKING:
    from softlore.prompts import ControlVector

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


_MODEL_OPTIONS = (
    click.option(
        "--quantize",
        type=click.Choice(["nf4", "int8"]),
        help="Load the model's weights in 4 or 8 bits (needs softlore[large]).",
    ),
    click.option(
        "--device",
        help="Device to run on, such as cuda; auto divides the model "
        "among GPUs and processor.  [default: a GPU if any]",
    ),
    click.option("--dtype", help="float32, bfloat16 or float16.  [default: by device and model]"),
    click.option(
        "--model",
        "model_name",
        help="Short name (see `softlore models`), "
        "folder, GGUF file or hub id.  [default: see `softlore models use`]",
    ),
)


def with_model(function: Command) -> Command:
    """`--model`, `--dtype`, `--device` and `--quantize`, given to the command as `source`, a
    `ModelSource`.
    """

    @functools.wraps(function)
    def gathered(
        *args: Any,
        model_name: str | None,
        dtype: str | None,
        device: str | None,
        quantize: str | None,
        **kwargs: Any,
    ) -> Any:
        return function(*args, source=ModelSource(model_name, dtype, device, quantize), **kwargs)

    command: Any = gathered
    for option in _MODEL_OPTIONS:
        command = option(command)
    result: Command = command
    return result


threads_option = click.option(
    "--threads", type=click.IntRange(min=1), envvar="SOFTLORE_THREADS", metavar="N",
    help="Processor threads of each model; they change how sums are rounded.  "
    "[default: $SOFTLORE_THREADS, or torch's choice here]",
)  # fmt: skip
prompts_option = click.option(
    "--prompts", "folder", type=PATH,
    help="Folder of prompt files.  [default: see `softlore inspect`]",
)  # fmt: skip
json_option = click.option(
    "--json", "json_path", help="Write a JSON report to this file; - is standard output."
)
force_option = click.option("--force", is_flag=True, help="Overwrite what exists.")
seed_option = click.option("--seed", default=0, show_default=True, help="Seed of all random draws.")
code_option = click.option(
    "--code", "codes", multiple=True, metavar="NAME[=STRENGTH]",
    help="Control code to write under: one of the model's, or a soft prompt. May be given often; "
    "1 is the code as it is, 0 nothing, below 0 away from it.",
)  # fmt: skip
VECTOR_SUFFIXES = (".safetensors", ".gguf")
vector_option = click.option(
    "--vector", "vectors", multiple=True, metavar="NAME[=STRENGTH]",
    help="Control vector to steer by, or its file. May be given often; 1 is the vector as it was "
    "trained, below 0 away from it.",
)  # fmt: skip
vectors_option = click.option(
    "--vectors", "folder", type=PATH,
    help="Folder of control vectors.  [default: softlore's own, or $SOFTLORE_VECTORS]",
)  # fmt: skip


# From declared settings ---------------------------------------------------------------------------


def setting_options(settings: type[Settings], *names: str) -> Callable[[Command], Command]:
    """An option for each of the named settings, by default all; None where it is not given."""
    declared = table(settings)

    def add(function: Command) -> Command:
        for name in reversed(names or tuple(declared)):
            function = _option(declared[name])(function)
        return function

    return add


def _option(setting: Setting) -> Callable[[Command], Command]:
    """The option of one setting, with its type, choices, unit, default and help."""
    notes = [setting.unit] if setting.unit else []
    if setting.default not in (None, (), False, ""):
        notes.append(f"default: {setting.default}")
    help = setting.help + (f"  [{'; '.join(notes)}]" if notes else "")
    more: dict[str, Any] = {}
    if setting.file:
        more |= {"type": _File(), "metavar": "FILE"}
    elif setting.type is bool:
        more["is_flag"] = True
    else:
        if setting.choices:
            more["metavar"] = f"[{'|'.join(setting.choices)}]"
        more |= {"type": _Value(setting), "multiple": setting.type is tuple}
    if setting.env:
        more |= {"envvar": setting.env, "show_envvar": True}
    negative = f"/--no-{setting.flag.lstrip('-')}" if setting.type is bool else ""
    flags = setting.flag + negative
    return click.option(flags, setting.name, default=None, help=help, **more)


class _File(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.1
    """The text of a file, for a setting that is too long for the command line."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path = Path(value)
        try:
            with path.open("rb") as file:
                return file.read(4 * MAX_GRAMMAR + 1).decode()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8 text"
            self.fail(f"{value} cannot be read ({reason}); expected a text file; name another")


class _Value(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.1
    """A setting's value; its bounds are checked with all other settings, by their class."""

    def __init__(self, setting: Setting) -> None:
        self.name = {int: "integer", float: "number"}.get(setting.type, "text")
        self._setting = setting

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "none" and self._setting.optional:
            return None
        try:
            read = self._setting.parse(value) if isinstance(value, str) else value
        except ValueError:
            read = None
        if read is None or (self._setting.choices and read not in self._setting.choices):
            self.fail(str(self._setting.error(value)), param, ctx)
        return read


def names_options(function: Command) -> Command:
    """`--char` and `--user`, given to the command as `names`."""

    @functools.wraps(function)
    def gathered(*args: Any, char: str | None, user: str | None, **kwargs: Any) -> Any:
        return function(*args, names=Names(char=char or "", user=user or ""), **kwargs)

    command: Any = gathered
    return setting_options(Names)(command)


def names_arguments(names: Names) -> list[str]:
    """The options of `names_options` that give the names."""
    return [part for what, name in names.given().items() for part in (f"--{what}", name)]


def chosen(given: dict[str, Any]) -> dict[str, Any]:
    """Drops options that were not given (None or ()), and flattens those that may be repeated."""
    settings = {name: value for name, value in given.items() if value not in (None, ())}
    return {
        name: sum(value, ()) if isinstance(value, tuple) else value
        for name, value in settings.items()
    }


def sampling_options(function: Command) -> Command:
    """How tokens are chosen, given to the command as `sampling`: settings that were given, by name.

    Samplers with a slider or an `option` in their declaration have an option each; `--sampler
    NAME=VALUE` takes all of them.
    """
    common = [name for name, field in table(SamplingParams).items() if field.slider or field.option]

    @functools.wraps(function)
    def gathered(*args: Any, samplers: tuple[str, ...], **kwargs: Any) -> Any:
        sampling = chosen({name: kwargs.pop(name) for name in common})
        for name, value in sampler_settings(samplers).items():
            if name in sampling:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{name} is given twice; expected {flag} or --sampler {name}=…; leave one out"
                )
            sampling[name] = value
        return function(*args, sampling=sampling, **kwargs)

    command: Any = gathered
    command = click.option(
        "--sampler", "samplers", multiple=True, metavar="NAME=VALUE",
        help="Any sampler of docs/sampling.md, such as dry_base=1.5; may be repeated. "
        "For banned_strings and dry_breakers give one string each time.",
    )(command)  # fmt: skip
    return setting_options(SamplingParams, *common)(command)


def sampler_settings(given: Sequence[str]) -> dict[str, Any]:
    """Settings of the samplers from `NAME=VALUE`; several values of a list add up.

    Raises:
        ConfigError: an unknown name, or a value of another kind.
    """
    values: dict[str, Any] = {}
    for text in given:
        name, _, value = check_utf8(text, "--sampler").partition("=")
        name = name.replace("-", "_")
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


def find_vectors(vectors: Sequence[str], layers: int) -> list[tuple[ControlVector, float]]:
    """The control vectors of `--vector` options with their strengths; `layers`: of the model.

    Raises:
        ConfigError: a strength that is not a number.
        UnknownPromptError: a vector that there is not.
    """
    if not vectors:
        return []
    from softlore.prompts.vector_folder import find_vector

    pairs = [parse_strength(vector, "--vector") for vector in vectors]
    return [(find_vector(name, layers=layers), strength) for name, strength in pairs]


def split_vectors(vectors: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Of `--vector` options the names, with their strengths; and the options that name a file.

    Raises:
        ConfigError: a strength that is not a number.
    """
    names, files = dict[str, float](), list[str]()
    for vector in vectors:
        name, strength = parse_strength(vector, "--vector")
        if Path(name).suffix in VECTOR_SUFFIXES:
            files.append(vector)
        else:
            names[name] = strength
    return names, files


def parse_strength(code: str, option: str = "--code") -> tuple[str, float]:
    """`NAME=STRENGTH`, or a name alone, which has strength 1.

    Raises:
        ConfigError: the strength is not a number.
    """
    name, _, strength = check_utf8(code, option).rpartition("=")
    try:
        return (name, float(strength)) if name else (code, 1.0)
    except ValueError:
        raise ConfigError(
            f"{option} {code!r} has strength {strength!r}; expected a number, such as {name}=1.5; "
            "fix it"
        ) from None
