"""`softlore evaluate`: measures trained prompts, compared with no prompt and with the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softlore.cli import common, options
from softlore.cli.progress import progress_bar
from softlore.settings import Names

MEASURING = "measuring "


def parse_distances(_ctx: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    """Parses numbers separated by commas."""
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 0,64,256") from None


distances_option = click.option(
    "--distances",
    default="0,64,256",
    show_default=True,
    callback=parse_distances,
    help="Tokens of story between prompt and call.",
)


@click.command()
@click.argument("lorebook", type=options.PATH)
@options.prompts_option
@options.with_model
@distances_option
@click.option(
    "--stories", default=12, show_default=True, help="Number of stories written for each entry."
)
@click.option("--story-tokens", default=60, show_default=True, help="Length of each, in tokens.")
@click.option("--story", type=options.PATH,
              help="Text for distances and drift, in place of what the model writes.")  # fmt: skip
@options.seed_option
@options.names_options
@options.json_option
def command(
    lorebook: Path,
    folder: Path | None,
    source: common.ModelSource,
    names: Names,
    story: Path | None,
    json_path: str | None,
    **how: Any,
) -> None:
    """Measure the soft prompts of LOREBOOK, compared with no prompt and with the plain text.

    Recall, drift, copy, fidelity and lore keywords, for each entry and on average; for soft
    prompts also with those of other entries beside them.

    \b
    Example:
      softlore evaluate lore.yaml --prompts prompts --json report.json
    """
    book = common.load_book(lorebook, names)
    text = None if story is None else common.read_text(story, "story")
    with source.loading(book.model) as shown:
        from softlore.measure import evaluate

        prompts = common.library(folder)
        trained = {entry.name: prompts[entry.name] for entry in book if entry.name in prompts}
        for entry in book:
            if entry.name not in trained:
                common.say(f"entry {entry.name!r} has no prompt in {prompts.folder}")
        model = shown.load()
    with progress_bar(MEASURING) as show:
        result = evaluate(model, book, trained, story=text, on_progress=show, **how)
    if json_path != "-":
        from rich.console import Console

        from softlore.compare.tables import LEGEND, evaluation_table

        console = Console()
        console.print(evaluation_table(result))
        console.print(LEGEND, style="dim")
    common.write_json(result.to_dict(), json_path)
