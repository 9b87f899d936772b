"""`softlore sweep`: the training settings under which a lorebook trains best."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli.evaluate import parse_distances
from softlore.cli.numbers import Finite
from softlore.cli.options import (
    interactive,
    json_option,
    model_options,
    wanting,
    write_json,
)
from softlore.cli.train import chosen_settings, training_options
from softlore.cli.workers import ray_options

if TYPE_CHECKING:
    from rich.table import Table

    from softlore.tune.sweep import FinishedTrial


@click.command()
@click.argument("lorebook", type=click.Path(path_type=Path))
@model_options
@click.option("--param", "params", multiple=True, metavar="NAME=VALUES",
              help="A setting to sweep: n_tokens=4..32, learning_rate=0.03..1:log or "
              "kind=prefix,embedding; may be given often.  [default: n_tokens, learning_rate and "
              "drift_guard]")  # fmt: skip
@click.option("--trials", default=20, show_default=True, type=click.IntRange(min=1),
              help="How many to try in all, with those of earlier runs.")  # fmt: skip
@click.option("--seconds", type=Finite(min=0), help="Begin no trial after so many.")
@click.option("--drift-weight", default=1.0, show_default=True, type=Finite(min=0),
              help="Nats of recall that a nat of drift is worth.")  # fmt: skip
@click.option("--distances", default="0,64", show_default=True, callback=parse_distances,
              help="Tokens of story before an entry's own calls.")  # fmt: skip
@click.option("--study", type=click.Path(path_type=Path),
              help="SQLite file to keep trials in.  [default: LOREBOOK.sweep.db]")  # fmt: skip
@click.option("--again", is_flag=True, help="Begin the study anew.")
@click.option("--story", type=click.Path(path_type=Path), help="Your own text, for filler, guard.")
@ray_options
@training_options
@json_option
def command(
    lorebook: Path,
    model_name: str | None,
    dtype: str | None,
    device: str | None,
    params: tuple[str, ...],
    trials: int,
    seconds: float | None,
    drift_weight: float,
    distances: list[int],
    study: Path | None,
    again: bool,
    story: Path | None,
    ray: str | None,
    workers: int | None,
    threads: int | None,
    json_path: str | None,
    **given: Any,
) -> None:
    """Try training settings on LOREBOOK, and say which are best.

    A trial trains all entries, in memory, and measures recall (of held-out calls, where there are
    some) and drift, alone and in company; both are in nats a token, and lower is better. Settings
    that are not swept are given as to `softlore train`. No prompts are written. The study is kept:
    the same command goes on with it, and --trials may be raised.

    \b
    Example:
      softlore sweep lore.yaml --trials 30 --max-steps 200
      softlore sweep lore.yaml --param n_tokens=4..32 --param kind=prefix,embedding
      softlore sweep lore.yaml --param company_size=1,2,4 --ray --workers 2
    """
    from softlore.cli.train_groups import hired
    from softlore.lore import Lorebook
    from softlore.model import DEFAULT_MODEL
    from softlore.tune.search_space import DEFAULT, parse_space

    with wanting("sweep"):
        from softlore.tune.sweep import Sweep
    settings = chosen_settings(given, story)
    space = parse_space(params or [one for one in DEFAULT if _free(one, settings)])
    book = Lorebook.load(lorebook)
    name = model_name if model_name is not None else book.model or DEFAULT_MODEL
    with (
        hired((name, dtype, device), (ray, workers, threads), most=trials) as crew,
        _trial_bar(trials) as show,
    ):
        sweep = Sweep(
            crew,
            book,
            space,
            study or lorebook.with_suffix(".sweep.db"),
            model=name,
            trials=trials,
            seconds=seconds,
            drift_weight=drift_weight,
            distances=distances,
            seed=settings.get("seed", 0),
            again=again,
            on_trial=show,
            **settings,
        )
        try:
            tried = sweep.run()
        except KeyboardInterrupt:
            raise click.exceptions.Abort(
                "stopped; what was tried is kept: the same command goes on from here"
            ) from None
    best = next((one for one in tried if one.score is not None), None)
    line = None if best is None else _command(lorebook, model_name, given | {"story": story}, best)
    if json_path != "-":
        from rich.console import Console

        Console().print(_table(tried, [one.name for one in space]))
        if line is None:
            click.echo("no trial came to an end; see why in the table", err=True)
        else:
            click.echo(f"train with the best: {line}")
    report = {"lorebook": book.name, "model": name, "drift_weight": drift_weight}
    trials_told = {"trials": [one.to_dict() for one in tried], "command": line}
    write_json(report | trials_told, json_path)


def _free(param: str, settings: dict[str, Any]) -> bool:
    return param.partition("=")[0] not in settings


def _command(
    lorebook: Path, model_name: str | None, given: dict[str, Any], best: FinishedTrial
) -> str:
    """What trains the lorebook with the best settings and those that were given for all."""
    from softlore.tune.search_space import options_for

    fixed = {name: value for name, value in given.items() if name != "chat"}
    model = [] if model_name is None else ["--model", model_name]
    chat = ["--chat"] if given["chat"] else []
    options = [*model, *options_for(fixed | best.settings), *chat]
    return shlex.join(["softlore", "train", str(lorebook), *options])


def _table(tried: Sequence[FinishedTrial], names: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("trial", *names, "recall", "drift", "score", "seconds", box=box.SIMPLE)
    for one in tried:
        settings = [_shown(one.settings.get(name)) for name in names]
        if one.scores is None or one.score is None:
            table.add_row(str(one.number), *settings, one.why or "failed", "", "", "")
            continue
        figures = (one.scores.recall, one.scores.drift, one.score)
        table.add_row(
            str(one.number), *settings, *(f"{x:.3f}" for x in figures), f"{one.scores.seconds:.0f}"
        )
    table.caption = "recall and drift in nats a token, score their weighted sum: lower is better"
    return table


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


@contextmanager
def _trial_bar(trials: int) -> Iterator[Callable[[FinishedTrial], None]]:
    """A bar on a terminal, with the best score so far; elsewhere a line a trial."""
    if not interactive():
        yield lambda one: click.echo(f"trial {one.number}: {_outcome(one)}", err=True)
        return
    from rich.console import Console
    from rich.progress import Progress

    scores: list[float] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("trying", total=trials)

        def show(one: FinishedTrial) -> None:
            if one.score is not None:
                scores.append(one.score)
            best = f"trying, best {min(scores):.3f}" if scores else "trying"
            progress.update(task, completed=one.number + 1, description=best)

        yield show


def _outcome(one: FinishedTrial) -> str:
    told = " ".join(f"{name}={_shown(value)}" for name, value in one.settings.items())
    return f"{told}: " + (f"score {one.score:.3f}" if one.score is not None else one.why)
