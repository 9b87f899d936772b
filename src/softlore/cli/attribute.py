"""`softlore attribute`: under which control code a text is the likeliest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from softlore.cli.options import (
    given_text,
    json_option,
    library,
    load_model,
    model_options,
    prompts_option,
    read_text,
    write_json,
)
from softlore.errors import ConfigError


@click.command()
@click.argument("text")
@model_options
@prompts_option
@click.option("--codes", "names", help="Codes to choose from, by commas: of the model, or prompts.")
@click.option("--prior", "prior_file", type=click.Path(path_type=Path),
              help="File of lines `NUMBER CODE`.  [default: all codes alike]")  # fmt: skip
@json_option
def command(
    text: str,
    model_name: str | None,
    dtype: str | None,
    device: str | None,
    folder: Path | None,
    names: str | None,
    prior_file: Path | None,
    json_path: str | None,
) -> None:
    """Say which control code makes TEXT the likeliest; "-" reads it from standard input.

    Perplexity of the text after each code, and the posterior p(code | text).

    \b
    Example:
      softlore attribute "The ghost stood at the foot of the bed."
      softlore attribute - --codes Horror,Humor < chapter.txt
    """
    from softlore.control import attribute, codes_of, find_codes

    text = given_text(text)
    prior = None if prior_file is None else _read_prior(prior_file)
    prompts = library(folder)
    model = load_model(model_name, dtype, device)
    wanted = codes_of(model) if names is None else [name.strip() for name in names.split(",")]
    found = attribute(model, text, find_codes(model, wanted, prompts), prior)
    write_json([asdict(one) for one in found], json_path)
    if json_path == "-":
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("code", box=None)
    for column in ("p(code | text)", "perplexity"):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(one.code, f"{one.posterior:.1%}", f"{one.perplexity:.2f}")
    Console().print(table)


def _read_prior(path: Path) -> dict[str, float]:
    """Lines of a number and a code, as CTRL's own file of priors has them."""
    prior = {}
    for number, line in enumerate(read_text(path, "prior").splitlines(), 1):
        if not line.strip():
            continue
        value, _, name = line.strip().partition("\t" if "\t" in line else " ")
        try:
            prior[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(
                f"line {number} of {str(path)!r} is {line!r:.60}; expected a number and a code, "
                "such as '0.25 Horror'; mend it"
            ) from None
    return prior
