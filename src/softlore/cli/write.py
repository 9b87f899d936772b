"""`softlore write`: a text with soft prompts in it, written on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softlore.cli.options import (
    clean,
    code_option,
    dose,
    given_text,
    library,
    load_model,
    model_options,
    prompts_option,
    sampling_options,
)


@click.command()
@click.argument("text")
@model_options
@prompts_option
@click.option("--tokens", default=80, show_default=True, help="Most tokens to write.")
@sampling_options
@code_option
@click.option("--stop", multiple=True, help="End before this string; may be given often.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Repeat the same draws.")
@click.option("--any-model", is_flag=True, help="Use prompts that were made for another model.")
def command(
    text: str,
    model_name: str | None,
    dtype: str | None,
    device: str | None,
    folder: Path | None,
    tokens: int,
    codes: tuple[str, ...],
    stop: tuple[str, ...],
    seed: int | None,
    any_model: bool,
    sampling: dict[str, Any],
) -> None:
    """Write on from TEXT, which may hold [[soft:NAME]]; "-" reads it from standard input.

    \b
    Example:
      softlore write "At the gate stood [[soft:Emma]]Emma, who wore" --tokens 60 --seed 1
      softlore write "The old house" --code Horror
      softlore write "The old house" --code Horror=2 --code Humor=-1
      softlore write "The old house" --sampler dry_multiplier=0.8 --sampler banned_strings=suddenly
    """
    from softlore.control import find_codes
    from softlore.decode import generate
    from softlore.prompts import Context

    text = given_text(text)
    prompts = library(folder)
    context = Context.parse(text, prompts)
    model = load_model(model_name, dtype, device)
    doses = dict(map(dose, codes))
    found = find_codes(model, doses, prompts) if doses else {}
    head = [(found[name].head, strength) for name, strength in doses.items()]
    pieces = generate(
        model,
        context,
        tokens,
        stream=True,
        stop=[clean(one, "--stop") for one in stop],
        seed=seed,
        check=not any_model,
        head=head,
        **sampling,
    )
    first = next(pieces, "")  # what can't be written on is refused before anything is shown
    plain = "".join(piece for piece in context.pieces if isinstance(piece, str))
    click.echo(plain + first, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()
