"""`softlore write`: generates text after a context that may hold soft prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softlore.cli.common import ModelSource, check_utf8, given_text, library
from softlore.cli.gguf import cache_options, gguf_option, runner_of
from softlore.cli.options import (
    code_option,
    find_vectors,
    parse_strength,
    prompts_option,
    sampling_options,
    vector_option,
    with_model,
)
from softlore.cli.wrapping import WordWrapper, terminal_width


@click.command()
@click.argument("text")
@with_model
@prompts_option
@click.option("--tokens", default=80, show_default=True, help="Maximum tokens to generate.")
@sampling_options
@code_option
@vector_option
@click.option("--stop", multiple=True, help="End before this string; may be repeated.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Makes the draws repeatable.")
@gguf_option
@cache_options
@click.option("--any-model", is_flag=True, help="Use prompts that were made for another model.")
def command(
    text: str,
    source: ModelSource,
    folder: Path | None,
    tokens: int,
    codes: tuple[str, ...],
    vectors: tuple[str, ...],
    stop: tuple[str, ...],
    seed: int | None,
    any_model: bool,
    gguf: Path | None,
    cache: tuple[str, bool],
    sampling: dict[str, Any],
) -> None:
    """Generate text after TEXT, which may hold [[soft:NAME]] and [[vector:NAME=STRENGTH]].

    "-" reads it from standard input.

    \b
    Example:
      softlore write "At the gate stood [[soft:Emma]]Emma, who wore" --tokens 60 --seed 1
      softlore write "The old house" --model smollm2
      softlore write "The old house" --code Horror
      softlore write "The old house" --gguf storyteller-Q4_K.gguf
      softlore write "The old house" --code Horror=2 --code Humor=-1
      softlore write "The old house" --vector dark=1.5
      softlore write "The old house" --sampler dry_multiplier=0.8 --sampler banned_strings=suddenly
    """
    text = given_text(text)
    with source.loading(gguf=gguf, brief=True) as shown:
        from softlore.control import find_codes
        from softlore.decode import GenerationRequest, write_request
        from softlore.prompts import Context
        from softlore.prompts.tags import split_vector_tags
        from softlore.prompts.vector_folder import fitting_vectors

        prompts = library(folder)
        text, tagged = split_vector_tags(text)
        context = Context.parse(text, prompts)
        runner = runner_of(shown, gguf, cache, len(codes) + 1)
    steering = [
        *find_vectors(vectors, runner.model.layers),
        *fitting_vectors(runner.model, tagged, any_model),
    ]
    strengths = dict(map(parse_strength, codes))
    by_name = find_codes(runner.model, strengths, prompts) if strengths else {}
    conditioning = [(by_name[name].conditioning, weight) for name, weight in strengths.items()]
    stops = [check_utf8(string, "--stop") for string in stop]
    request = GenerationRequest(
        context,
        tokens,
        stops,
        seed,
        None,
        conditioning,
        not any_model,
        {"heal": True} | sampling,
        vectors=steering,
    )
    pieces = (token.text for token in write_request(runner, request) if token.text)
    first = next(pieces, "")  # errors come before anything is shown
    plain = "".join(piece for piece in context.pieces if isinstance(piece, str))
    wrapper = WordWrapper(terminal_width())
    click.echo(wrapper.add(plain + first), nl=False)
    for piece in pieces:
        click.echo(wrapper.add(piece), nl=False)
    click.echo(wrapper.flush())
