"""`softlore sweep`: searches the best training settings for a lorebook."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli import common, options
from softlore.cli.evaluate import parse_distances
from softlore.cli.progress import progress_bar
from softlore.cli.train import training_options, training_settings
from softlore.cli.workers import Workers, worker_options
from softlore.settings import Names

if TYPE_CHECKING:
    from rich.table import Table

    from softlore.tune.sweep import FinishedTrial


@click.command()
@click.argument("lorebook", type=options.PATH)
@options.with_model
@click.option("--param", "params", multiple=True, metavar="NAME=VALUES",
              help="A setting to sweep: n_tokens=4..32, learning_rate=0.03..1:log or "
              "kind=prefix,embedding; may be given often.  [default: n_tokens, learning_rate and "
              "drift_guard]")  # fmt: skip
@click.option("--trials", default=20, show_default=True, type=click.IntRange(min=1),
              help="Number of trials in all, with those of earlier runs.")  # fmt: skip
@click.option("--seconds", type=options.Finite(min=0), help="Start no trial after this time.")
@click.option("--drift-weight", default=1.0, show_default=True, type=options.Finite(min=0),
              help="Nats of recall that a nat of drift counts as.")  # fmt: skip
@click.option("--distances", default="0,64", show_default=True, callback=parse_distances,
              help="Tokens of story before an entry's own calls.")  # fmt: skip
@click.option("--study", type=options.PATH,
              help="SQLite file that trials are saved in.  [default: LOREBOOK.sweep.db]",
              )  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Start the study over.")
@worker_options
@training_options
@options.names_options
@options.json_option
def command(
    lorebook: Path,
    source: common.ModelSource,
    names: Names,
    params: tuple[str, ...],
    trials: int,
    study: Path | None,
    workers: Workers,
    json_path: str | None,
    seconds: float | None,
    drift_weight: float,
    distances: list[int],
    overwrite: bool,
    **given: Any,
) -> None:
    """Try training settings on LOREBOOK, and say which are best.

    A trial trains all entries, in memory, and measures recall (of held-out calls, where there are
    some) and drift, alone and in company; both are in nats a token, and lower is better. Settings
    that are not swept are given as to `softlore train`. No prompts are written. The study is saved:
    the same command continues it, and --trials may be raised.

    \b
    Example:
      softlore sweep lore.yaml --trials 30 --max-steps 200
      softlore sweep lore.yaml --param n_tokens=4..32 --param kind=prefix,embedding
      softlore sweep lore.yaml --param company_size=1,2,4 --ray --workers 2
    """
    book = common.load_book(lorebook, names)
    with ExitStack() as stack:
        with source.loading(book.model) as source:
            from softlore.tune.search_space import DEFAULT, parse_space

            with common.require_extra("sweep"):
                from softlore.tune.sweep import Sweep
            settings = training_settings(given)
            free = [param for param in DEFAULT if param.partition("=")[0] not in settings]
            space = parse_space(params or free)
            pool = stack.enter_context(workers.pool(source, max_workers=trials))
        name = source.name or ""
        path = study or lorebook.with_suffix(".sweep.db")
        how = {"seconds": seconds, "drift_weight": drift_weight, "distances": distances,
               "overwrite": overwrite, "seed": settings.get("seed", 0), **settings}  # fmt: skip
        show = stack.enter_context(_trial_bar(trials))
        sweep = Sweep(pool, book, space, path, model=name, trials=trials,
                      on_trial=show, **how)  # fmt: skip
        with common.resumable(
            "stopped; the trials are saved: the same command continues from here"
        ):
            finished = sweep.run()
    best = next((trial for trial in finished if trial.score is not None), None)
    line = None if best is None else _train_command(lorebook, source.name, given, best, names)
    if json_path != "-":
        _print(finished, [setting.name for setting in space], line)
    shown = {"trials": [trial.to_dict() for trial in finished], "command": line}
    report = {"lorebook": book.name, "model": name, "drift_weight": drift_weight}
    common.write_json(report | shown, json_path)


def _train_command(
    lorebook: Path,
    model_name: str | None,
    given: dict[str, Any],
    best: FinishedTrial,
    names: Names,
) -> str:
    """The command that trains the lorebook with the best settings and those given for all."""
    from softlore.tune.search_space import options_for

    fixed = {name: value for name, value in given.items() if name != "chat"}
    model = [] if model_name is None else ["--model", model_name]
    chat = ["--chat"] if given["chat"] else []
    known = options.names_arguments(names)
    arguments = [*model, *options_for(fixed | best.settings), *chat, *known]
    return shlex.join(["softlore", "train", str(lorebook), *arguments])


def _print(finished: Sequence[FinishedTrial], names: Sequence[str], line: str | None) -> None:
    from rich.console import Console

    Console().print(_table(finished, names))
    if line is None:
        common.say("no trial finished; see why in the table")
    else:
        click.echo(f"train with the best: {line}")


def _table(finished: Sequence[FinishedTrial], names: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("trial", *names, "recall", "drift", "score", "seconds", box=box.SIMPLE)
    for trial in finished:
        settings = [_shown(trial.settings.get(name)) for name in names]
        if trial.scores is None or trial.score is None:
            table.add_row(str(trial.number), *settings, trial.why or "failed", "", "", "")
            continue
        scores = trial.scores
        figures = [f"{x:.3f}" for x in (scores.recall, scores.drift, trial.score)]
        table.add_row(str(trial.number), *settings, *figures, f"{scores.seconds:.0f}")
    table.caption = "recall and drift in nats a token, score their weighted sum: lower is better"
    return table


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


@contextmanager
def _trial_bar(trials: int) -> Iterator[Callable[[FinishedTrial], None]]:
    """A bar with the best score so far on a terminal; a line a trial elsewhere."""
    if not common.interactive():
        yield lambda trial: common.say(f"trial {trial.number}: {_outcome(trial)}")
        return
    scores: list[float] = []
    with progress_bar("trying", trials) as bar:

        def show(trial: FinishedTrial) -> None:
            if trial.score is not None:
                scores.append(trial.score)
            bar(trial.number + 1, f", best {min(scores):.3f}" if scores else "")

        yield show


def _outcome(trial: FinishedTrial) -> str:
    settings = " ".join(f"{name}={_shown(value)}" for name, value in trial.settings.items())
    result = trial.why if trial.score is None else f"score {trial.score:.3f}"
    return f"{settings}: {result}"
