"""`softlore attribute`: finds the control code under which a text is most likely."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from softlore.cli import common, options
from softlore.errors import ConfigError


@click.command()
@click.argument("text")
@options.with_model
@options.prompts_option
@click.option("--codes", "names", help="Codes to compare, with commas: of the model, or prompts.")
@click.option("--prior", "prior_file", type=options.PATH,
              help="File of lines `NUMBER CODE`.  [default: all codes alike]")  # fmt: skip
@options.json_option
def command(
    text: str,
    source: common.ModelSource,
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
    text = common.given_text(text)
    prior = None if prior_file is None else _read_prior(prior_file)
    with source.loading(brief=True) as shown:
        from softlore.control import attribute, codes_of, find_codes

        prompts = common.library(folder)
        model = shown.load()
    codes = codes_of(model) if names is None else [name.strip() for name in names.split(",")]
    results = attribute(model, text, find_codes(model, codes, prompts), prior)
    common.write_json([asdict(result) for result in results], json_path)
    if json_path != "-":
        rows = [(r.code, f"{r.posterior:.1%}", f"{r.perplexity:.2f}") for r in results]
        common.print_table(("code", "p(code | text)", "perplexity"), rows, right=True)


def _read_prior(path: Path) -> dict[str, float]:
    """Lines of a number and a code, as in CTRL's file of priors."""
    prior = {}
    for number, line in enumerate(common.read_text(path, "prior").splitlines(), 1):
        if not line.strip():
            continue
        value, _, name = line.strip().partition("\t" if "\t" in line else " ")
        try:
            prior[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(
                f"line {number} of {str(path)!r} is {line!r:.60}; expected a number and a code, "
                "such as '0.25 Horror'; fix it"
            ) from None
    return prior
