"""`softlore demo`: trains and measures a small lorebook, and shows its effect on stories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from softlore.cli import common, options
from softlore.cli.evaluate import MEASURING
from softlore.cli.progress import progress_bar, watch

if TYPE_CHECKING:
    from softlore.compare.demo import Demo


@click.command()
@click.option("--out", type=options.PATH, default=Path("demo-out"),
              show_default=True, help="Folder for the report and the prompts.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Two updates of two entries: shows that it runs.")
@click.option("--time-budget", default=190.0, show_default=True, type=options.Finite(min=1),
              help="Seconds of training; limits the number of updates.")  # fmt: skip
@options.seed_option
@click.option("--open/--no-open", "show", help="Open the report in a browser.")
@options.with_model
@options.json_option
def command(
    out: Path,
    quick: bool,
    time_budget: float,
    seed: int,
    show: bool,
    source: common.ModelSource,
    json_path: str | None,
) -> None:
    """Train a small lorebook and show what it does to a story.

    Trains the entries of a harbour town in company, one from its text alone and one as embedding
    rows; writes the same openings without and with each prompt; leaves a report, the prompts and
    all figures in a folder.

    \b
    Example:
      softlore demo --open
    """
    with source.loading() as shown:
        from softlore.compare.plots import need_extra

        need_extra()
        from softlore.compare.demo import DemoObserver, run_demo
        from softlore.compare.report import write_demo_report

        model = shown.load()
    observer = DemoObserver(
        common.say, lambda: watch(common.interactive()), lambda: progress_bar(MEASURING)
    )
    demo = run_demo(model, out, seed=seed, quick=quick, time_budget=time_budget,
                    observer=observer)  # fmt: skip
    demo = write_demo_report(demo, out)
    if json_path != "-":
        _show(demo)
    common.write_json(demo.to_dict(), json_path)
    report = demo.files["report.html"].resolve()
    common.say(f"{demo.seconds:.0f} s; the report: {report}")
    if show:
        click.launch(report.as_uri())


def _show(demo: Demo) -> None:
    from rich.console import Console

    from softlore.compare.demo import first_of_each
    from softlore.compare.tables import LEGEND, evaluation_table, samples_table

    console = Console()
    console.print(evaluation_table(demo.results[0].evaluation))
    console.print(LEGEND + "\n", style="dim")
    console.print(samples_table(first_of_each(demo.samples)))
