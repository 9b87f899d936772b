"""`softlore hard search`: searches plain text that makes a model know an entry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli import common, options
from softlore.cli.progress import progress_bar
from softlore.errors import ConfigError
from softlore.settings import Names

if TYPE_CHECKING:
    from softlore.prompts import SoftPrompt

TEXT_SUFFIXES = (".txt", ".md")


@click.command()
@click.argument("lorebook", type=options.PATH)
@options.with_model
@click.option("--entry", "include", multiple=True, help="Only this entry; may be given often.")
@click.option("--together", is_flag=True, help="One prompt for all of these entries.")
@click.option("--method", default="gcg", show_default=True,
              type=click.Choice(["gcg", "reflect", "beam", "autoprompt", "pez", "random"]),
              )  # fmt: skip
@click.option(
    "--tokens", type=int, help="Length of the prompt.  [default: that of --initial, or 16]"
)
@click.option("--seconds", type=options.Finite(min=0, min_open=True),
              help="For each entry.  [default: 120]")  # fmt: skip
@click.option("--passes", type=int, help="Forward passes for each entry, in place of seconds.")
@click.option("--fluency", default=0.0, show_default=True, type=options.Finite(min=0),
              help="Weight of the prompt's own NLL.")  # fmt: skip
@click.option("--initial", type=options.PATH,
              help="Start from the text in this file, or the tokens nearest to its soft prompt. "
              " [default: random tokens; of --method reflect, the entry's text]",
              )  # fmt: skip
@click.option("--writer", "writer_source", metavar="MODEL|URL",
              help="With --method reflect: who rewrites, a model or an OpenAI-compatible server, "
              "http://…/v1 (its key in $SOFTLORE_API_KEY).  [default: the model itself]",
              )  # fmt: skip
@click.option("--writer-model", default="", help="The writer's name on that server.")
@click.option("--shorten", type=options.Finite(min=0), metavar="NATS",
              help="In the end, leave out words while the loss rises by no more than this.",
              )  # fmt: skip
@click.option("--swaps", type=click.IntRange(min=1),
              help="With --method gcg: tokens that a candidate swaps at once.  [default: 1]",
              )  # fmt: skip
@click.option("--buffer", type=click.IntRange(min=0),
              help="With --method gcg: start each step from the best of so many candidates.  "
              "[default: 0, from the last]")  # fmt: skip
@click.option("--perplexity", type=options.Finite(min=1, min_open=True),
              help="With --method beam: the most that a prompt may have.  [default: 60]",
              )  # fmt: skip
@options.seed_option
@click.option("--checkpoints", type=options.PATH,
              help="Folder that progress is saved in, and continued from.")  # fmt: skip
@options.names_options
@options.json_option
def search(
    lorebook: Path,
    source: common.ModelSource,
    names: Names,
    include: tuple[str, ...],
    together: bool,
    method: str,
    tokens: int | None,
    fluency: float,
    initial: Path | None,
    writer_source: str | None,
    writer_model: str,
    shorten: float | None,
    checkpoints: Path | None,
    json_path: str | None,
    **settings: Any,
) -> None:
    """Search plain tokens that make the model give the responses of LOREBOOK's entries.

    Each entry's best prompt is chosen by its held-out calls, where it has some; its loss is that
    of its text, tokenized again.

    \b
    Example:
      softlore hard search lore.yaml --entry Emma --method gcg --tokens 16
      softlore hard search lore.yaml --method reflect --tokens 40 --shorten 0.02
      softlore hard search lore.yaml --together --method reflect --writer http://localhost:8080/v1
    """
    _check_method(method, settings | {"writer": writer_source})
    check_server_name(writer_source, writer_model, "writer")
    settings = {name: value for name, value in settings.items() if value is not None}
    book = common.load_book(lorebook, names).resolved()
    entries = [book[name] for name in include] or [entry for entry in book if entry.blocks]
    if not entries:
        raise ConfigError(
            f"no entry of {book.name!r} has blocks; expected calls with responses to search on; "
            "add some"
        )
    with source.loading(book.model) as shown:
        from softlore.control.search import Scorer, Searcher, find_writer
        from softlore.measure import recall

        start = None if initial is None else _initial(initial)
        model = shown.load()
        if writer_source:
            settings["writer"] = find_writer(writer_source, writer_model, source.load_named)
    report = {}
    unsaved = "stopped; nothing is saved without --checkpoints FOLDER"
    each = [(book.name, entries)] if together else [(entry.name, [entry]) for entry in entries]
    for name, about in each:
        blocks = [block for entry in about for block in entry.blocks]
        held_out = [block for entry in about for block in entry.held_out]
        text = " ".join(entry.text for entry in about) if method == "reflect" else None
        scorer = Scorer(model, blocks, held_out, fluency)
        path = checkpoints and checkpoints / f"{name}.search"
        with (
            common.resumable(common.SAME_COMMAND if checkpoints else unsaved),
            progress_bar(name) as bar,
        ):
            searcher = Searcher(
                scorer, method, tokens, initial=start or text, checkpoint=path, **settings
            )
            searcher.on_step = lambda now: bar(now.done, f" {now.best[1]:.2f}" if now.best else "")
            best = searcher.search()
            if shorten is not None:
                searcher.shorten(shorten)
                best = searcher.result()
        report[name] = best.to_dict() | {"bare": recall(model, "", blocks)}
        if json_path != "-":
            click.echo(f"{name}: {best.text}")
            click.echo(
                f"  recall {best.loss:.2f} nats a token ({report[name]['bare']:.2f} without), "
                f"{len(best.ids)} tokens, {best.steps} steps, {best.passes} passes, "
                f"{best.seconds:.0f} s"
            )
    common.write_json(report, json_path)


def _initial(file: Path) -> str | SoftPrompt:
    """What a search starts from: the text of a file, or the soft prompt in it."""
    from softlore.prompts import load_prompt

    if file.suffix not in TEXT_SUFFIXES:
        return load_prompt(file)
    text = common.read_text(file, "the text to start from")
    if not text.strip():
        raise ConfigError(f"{str(file)!r} is empty; expected a text to start from; write one there")
    return text


def _check_method(method: str, settings: dict[str, Any]) -> None:
    """Refuses options of another method."""
    of = {"writer": "reflect", "swaps": "gcg", "buffer": "gcg", "perplexity": "beam"}
    for name, needed in of.items():
        if settings[name] is not None and method != needed:
            raise ConfigError(
                f"--{name} is of the method {needed}, and this is {method}; expected --method "
                f"{needed}; add it, or leave --{name} out"
            )


def check_server_name(source: str | None, model: str, option: str) -> None:
    """Refuses the name of a model on no server."""
    if not model:
        return
    from softlore.decode.chat_server import is_url

    if not is_url(source or ""):
        raise ConfigError(
            f"--{option}-model {model!r:.60} is a name on a server; expected --{option} with its "
            "address, http://…/v1; add it"
        )
