"""`softlore chain`: generates a text for each item, with the previous output in its prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from softlore.cli.common import (
    ModelSource,
    check_utf8,
    given_text,
    interactive,
    library,
    read_text,
)
from softlore.cli.gguf import cache_options, gguf_option, runner_of
from softlore.cli.options import prompts_option, sampling_options, with_model


@click.command()
@click.argument("items", nargs=-1, required=True, metavar="ITEMS")
@click.option("--template", default="{previous} {item}", show_default=True,
              help="What the model reads: {item}, {previous} (the output before) and "
              "[[soft:NAME]].")  # fmt: skip
@click.option("--tokens", default=80, show_default=True, type=click.IntRange(min=1),
              help="Maximum tokens to generate for an item.")  # fmt: skip
@click.option("--stop", multiple=True, help="End an output before this string; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path),
              help="Append to this file; items already in it are not generated again.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace what --out holds.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
              help="The same seed gives the same chain.")  # fmt: skip
@sampling_options
@with_model
@gguf_option
@cache_options
@prompts_option
def command(
    items: tuple[str, ...],
    template: str,
    tokens: int,
    stop: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    seed: int,
    source: ModelSource,
    gguf: Path | None,
    cache: tuple[str, bool],
    folder: Path | None,
    sampling: dict[str, Any],
) -> None:
    """Generate text after each of ITEMS in turn, each prompt holding the output before it.

    ITEMS is a file with an item on each line, or a JSON list or JSON lines of texts; - is standard
    input; several arguments are the items themselves. One JSON line an item comes out: item,
    prompt, output. With --out a chain that was stopped continues where it was.

    \b
    Example:
      softlore chain scenes.txt --template '{previous}\\n\\n{item}' --out story.jsonl
      softlore chain "a storm" "a lighthouse" "a letter" --tokens 40
    """
    listed = read_items(items)
    with source.loading(gguf=gguf, brief=True) as shown:
        from softlore.story.chain import adding_links, chain, line, read_links

        prompts = library(folder)
        done = read_links(out) if out is not None and not overwrite else []
        runner = runner_of(shown, gguf, cache)
    links = chain(
        runner,
        listed,
        check_utf8(template, "--template").replace("\\n", "\n"),
        tokens=tokens,
        prompts=prompts,
        done=done,
        seed=seed,
        stop=[check_utf8(string, "--stop") for string in stop],
        **sampling,
    )
    if out is None:
        for link in links:
            click.echo(line(link), nl=False)
        return
    try:
        with adding_links(out, overwrite) as add:
            for number, link in enumerate(watched(links, len(listed))):
                if number >= len(done):
                    add(link)
    except KeyboardInterrupt:
        same = "the same command without --overwrite" if overwrite else "the same command"
        raise click.exceptions.Abort(
            f"stopped; what was written is kept in {out}: {same} continues from there"
        ) from None
    click.echo(f"{len(listed)} items, {len(done)} of them already there: {out}", err=True)


def read_items(given: tuple[str, ...]) -> list[str]:
    """Items of a file, of standard input, or as they were given.

    Raises:
        ConfigError: a file that can't be read, or that holds none.
    """
    from softlore.errors import ConfigError

    if len(given) > 1:
        return [check_utf8(item, "an item") for item in given]
    source = given[0]
    if source != "-" and not Path(source).is_file() and (" " in source or "." not in source):
        return [check_utf8(source, "the item")]
    text = given_text("-") if source == "-" else read_text(Path(source), "the file of items")
    items = _parse_items(text)
    if not items:
        raise ConfigError(f"{source!r} holds no items; expected one on each line; write some")
    return items


def _parse_items(text: str) -> list[str]:
    """A JSON list of texts, JSON lines of texts, or plain lines; empty lines are none."""
    try:
        items = json.loads(text)
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return items
    except (ValueError, RecursionError):
        pass
    lines = [row for row in text.splitlines() if row.strip()]
    try:
        parsed = [json.loads(row) for row in lines]
        if all(isinstance(item, str) for item in parsed):
            return parsed
    except (ValueError, RecursionError):
        pass
    return lines


def watched(links: Iterator[Any], total: int) -> Iterator[Any]:
    """The links, with a bar where somebody watches."""
    if not interactive():
        yield from links
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(links, "chain", total=total, console=Console(stderr=True))
