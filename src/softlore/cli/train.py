"""`softlore train`: a lorebook in, a folder of soft prompts out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli.numbers import Finite
from softlore.cli.options import (
    clean,
    interactive,
    json_option,
    library,
    load_model,
    model_options,
    read_text,
    write_json,
)
from softlore.cli.workers import ray_options, set_threads

if TYPE_CHECKING:
    from softlore.prompts import PromptLibrary, SoftPrompt
    from softlore.tune import WorldInfoTrainer

_SETTINGS = (
    click.option("--kind", type=click.Choice(["prefix", "embedding"]), help="[default: prefix]"),
    click.option("--n-tokens", type=int, help="Length of each prompt.  [default: 16]"),
    click.option("--max-spacing", type=int, help="Most filler before a call.  [default: 64]"),
    click.option("--filler", type=click.Choice(["story", "random"]), help="[default: story]"),
    click.option("--min-loss", type=float, help="Stop an entry at this response loss (nats)."),
    click.option("--max-steps", type=int, help="Most updates of an entry."),
    click.option("--patience", type=int, help="Stop an entry after so many idle updates."),
    click.option("--optimizer", help="A class of torch.optim.  [default: adam]"),
    click.option("--learning-rate", type=float, help="Relative to the model's own scale."),
    click.option("--schedule", type=click.Choice(["cosine", "linear", "constant"])),
    click.option("--drift-guard", type=float, help="Weight of the drift guard.  [default: 1.0]"),
    click.option("--distil-weight", type=float, help="Weight of distillation.  [default: 1.0]"),
    click.option("--company-size", type=int, help="Most prompts in one trunk.  [default: 4]"),
    click.option("--initial", help="auto, text, responses, vocabulary, or a text of your own."),
    click.option(
        "--initial-prompt",
        type=click.Path(path_type=Path),
        help="Start from the prompt in this file.",
    ),
    click.option(
        "--style",
        help="Make blocks of the texts of entries without: sentences, noun, "
        "pronoun, mixed, implicit, cloud or bracketed.",
    ),
    click.option("--chat", is_flag=True, default=None, help="Use the model's chat template."),
    click.option("--seed", type=int, help="Of every draw.  [default: 0]"),
)
# Codes stand first and alone, and are to bend whatever comes after them.
CODE_SETTINGS = {"company_size": 1, "max_spacing": 0, "drift_guard": 0.0}


def training_options(function: Any) -> Any:
    """An option for every setting that a writer may want to change."""
    for option in reversed(_SETTINGS):
        function = option(function)
    return function


@click.command()
@click.argument("lorebook", type=click.Path(path_type=Path))
@model_options
@click.option("--out", "folder", type=click.Path(path_type=Path), help="Folder for the prompts.")
@click.option("--entry", "only", multiple=True, help="Train only this entry; may be given often.")
@click.option("--again", is_flag=True, help="Train anew what the folder already holds.")
@click.option("--time-budget", type=float, help="Seconds; makes fewer updates to keep to it.")
@click.option("--story", type=click.Path(path_type=Path), help="Your own text, for filler, guard.")
@click.option("--checkpoint-seconds", type=Finite(min=0), default=10.0, hidden=True)
@click.option("--group-size", type=click.IntRange(min=1), metavar="N",
              help="Train the entries N at a time, in the book's order; only those of a group keep "
              "company.  [default: all together; with --ray, 8]")  # fmt: skip
@ray_options
@training_options
@json_option
def command(
    lorebook: Path,
    model_name: str | None,
    dtype: str | None,
    device: str | None,
    folder: Path | None,
    only: tuple[str, ...],
    again: bool,
    time_budget: float | None,
    story: Path | None,
    checkpoint_seconds: float,
    group_size: int | None,
    ray: str | None,
    workers: int | None,
    threads: int | None,
    json_path: str | None,
    **given: Any,
) -> None:
    """Turn LOREBOOK (YAML, JSON or TOML) into soft prompts, trained in company.

    A .txt file is a corpus instead: one prompt, named after the file, takes on its manner. A folder
    of them (or of folders of them), or JSON lines with `code` and `text`, is a set of control
    codes: a prompt for each, for `softlore write --code` and `softlore attribute`.
    Ctrl-C keeps the progress, and so does a crash; the same command goes on from there.

    \b
    Example:
      softlore train lore.yaml --n-tokens 10 --time-budget 120
      softlore train lore.yaml --group-size 8 --ray --workers 2
      softlore train lore.yaml --group-size 8 --ray 10.0.0.1:6379
      torchrun --nproc-per-node 2 -m softlore train lore.yaml --model MODEL
    """
    settings = chosen_settings(given, story)
    prompts = library(folder, new=True)
    run = {
        "again": again,
        "time_budget": time_budget,
        "checkpoint_seconds": checkpoint_seconds,
        **settings,
    }
    where = (model_name, dtype, device)
    from softlore.cli.train_ranks import among_ranks

    with among_ranks(device, grouped=group_size is not None or ray is not None) as ranks:
        if group_size is not None or ray is not None:
            from softlore.cli.train_groups import train_in_groups

            crew = (ray, workers, threads)
            told = train_in_groups(lorebook, prompts, only, run, group_size, where, crew)
        else:
            set_threads(workers, threads)
            where = (model_name, dtype, device if ranks is None else ranks.device)
            told = _train_together(lorebook, prompts, only, run | {"ranks": ranks}, where)
        if ranks is None or ranks.first:
            write_json(told, json_path)


def _train_together(
    lorebook: Path,
    prompts: PromptLibrary,
    only: tuple[str, ...],
    run: dict[str, Any],
    where: tuple[str | None, str | None, str | None],
) -> dict[str, Any]:
    """Trains all of a lorebook as one set, or a corpus; saves what comes of it, and reports."""
    from softlore.lore import Lorebook
    from softlore.lore.corpora import holds_corpora
    from softlore.tune.book import plan_book

    if lorebook.suffix == ".txt" or holds_corpora(lorebook):
        trainer = _corpus_trainer(lorebook, prompts, run, *where)
    else:
        book = Lorebook.load(lorebook)
        model = load_model(book.model if where[0] is None else where[0], *where[1:])
        plan = plan_book(model, book, prompts, only=only, **run)
        if plan.kept:
            _say(f"already trained, kept beside the new ones: {', '.join(plan.kept)}")
        if plan.trainer is None:
            _say("nothing new to train; --again trains what is there once more")
            return report(prompts, [], plan.kept)
        trainer = plan.trainer
    return report(prompts, _train(trainer, prompts), trainer.company)


def chosen_settings(given: dict[str, Any], story: Path | None) -> dict[str, Any]:
    """Fields of `TrainingConfig` from what `training_options` were given."""
    settings = {name: value for name, value in given.items() if value is not None}
    if "initial" in settings:
        clean(settings["initial"], "--initial")
    if start := settings.pop("initial_prompt", None):
        from softlore.prompts import load_prompt

        settings["initial"] = load_prompt(start)
    if story is not None:
        settings["story"] = read_text(story, "story")
    return settings


def _corpus_trainer(
    path: Path,
    prompts: PromptLibrary,
    run: dict[str, Any],
    model_name: str | None,
    dtype: str | None,
    device: str | None,
) -> WorldInfoTrainer:
    from softlore.lore.corpora import holds_corpora, read_corpora
    from softlore.lore.names import as_name
    from softlore.tune import WorldInfoTrainer
    from softlore.tune.book import checkpoint_path

    name = as_name(path.stem)
    what: dict[str, Any] = {"name": name}
    if holds_corpora(path):
        what["corpora"] = read_corpora(path)
        run = CODE_SETTINGS | run
    else:
        what["corpus"] = read_text(path, "corpus")
    model = load_model(model_name, dtype, device)
    checkpoint = checkpoint_path(prompts.folder, name)
    return WorldInfoTrainer(model, **what, checkpoint=checkpoint, **run)


def _train(trainer: WorldInfoTrainer, prompts: PromptLibrary) -> list[SoftPrompt]:
    """Runs the trainer with a live view, and saves what comes of it.

    If training fails, a prompt that was there before stays as it was.
    """
    from softlore.cli.progress import watch, working
    from softlore.errors import DivergedError
    from softlore.tune.book import save_prompts

    with working("reading the lore, and what the bare model writes by itself", interactive()):
        trainer.prepare()
    if trainer.step:
        _say(f"going on from update {trainer.step}")
    ahead = trainer.estimate()
    entries = f"{len(trainer.entries)} {'entry' if len(trainer.entries) == 1 else 'entries'}"
    _say(
        f"{entries}, up to {ahead.updates} updates: about "
        f"{_duration(ahead.seconds)}; prompts of {max(1, ahead.prompt_bytes // 1024)} KB each in "
        f"{prompts.folder}"
    )
    if ahead.sight is not None:
        _say(
            f"every layer of this model looks {ahead.sight:,} tokens back at most: a prefix is out "
            "of sight further on in a story; --kind embedding can be named again there"
        )
    try:
        with watch(interactive()) as trainer.on_step:
            trainer.train()
    except KeyboardInterrupt:
        raise click.exceptions.Abort(
            "stopped; progress is kept: the same command goes on from here"
        ) from None
    except DivergedError:
        if not trainer.ranks.first:
            raise
        for prompt in trainer.prompts().values():
            if prompt.name not in prompts:
                prompts.save(prompt)
        raise
    made = list(trainer.prompts().values())
    if not trainer.ranks.first:
        return made
    for path in save_prompts(prompts, made, trainer):
        _say(f"wrote {path}")
    return made


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def report(
    prompts: PromptLibrary, made: Sequence[SoftPrompt], kept: Iterable[str]
) -> dict[str, Any]:
    """What was trained, and the names of what was kept beside it, as JSON."""
    return {
        "folder": str(prompts.folder),
        "trained": [
            {"name": p.name, "kind": p.kind, "n_tokens": len(p), "metrics": p.metrics}
            | {key: p.training.get(key) for key in ("steps", "stopped", "in_company")}
            for p in made
        ],
        "kept": list(kept),
    }


def _say(message: str) -> None:
    click.echo(message, err=True)
