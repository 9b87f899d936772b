"""`softlore compare`: compares text, searched text, codes and soft prompts on the same lore."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from softlore.cli import common, options
from softlore.cli.evaluate import MEASURING, distances_option
from softlore.cli.progress import progress_bar
from softlore.settings import Names


@click.command()
@click.argument("lorebook", required=False, type=options.PATH)
@options.with_model
@distances_option
@click.option("--seeds", default=2, show_default=True, type=click.IntRange(1, 100),
              help="Number of repetitions, for confidence intervals.")  # fmt: skip
@click.option("--time-budget", default=300.0, show_default=True, type=options.Finite(min=1),
              help="Seconds that the whole command may take; where they are short, seeds and "
              "entries are left out.")  # fmt: skip
@click.option(
    "--stories", default=4, show_default=True, help="Number of stories written for each entry."
)
@click.option("--story-tokens", default=60, show_default=True, help="Length of each, in tokens.")
@click.option("--html", type=options.PATH, default=Path("compare.html"),
              show_default=True, help="File for the report page.")  # fmt: skip
@click.option("--style", help="Make calls and responses of the texts of entries without: "
              "sentences, noun, pronoun, mixed, implicit, cloud or bracketed.")  # fmt: skip
@click.option("--styles", is_flag=True, help="Compare authoring styles: methods to make calls and "
              "responses of the entries' texts.")  # fmt: skip
@options.seed_option
@options.names_options
@options.json_option
def command(
    lorebook: Path | None,
    source: common.ModelSource,
    names: Names,
    seeds: int,
    html: Path,
    style: str | None,
    styles: bool,
    seed: int,
    json_path: str | None,
    **how: Any,
) -> None:
    """Compare methods of giving LOREBOOK to a model: effect and cost of each.

    Nothing, the plain text, the best wording of it, a searched hard prompt, a control code (where
    the model has some), a control vector of the text and soft prompts of both kinds: recall, drift,
    lore words in stories, copy, fluency, tokens of the context, seconds to make. Without LOREBOOK,
    the demo's.

    \b
    Example:
      softlore compare lore.yaml --seeds 3 --html report.html
      softlore compare lore.yaml --styles
    """
    started = time.monotonic()
    from softlore import demo
    from softlore.lore.styles import with_blocks

    book = common.load_book(lorebook or demo.lorebook_path(), names)
    if style is not None:
        book = with_blocks(book, style)
    with source.loading(book.model) as shown:
        from softlore.compare.comparison import run_comparison
        from softlore.compare.methods import make_all, make_styles
        from softlore.compare.plots import need_extra
        from softlore.compare.report import write_comparison_page
        from softlore.compare.tables import NO_RECALL, comparison_note, comparison_table

        need_extra()
        model = shown.load()
    with progress_bar(MEASURING) as show:
        comparison = run_comparison(
            model, book, seeds=range(seed, seed + seeds),
            make=make_styles if styles else make_all, on_progress=show, started=started, **how,
        )  # fmt: skip
    write_comparison_page(comparison, html)
    common.write_json(comparison.to_dict(), json_path)
    if json_path != "-":
        from rich.console import Console

        console = Console()
        console.print(comparison_table(comparison))
        if not comparison.has_recall:
            console.print(NO_RECALL + "\n", style="bold")
        console.print(comparison_note(comparison), style="dim")
        if comparison.left_out:
            console.print(comparison.left_out, style="bold")
        common.say(f"{comparison.seconds:.0f} s; the page: {html.resolve()}")
