"""`softlore hard`: distils, searches and compares plain-text prompts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli import common, options
from softlore.cli.hard_search import check_server_name, search
from softlore.cli.progress import progress_bar
from softlore.errors import CheckError, ConfigError

if TYPE_CHECKING:
    from softlore.compare.hard import OutputCache
    from softlore.compare.harness import Row
    from softlore.decode.conditioning import Conditioning
    from softlore.model import FrozenModel
    from softlore.prompts import PromptLibrary


@click.group()
def command() -> None:
    """Hard prompts: plain text in the role of a soft prompt.

    \b
    Example:
      softlore hard run experiment.yaml --html report.html
      softlore hard search lore.yaml --entry Emma --seconds 120
      softlore hard distil style.txt --name style
    """


command.add_command(search)


@command.command()
@click.argument("file", required=False, type=options.PATH)
@click.option("--name", required=True, help="Name of the soft prompt.")
@options.code_option
@options.vector_option
@options.with_model
@options.prompts_option
@click.option("--kind", type=click.Choice(["prefix", "embedding"]), default="prefix",
              show_default=True)  # fmt: skip
@click.option("--n-tokens", default=16, show_default=True, help="Length of the soft prompt.")
@click.option("--max-steps", default=400, show_default=True, help="Maximum number of updates.")
@click.option("--time-budget", type=options.Finite(min=0, min_open=True),
              help="Seconds; limits the number of updates.")  # fmt: skip
@options.seed_option
@options.json_option
def distil(
    file: Path | None,
    name: str,
    codes: tuple[str, ...],
    vectors: tuple[str, ...],
    source: common.ModelSource,
    folder: Path | None,
    json_path: str | None,
    **settings: Any,
) -> None:
    """Make a soft prompt that does what the text in FILE does, a control code or control vector.

    The model writes with the text (or under the codes or vectors, by their strengths) before it,
    and the soft prompt learns to make it write so without the text: context distillation. Reports
    the share of the text's effect that the prompt has, on passages that it was not trained on.

    \b
    Example:
      softlore hard distil style.txt --name style --n-tokens 8
      softlore hard distil --name gothic --code Horror=1.5 --code Humor=-0.5
      softlore hard distil --name dark --vector dark=2
    """
    from softlore.cli.progress import watch

    started = time.monotonic()
    if sum(map(bool, (file, codes, vectors))) != 1:
        raise ConfigError(
            "expected the FILE of a text, or one --code or more, or one --vector or more; give one "
            "of the three"
        )
    text = None if file is None else _conditioning_text(file)
    with source.loading() as shown:
        from softlore.measure.conditioning import conditioning_fidelity
        from softlore.prompts import Context
        from softlore.prompts.fields import clean_name
        from softlore.tune import Execution, WorldInfoTrainer

        name = clean_name(name)
        prompts = common.library(folder, new=True)
        model = shown.load()
    conditioning: Conditioning = text or ""
    if codes:
        conditioning = _conditioning(model, codes, prompts)
    elif vectors:
        found = options.find_vectors(vectors, model.layers)
        if not any(strength for _, strength in found):
            raise ConfigError("all vectors have strength 0; expected an effect; raise one")
        conditioning = Context("", found)
    execution = Execution(settings.pop("time_budget"), started=started)
    trainer = WorldInfoTrainer(
        model, conditionings={name: conditioning}, execution=execution, **settings
    )
    with watch(common.interactive()) as view:
        trainer.on_step, trainer.on_phase = view.on_step, view.on_phase
        prompt = trainer.train()[name]
    fidelity = conditioning_fidelity(model, conditioning, prompt, settings["seed"])
    path = prompts.save(prompt)
    report = {"name": name, "kind": prompt.kind, "n_tokens": len(prompt),
              "fidelity": round(fidelity, 4), "file": str(path)}  # fmt: skip
    common.write_json(report, json_path)
    common.say(f"wrote {path}: {len(prompt)} tokens have {fidelity:.0%} of its effect")


def _conditioning_text(file: Path) -> str:
    text = common.read_text(file, "the text")
    if not text.strip():
        raise ConfigError(f"{str(file)!r} is empty; expected a text to distil; write one there")
    return text if text.endswith("\n") else text + "\n"


def _conditioning(
    model: FrozenModel, codes: tuple[str, ...], prompts: PromptLibrary
) -> Conditioning:
    from softlore.control import find_codes

    strengths = dict(map(options.parse_strength, codes))
    named = find_codes(model, strengths, prompts)
    return [(named[code].conditioning, strength) for code, strength in strengths.items()]


@command.command()
@click.argument("file", type=options.PATH)
@options.with_model
@click.option("--html", type=options.PATH, help="Write a page, side by side.")
@click.option("--csv", "table", type=options.PATH,
              help="Write a row a case to this file; - is standard output.")  # fmt: skip
@click.option("--cache/--no-cache", "cached", default=True, help="Reuse outputs of earlier runs.")
@click.option("--allow-python", is_flag=True, help="Run the file's `python` assertions. They may "
              "do anything: only for files that you trust.")  # fmt: skip
@click.option("--judge", "judge_source", metavar="MODEL|URL",
              help="Who answers the questions of `judge` assertions: a model, or an "
              "OpenAI-compatible server, http://…/v1 (its key in $SOFTLORE_API_KEY).  "
              "[default: the model that is tried]")  # fmt: skip
@click.option("--judge-model", default="", help="The judge's name on that server.")
@options.json_option
def run(
    file: Path,
    source: common.ModelSource,
    html: Path | None,
    table: Path | None,
    cached: bool,
    allow_python: bool,
    judge_source: str | None,
    judge_model: str,
    json_path: str | None,
) -> None:
    """Try the prompts of an experiment FILE (YAML, JSON or TOML), and check what they write.

    Every prompt is rendered for each combination of variables, for each model, and written on;
    the exit code is 1 if a case fails its assertions.

    \b
    Example:
      softlore hard run experiment.yaml
      softlore hard run experiment.yaml --judge smollm2
    """
    from softlore.compare.hard import experiment_csv, experiment_report, run_experiment
    from softlore.compare.report import write_experiment_page
    from softlore.compare.tables import experiment_table
    from softlore.control.hard import Experiment, find_judge
    from softlore.disk import write_atomically

    piped = str(table) == "-"
    if piped and json_path == "-":
        raise ConfigError("--json - and --csv - both go to standard output; give one of them")
    experiment = Experiment.load(file)
    if source.name is not None or "models" not in experiment.model_fields_set:
        experiment = experiment.model_copy(update={"models": [source.choose().name]})
    cache = _cache(cached)
    check_server_name(judge_source, judge_model, "judge")
    judge = None
    if judge_source:
        if not any(assertion.kind == "judge" for assertion in experiment.assertions()):
            raise ConfigError(
                "--judge names a judge, and the experiment has no `judge` assertion; expected one; "
                "add it, or leave --judge out"
            )
        judge = find_judge(judge_source, judge_model, source.load_named)
    with progress_bar("trying ") as bar:
        rows = run_experiment(
            experiment,
            source.load_named,
            cache,
            allow_python,
            bar,
            judge,
        )
    if html is not None:
        write_experiment_page(experiment, rows, html)
    if piped:
        click.echo(experiment_csv(rows), nl=False)
    elif table is not None:
        write_atomically(table, experiment_csv(rows).encode())
    common.write_json(experiment_report(experiment, rows), json_path)
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
