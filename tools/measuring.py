"""One command line for the measure*.py scripts: experiments are functions with options.

The options of an experiment are its keyword parameters; positional-only parameters are positional
arguments. The annotation is the type: `list[int]` takes several values, `bool` is a flag, `Literal`
lists the choices, and `Annotated[…, "help"]` adds help. An experiment returns rows, which are
printed as JSON; `measure` also shows each on standard error as soon as it is measured.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch

from softlore import FrozenModel
from softlore.compare.harness import Row, run_cases
from softlore.errors import SoftloreError

Experiment = Callable[..., Any]
Shared = Annotated[Path, "folder with models/tinytalk-3m and data/"]
Corpus = Annotated[Path, "folder that corpus.py wrote"]
Keep = Annotated[Path | None, "JSON lines; cases in the file are not measured again"]
Seed = Annotated[int, "of every draw"]
Kinds = Annotated[list[Literal["prefix", "embedding"]], "of soft prompts"]


def main(doc: str, *experiments: Experiment, arguments: list[str] | None = None) -> None:
    """Runs one of the experiments, named by the first argument unless there is only one."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if len(experiments) == 1:
        _add_options(parser, experiments[0])
    else:
        commands = parser.add_subparsers(required=True)
        for run in experiments:
            summary = inspect.getdoc(run)
            _add_options(commands.add_parser(run.__name__, help=summary, description=summary), run)
    given = vars(parser.parse_args(arguments))
    run = given.pop("experiment")
    torch.set_num_threads(given.pop("threads"))
    positional = [
        given.pop(name)
        for name, parameter in inspect.signature(run).parameters.items()
        if parameter.kind is parameter.POSITIONAL_ONLY
    ]
    options = {name: value for name, value in given.items() if value is not None}
    try:
        result = run(*positional, **options)
    except SoftloreError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    if result is not None:
        print(json.dumps(result, indent=1))


class LatestModel:
    """Loads models by name, and keeps the latest: its memory is free before the next is loaded."""

    def __init__(self, dtype: str | None) -> None:
        self._dtype = dtype
        self._name: str | None = None
        self._model: FrozenModel | None = None

    def __call__(self, name: str) -> FrozenModel:
        if self._model is None or self._name != name:
            self._model = None
            self._name, self._model = name, FrozenModel.from_pretrained(name, dtype=self._dtype)
        return self._model


def measure(
    cases: Iterable[Row], case: Callable[..., Row | Iterable[Row]], keep: Path | None = None
) -> list[Row]:
    """`run_cases` with each row shown."""
    return run_cases(cases, case, keep, on_row=show)


def show(row: Row) -> None:
    """Prints a row on standard error."""
    print(json.dumps(row), file=sys.stderr, flush=True)


def _add_options(parser: argparse.ArgumentParser, run: Experiment) -> None:
    parser.set_defaults(experiment=run)
    hints = get_type_hints(run, include_extras=True)
    for name, parameter in inspect.signature(run).parameters.items():
        _add_option(parser, parameter, hints[name])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def _add_option(parser: argparse.ArgumentParser, parameter: inspect.Parameter, hint: Any) -> None:
    about = ""
    if get_origin(hint) is Annotated:
        hint, about = get_args(hint)[:2]
    several = get_origin(hint) is list
    kind = get_args(hint)[0] if several else hint
    if type(None) in get_args(kind):  # X | None
        kind = get_args(kind)[0]
    choices = get_args(kind) if get_origin(kind) is Literal else None
    settings: dict[str, Any] = {"help": about}
    if kind is bool:
        settings["action"] = "store_true"
    else:
        settings |= {"type": str if choices else kind, "choices": choices}
    if parameter.kind is parameter.POSITIONAL_ONLY:
        parser.add_argument(parameter.name, nargs="+" if several else None, **settings)
        return
    if several:  # --x 1 2 and --x 1 --x 2 are the same
        settings |= {"nargs": "+", "action": "extend"}
    required = parameter.default is parameter.empty
    if not required and parameter.default not in (None, False):
        settings["help"] = f"{about} [default: {_shown(parameter.default)}]".strip()
    parser.add_argument(f"--{parameter.name.replace('_', '-')}", required=required, **settings)


def _shown(default: Any) -> str:
    plain = isinstance(default, Sequence) and not isinstance(default, str)
    return " ".join(map(str, default)) if plain else str(default)
