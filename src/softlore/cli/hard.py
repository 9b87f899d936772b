"""`softlore hard`: plain-text prompts, tried against each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from softlore.cli.numbers import Finite
from softlore.cli.options import (
    code_option,
    dose,
    interactive,
    json_option,
    library,
    load_model,
    model_options,
    prompts_option,
    read_text,
    write_json,
)
from softlore.cli.progress import case_bar, search_bar
from softlore.errors import CheckError, ConfigError

if TYPE_CHECKING:
    from softlore.compare.hard import OutputCache
    from softlore.compare.harness import Row
    from softlore.decode.conditioning import Conditioning
    from softlore.model import FrozenModel


@click.group()
def command() -> None:
    """Hard prompts: plain text that does a soft prompt's job.

    \b
    Example:
      softlore hard run experiment.yaml --html report.html
      softlore hard search lore.yaml --entry Emma --seconds 120
      softlore hard distil style.txt --name style
    """


@command.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What the soft prompt is to be called.")
@code_option
@model_options
@prompts_option
@click.option("--kind", type=click.Choice(["prefix", "embedding"]), default="prefix",
              show_default=True)  # fmt: skip
@click.option("--n-tokens", default=16, show_default=True, help="Length of the soft prompt.")
@click.option("--max-steps", default=400, show_default=True, help="Most updates.")
@click.option("--time-budget", type=Finite(min=0, min_open=True),
              help="Seconds; makes fewer updates to keep to it.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of every draw.")
@json_option
def distil(
    file: Path | None,
    name: str,
    codes: tuple[str, ...],
    model_name: str | None,
    dtype: str | None,
    device: str | None,
    folder: Path | None,
    kind: str,
    n_tokens: int,
    max_steps: int,
    time_budget: float | None,
    seed: int,
    json_path: str | None,
) -> None:
    """Make a soft prompt that does what the text in FILE does, or a control code.

    The model writes with the text (or under the codes, by their strengths) before it, and the
    soft prompt learns to make it write so in the text's absence: context distillation. It says
    how much of what the text does is kept, on passages that were not learned from.

    \b
    Example:
      softlore hard distil style.txt --name style --n-tokens 8
      softlore hard distil --name gothic --code Horror=1.5 --code Humor=-0.5
    """
    from softlore.cli.progress import watch, working
    from softlore.control import find_codes
    from softlore.prompts.fields import clean_name
    from softlore.tune import WorldInfoTrainer
    from softlore.tune.conditioning import conditioning_fidelity

    if (file is None) == (not codes):
        raise ConfigError("expected the FILE of a text, or one --code or more; give one of the two")
    name = clean_name(name)
    text = None if file is None else read_text(file, "the text")
    if text is not None and not text.strip():
        raise ConfigError(f"{str(file)!r} is empty; expected a text to distil; write one there")
    prompts = library(folder, new=True)
    model = load_model(model_name, dtype, device)
    if text is not None:
        conditionings: Conditioning = text if text.endswith("\n") else text + "\n"
    else:
        doses = dict(map(dose, codes))
        found = find_codes(model, doses, prompts)
        conditionings = [(found[code].conditioning, strength) for code, strength in doses.items()]
    trainer = WorldInfoTrainer(
        model,
        conditionings={name: conditionings},
        kind=kind,
        n_tokens=n_tokens,
        max_steps=max_steps,
        time_budget=time_budget,
        seed=seed,
    )
    with working("writing with what is to be distilled", interactive()):
        trainer.prepare()
    with watch(interactive()) as trainer.on_step:
        prompt = trainer.train()[name]
    fidelity = conditioning_fidelity(model, conditionings, prompt, seed)
    path = prompts.save(prompt)
    report = {"name": name, "kind": kind, "n_tokens": n_tokens, "fidelity": round(fidelity, 4)}
    write_json(report | {"file": str(path)}, json_path)
    click.echo(f"wrote {path}: {n_tokens} tokens do {fidelity:.0%} of it", err=True)


@command.command()
@click.argument("lorebook", type=click.Path(path_type=Path))
@model_options
@click.option("--entry", "only", multiple=True, help="Only this entry; may be given often.")
@click.option("--method", default="gcg", show_default=True,
              type=click.Choice(["gcg", "pez", "autoprompt", "random"]))  # fmt: skip
@click.option(
    "--tokens", type=int, help="Length of the prompt.  [default: that of --initial, or 16]"
)
@click.option("--seconds", type=Finite(min=0, min_open=True),
              help="For each entry.  [default: 120]")  # fmt: skip
@click.option("--passes", type=int, help="Forward passes for each entry, in place of seconds.")
@click.option("--fluency", default=0.0, show_default=True, type=Finite(min=0),
              help="Weight of the prompt's own NLL.")  # fmt: skip
@click.option("--initial", type=click.Path(path_type=Path),
              help="Start from the tokens nearest to the soft prompt in this file.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of every draw.")
@click.option("--checkpoints", type=click.Path(path_type=Path),
              help="Folder to keep progress in, and to go on from.")  # fmt: skip
@json_option
def search(
    lorebook: Path,
    model_name: str | None,
    dtype: str | None,
    device: str | None,
    only: tuple[str, ...],
    method: str,
    tokens: int | None,
    seconds: float | None,
    passes: int | None,
    fluency: float,
    initial: Path | None,
    seed: int,
    checkpoints: Path | None,
    json_path: str | None,
) -> None:
    """Search plain tokens that bring about the responses of LOREBOOK's entries.

    Each entry's best prompt is chosen by its held-out calls, where it has some, and its loss is
    that of the text as it is tokenized anew.

    \b
    Example:
      softlore hard search lore.yaml --entry Emma --method gcg --tokens 16
    """
    from softlore.control.search import Scorer, Searcher
    from softlore.lore import Lorebook
    from softlore.measure import recall
    from softlore.prompts import load_prompt

    book = Lorebook.load(lorebook)
    entries = [book[name] for name in only] or [entry for entry in book if entry.blocks]
    start = None if initial is None else load_prompt(initial)
    model = load_model(model_name or book.model, dtype, device)
    report = {}
    for entry in entries:
        scorer = Scorer(model, entry.blocks, entry.held_out, fluency)
        with _stopping(checkpoints), search_bar(entry.name) as show:
            found = Searcher(
                scorer,
                method,
                tokens,
                initial=start,
                seconds=seconds,
                passes=passes,
                seed=seed,
                checkpoint=checkpoints and checkpoints / f"{entry.name}.search",
                on_step=show,
            ).search()
        report[entry.name] = found.to_dict() | {"bare": recall(model, "", entry.blocks)}
        if json_path != "-":
            click.echo(f"{entry.name}: {found.text}")
            click.echo(
                f"  recall {found.loss:.2f} nats a token ({report[entry.name]['bare']:.2f} without)"
                f", {found.steps} steps, {found.passes} passes, {found.seconds:.0f} s"
            )
    if not entries:
        raise ConfigError(
            f"no entry of {book.name!r} has blocks; expected calls with responses to search on; "
            "add some"
        )
    write_json(report, json_path)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", "model_name", help="Use this model in place of the file's.")
@click.option("--dtype", help="float32, bfloat16 or float16.  [default: by device]")
@click.option("--device", help="Where to run, such as cuda.  [default: a GPU if any]")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page, side by side.")
@click.option(
    "--csv",
    "table",
    type=click.Path(path_type=Path),
    help="Write a row a case to this file; - is standard output.",
)
@click.option("--cache/--no-cache", "cached", default=True, help="Keep answers between runs.")
@click.option("--allow-python", is_flag=True, help="Run the file's `python` assertions. They may "
              "do anything: only for files that you trust.")  # fmt: skip
@json_option
def run(
    file: Path,
    model_name: str | None,
    dtype: str | None,
    device: str | None,
    html: Path | None,
    table: Path | None,
    cached: bool,
    allow_python: bool,
    json_path: str | None,
) -> None:
    """Try the prompts of an experiment FILE (YAML, JSON or TOML), and check what they write.

    Every prompt is rendered for each combination of variables, for each model, and written on;
    the exit code is 1 if a case fails its assertions.

    \b
    Example:
      softlore hard run experiment.yaml
    """
    from softlore.compare.hard import (
        count_cases,
        experiment_csv,
        experiment_report,
        run_experiment,
    )
    from softlore.compare.report import write_experiment_page
    from softlore.compare.tables import experiment_table
    from softlore.control.hard import Experiment
    from softlore.disk import write_atomically

    piped = str(table) == "-"
    if piped and json_path == "-":
        raise ConfigError("--json - and --csv - both go to standard output; give one of them")
    experiment = Experiment.load(file)
    if model_name is not None:
        experiment = experiment.model_copy(update={"models": [model_name]})
    cache = _cache(cached)

    def load(name: str) -> FrozenModel:
        return load_model(name, dtype, device)

    with case_bar(count_cases(experiment)) as show:
        rows = run_experiment(experiment, load, cache, allow_python, on_row=show)
    if html is not None:
        write_experiment_page(experiment, rows, html)
    if piped:
        click.echo(experiment_csv(rows), nl=False)
    elif table is not None:
        write_atomically(table, experiment_csv(rows).encode())
    write_json(experiment_report(experiment, rows), json_path)
    if json_path != "-" and not piped:
        from rich.console import Console

        Console().print(experiment_table(rows))
    failed = [row for row in rows if not row["passed"]]
    if failed:
        raise CheckError(_failure(failed, len(rows)))


def _cache(wanted: bool) -> OutputCache:
    from platformdirs import user_cache_path

    from softlore.compare.hard import OutputCache

    return OutputCache(user_cache_path("softlore") / "hard" if wanted else None)


def _failure(failed: list[Row], count: int) -> str:
    first = failed[0]
    reasons = [f"{v['assertion']}: {v['reason']}" for v in first["assertions"] if not v["passed"]]
    shown = ", ".join(f"{name} {value!r:.40}" for name, value in first["variables"].items())
    return (
        f"{len(failed)} of {count} cases failed; the first is prompt {first['prompt']!r}"
        f"{' with ' + shown if shown else ''}: {'; '.join(reasons)}"
    )


@contextmanager
def _stopping(checkpoints: Path | None) -> Iterator[None]:
    """Says on Ctrl-C what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Abort(
            "stopped; nothing is kept without --checkpoints FOLDER"
            if checkpoints is None
            else "stopped; progress is kept: the same command goes on from here"
        ) from None
