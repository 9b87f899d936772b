"""`softlore train`: trains a lorebook into a folder of soft prompts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli import common, options
from softlore.cli.advice import suggest, tell_few_updates, tell_settings, tell_what_is_left_out
from softlore.cli.curves import Curves, curve_options
from softlore.cli.workers import Workers, torchrun_ranks, worker_options
from softlore.errors import ConfigError
from softlore.settings import Names, TrainingConfig, table

if TYPE_CHECKING:
    from softlore.model import FrozenModel
    from softlore.prompts import PromptLibrary, SoftPrompt
    from softlore.tune import WorldInfoTrainer

# A control code is first and alone, and is meant to change all text after it.
CODE_SETTINGS: dict[str, Any] = {
    "company_size": 1,
    "max_spacing": 0,
    "drift_guard": 0.0,
    "placement": "classic",
}
GROUP_SIZE = 8  # with --ray, by default
NOTHING_NEW = "nothing new to train; --overwrite trains existing prompts again"


def training_options(function: options.Command) -> options.Command:
    """An option for each training setting, and files for two of them; see `training_settings`."""
    names = [name for name in table(TrainingConfig) if name != "story"]
    function = options.setting_options(TrainingConfig, *names)(function)
    for option in (
        click.option(
            "--initial-prompt", type=options.PATH, help="Start from the prompt in this file."
        ),
        click.option(
            "--story", type=options.PATH, help="File of your own text for filler and guard."
        ),
    ):
        function = option(function)
    return function


def training_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Fields of `TrainingConfig` from what `training_options` were given."""
    settings = options.chosen(given)
    if "initial" in settings:
        common.check_utf8(settings["initial"], "--initial")
    if (path := settings.pop("initial_prompt", None)) is not None:
        from softlore.prompts import load_prompt

        settings["initial"] = load_prompt(path)
    if "story" in settings:
        settings["story"] = common.read_text(settings["story"], "story")
    return settings


@click.command()
@click.argument("lorebook", type=options.PATH)
@options.with_model
@click.option("--out", "folder", type=options.PATH, help="Folder for the prompts.")
@click.option("--entry", "include", multiple=True,
              help="Train only this entry; may be given often.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Also train entries whose prompt exists.")
@click.option("--time-budget", type=float, help="Seconds that the whole command may take.")
@click.option("--checkpoint-seconds", type=options.Finite(min=0), default=10.0, hidden=True)
@click.option("--group-size", type=click.IntRange(min=1), metavar="N",
              help="Train the entries N at a time, in the book's order; only those of a group keep "
              f"company.  [default: all together; with --ray, {GROUP_SIZE}]")  # fmt: skip
@click.option("--gradient-checkpointing/--no-gradient-checkpointing", "checkpointed", default=None,
              help="Run layers again for the backward pass, to need less memory.  [default: where "
              "it is short]")  # fmt: skip
@click.option("--dry-run", is_flag=True,
              help="Say what memory and time it takes; the model isn't loaded.")  # fmt: skip
@curve_options
@worker_options
@training_options
@options.names_options
@options.json_option
def command(
    lorebook: Path,
    source: common.ModelSource,
    folder: Path | None,
    include: tuple[str, ...],
    group_size: int | None,
    workers: Workers,
    curves: Curves,
    checkpointed: bool | None,
    dry_run: bool,
    names: Names,
    json_path: str | None,
    **given: Any,
) -> None:
    """Turn LOREBOOK (YAML, JSON or TOML) into soft prompts, trained in company.

    A .txt file is a corpus instead: one prompt, named after the file, learns its style. A folder of
    them (or of folders of them), or JSON lines with `code` and `text`, is a set of control codes: a
    prompt for each, for `softlore write --code` and `softlore attribute`. Ctrl-C saves the
    progress, and so does a crash; the same command continues from there.

    \b
    Example:
      softlore train lore.yaml --n-tokens 10 --time-budget 120
      softlore train lore.yaml --model MODEL --quantize nf4 --dry-run
      softlore train lore.yaml --group-size 8 --ray --workers 2
      softlore train lore.yaml --group-size 8 --ray 10.0.0.1:6379
      torchrun --nproc-per-node 2 -m softlore train lore.yaml --model MODEL
    """
    started = time.monotonic()
    run = training_settings(given)
    if dry_run:
        from softlore.cli.dry_run import dry_run_report

        common.write_json(dry_run_report(lorebook, include, run, source), json_path)
        return
    time_budget = run.pop("time_budget", None)
    if group_size is None and workers.ray is not None:
        group_size = GROUP_SIZE
    with torchrun_ranks(source.device, group_size is not None) as ranks:
        if group_size is not None:
            if curves.wanted:
                raise ConfigError(
                    "--log-dir and --wandb follow one training; expected no groups with them; "
                    "leave --group-size and --ray out, or the curves"
                )
            if time_budget is not None:
                raise ConfigError(
                    "--time-budget sets the number of updates by their speed, which differs "
                    "between workers; expected a number for groups; use --max-steps instead"
                )
            report = _train_groups(
                lorebook, folder, include, run, group_size, source, workers, names
            )
        else:
            workers.use_threads()
            if ranks is not None:
                source = source._replace(device=ranks.device)
            limits = {
                "time_budget": time_budget,
                "started": started,
                "ranks": ranks,
                "checkpointed": checkpointed,
            }
            report = _train_together(lorebook, folder, include, run, source, limits, curves, names)
        if ranks is None or ranks.first:
            common.write_json(report, json_path)


def _train_together(
    lorebook: Path,
    folder: Path | None,
    include: tuple[str, ...],
    run: dict[str, Any],
    source: common.ModelSource,
    limits: dict[str, Any],
    curves: Curves,
    names: Names,
) -> dict[str, Any]:
    """Trains a lorebook as one set, or a corpus; saves the prompts and returns the report.

    Args:
        limits: fields of `Execution`.
    """
    trainer: WorldInfoTrainer[Any]
    corpus = _read_corpus(lorebook) if _is_corpus(lorebook) else None
    book = None if corpus is not None else common.load_book(lorebook, names)
    if book is not None:
        common.say_warnings(book, include)
    own = book.model if book is not None else None
    with common.resumable(common.NOTHING_KEPT), source.loading(own) as shown:
        import torch

        from softlore.tune import Execution
        from softlore.tune.checkpoint import list_some
        from softlore.tune.lorebook_training import plan_book

        run["execution"] = Execution(**limits, processes=torch.get_num_threads())
        prompts = common.library(folder, new=True)
        model = shown.load()
    if book is None:
        trainer = _corpus_trainer(lorebook, corpus, prompts, run, model)
    else:
        asked = {**book.training, **run}
        plan = plan_book(model, book, prompts, include=include, **run)
        if plan.retained:
            some = list_some(list(plan.retained), common.SHOWN, ", ")
            common.say(f"already trained, in company with the new ones: {some}")
        tell_settings(plan.retained, asked)
        if plan.trainer is None:
            common.say(NOTHING_NEW)
            return _report(prompts, [], plan.retained)
        trainer = plan.trainer
    made = _train(trainer, prompts, curves)
    if made and trainer.ranks.first:
        tell_few_updates(made, book)
        suggest(lorebook, book, made[0], folder, source.name, names)
    return _report(prompts, made, trainer.company)


def _train_groups(
    lorebook: Path,
    folder: Path | None,
    include: tuple[str, ...],
    run: dict[str, Any],
    group_size: int,
    source: common.ModelSource,
    workers: Workers,
    names: Names,
) -> dict[str, Any]:
    """Trains a lorebook in groups; saves the prompts and returns the report.

    Raises:
        ConfigError: options that do not go together.
    """
    from softlore.cli.progress import watch_groups

    if _is_corpus(lorebook):
        raise ConfigError(
            f"{str(lorebook)!r} is a corpus, or a set of them; expected a lorebook, whose entries "
            "fall into groups; leave --group-size and --ray out"
        )
    book = common.load_book(lorebook, names)
    common.say_warnings(book, include)
    groups = -(-len(book) // group_size)
    with ExitStack() as stack:
        with source.loading(book.model) as shown:
            from softlore.tune.group_run import GroupRun

            prompts = common.library(folder, new=True)
            pool = stack.enter_context(workers.pool(shown, groups))
        show = stack.enter_context(watch_groups(common.interactive()))
        training = GroupRun(
            pool, book, prompts, group_size=group_size, include=include, on_event=show, **run
        )
        with common.resumable(common.SAME_COMMAND):
            done = training.run()
    if done.retained:
        common.say(f"already trained, and left as they are: {', '.join(done.retained)}")
    if not done.trained:
        common.say(NOTHING_NEW)
    for path in done.paths:
        common.say(f"wrote {path}")
    return _report(prompts, done.trained, done.retained)


def _is_corpus(path: Path) -> bool:
    from softlore.lore.corpora import holds_corpora

    return path.suffix == ".txt" or holds_corpora(path)


def _read_corpus(path: Path) -> Any:
    """The text of a corpus, or the texts of a set of them."""
    from softlore.lore.corpora import holds_corpora, read_corpora

    return read_corpora(path) if holds_corpora(path) else common.read_text(path, "corpus")


def _corpus_trainer(
    path: Path, corpus: Any, prompts: PromptLibrary, run: dict[str, Any], model: FrozenModel
) -> WorldInfoTrainer[Any]:
    from softlore.lore.names import as_name
    from softlore.tune import Checkpointing, WorldInfoTrainer
    from softlore.tune.lorebook_training import checkpoint_path

    name = as_name(path.stem)
    settings = dict(run) if isinstance(corpus, str) else CODE_SETTINGS | run
    seconds, overwrite = settings.pop("checkpoint_seconds"), settings.pop("overwrite")
    checkpointing = Checkpointing(checkpoint_path(prompts.folder, name), seconds, overwrite)
    return WorldInfoTrainer(
        model, corpus=corpus, name=name, checkpointing=checkpointing, **settings
    )


def _train(
    trainer: WorldInfoTrainer[Any], prompts: PromptLibrary, curves: Curves
) -> list[SoftPrompt]:
    """Runs the trainer with a live view, and saves its prompts; if it fails, old ones stay."""
    from softlore.cli.progress import progress_bar, watch
    from softlore.errors import DivergedError
    from softlore.tune.lorebook_training import save_prompts

    try:
        with (
            watch(common.interactive()) as view,
            (curves if trainer.ranks.first else Curves()).beside(view.on_step) as trainer.on_step,
            common.resumable(lambda: _what_is_kept(trainer)),
        ):
            trainer.on_phase = view.on_phase
            trainer.prepare()
            if trainer.step:
                common.say(f"continuing from update {trainer.step}")
            _announce(trainer, prompts.folder)
            trainer.train()
    except DivergedError:
        for prompt in trainer.prompts().values() if trainer.ranks.first else ():
            if prompt.name not in prompts:
                prompts.save(prompt)
        raise
    made = list(trainer.prompts().values())
    if trainer.ranks.first:
        with progress_bar("measuring what the prompts gain") as bar:
            paths = save_prompts(prompts, made, trainer, lambda share: bar(share, ""))
        common.say_some([f"wrote {path}" for path in paths], "and {} more")
    return made


def _what_is_kept(trainer: WorldInfoTrainer[Any]) -> str:
    """What to say when it is stopped: there is a checkpoint, or nothing was trained yet."""
    file = trainer.checkpointing.file
    return common.SAME_COMMAND if file is not None and file.exists() else common.NOTHING_KEPT


def _announce(trainer: WorldInfoTrainer[Any], folder: Path) -> None:
    """Says what training will take."""
    ahead = trainer.estimate()
    entries = common.counted(len(trainer.entries), "entry", "entries")
    size = f"{max(1, ahead.prompt_bytes // 1024)} KB each"
    common.say(f"{entries}, up to {ahead.updates} updates; prompts of {size} in {folder}")
    tell_what_is_left_out(trainer.given, trainer.config)
    if ahead.sight is not None:
        common.say(
            f"every layer of this model attends to the last {ahead.sight:,} tokens at most: a "
            "prefix is out of sight further on in a story; --kind embedding can be named again "
            "there"
        )


def _report(
    prompts: PromptLibrary, made: Sequence[SoftPrompt], kept: Iterable[str]
) -> dict[str, Any]:
    """What was trained, and the names of retained prompts, as JSON."""
    return {
        "folder": str(prompts.folder),
        "trained": [
            {"name": p.name, "kind": p.kind, "n_tokens": len(p), "metrics": p.metrics}
            | {key: p.training.get(key) for key in ("steps", "stopped", "in_company")}
            for p in made
        ],
        "kept": list(kept),
    }
