"""`softlore learn`: trains soft prompts further on lines that the writer marked or edited."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli.common import ModelSource, interactive, write_json
from softlore.cli.options import json_option, with_model
from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.lore import Lorebook
    from softlore.prompts import SoftPrompt
    from softlore.story import Story
    from softlore.story.learning import LearnableLine, LearnedEntry


@click.command()
@click.argument("name")
@click.option("--stories", "stories_folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of stories.  [default: softlore's own]")  # fmt: skip
@click.option("--pick", help="Learn these, by number: 1,3,4.  [default: asks]")
@click.option("--all", "pick_all", is_flag=True, help="Learn all lines that are offered.")
@click.option("--list", "only_list", is_flag=True, help="Show the lines, and exit.")
@click.option("--yes", is_flag=True, help="Save the result without asking.")
@click.option("--max-steps", default=120, show_default=True, type=click.IntRange(min=1),
              help="Maximum updates of a prompt.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="The same seed, the same prompts.")
@with_model
@click.option("--gguf", type=click.Path(path_type=Path, dir_okay=False),
              help="The GGUF file that writes the story: the same as --model FILE.")  # fmt: skip
@json_option
def command(
    name: str,
    stories_folder: Path | None,
    pick: str | None,
    pick_all: bool,
    only_list: bool,
    yes: bool,
    max_steps: int,
    seed: int,
    source: ModelSource,
    gguf: Path | None,
    json_path: str | None,
) -> None:
    """Learn from the story NAME: lines that were kept (/keep) or edited become responses.

    Shows the lines and whom each is about, lets you pick, trains those prompts further, and shows
    recall and drift before and after. Nothing is saved until you confirm; the old prompts are
    moved to the folder `before`, and the lorebook with the new lines is saved beside the old one
    as NAME.learned.yaml, which the story uses from then on.

    \b
    Example:
      softlore learn harbour
      softlore learn harbour --all --yes
    """
    from softlore.errors import StoryError
    from softlore.story import StoryLibrary

    with StoryLibrary(stories_folder).open(name) as story:
        if not story.settings.lorebook:
            raise StoryError(
                f"the story {name!r} has no lorebook; expected one whose entries can learn; open "
                "it once with --lorebook FILE"
            )
        from softlore.lore import Lorebook

        book = Lorebook.load(story.settings.lorebook)
        from softlore.story.learning import learnable_lines

        lines = learnable_lines(story, book)
        if json_path != "-":
            _show(lines)
            if only_list or not lines:
                _show_elsewhere(story)
        if only_list or not lines:
            write_json([vars(line) for line in lines], json_path)
            return
        chosen = lines if pick_all else _pick(lines, pick)
        named = source if gguf is None else source._replace(name=str(gguf))
        library, results = _train(story, book, chosen, named, max_steps, seed)
        if json_path != "-":
            _print_table(results)
        write_json([_to_dict(result) for result in results], json_path)
        if yes or _confirm("Save these prompts?"):
            _save(results, book, story, library)
        else:
            click.echo("nothing was saved", err=True)


def _train(
    story: Story,
    book: Lorebook,
    chosen: list[LearnableLine],
    source: ModelSource,
    max_steps: int,
    seed: int,
) -> tuple[Mapping[str, SoftPrompt], list[LearnedEntry]]:
    """Trains the story's prompts further on lines: its prompts as they were, and the new ones."""
    with source.loading(story.settings.model or book.model) as shown:
        from softlore.story.session import StorySession

        session = StorySession.open(story, shown.name, shown.dtype, shown.device, shown.quantize)
    from softlore.cli.progress import watch
    from softlore.model import require_frozen_model
    from softlore.story.learning import learn

    library = session.composer.prompts
    with watch(interactive()) as view:
        learned = learn(
            require_frozen_model(session.model, "learning"), book, chosen, library,
            max_steps=max_steps, seed=seed, on_step=view.on_step, on_phase=view.on_phase,
        )  # fmt: skip
    return library, learned


def _show(lines: list[LearnableLine]) -> None:
    if not lines:
        click.echo("no lines to learn: /keep marks the last turn of a story, /edit changes it")
    for number, line in enumerate(lines, start=1):
        entries = ", ".join(line.entries)
        click.secho(f"{number:3}  {line.why}, for {entries}", bold=True)
        click.echo(f"     …{line.call}", nl=False)
        click.secho(line.response, fg="green")


def _show_elsewhere(story: Story) -> None:
    """Says which marked turns are on other branches, and how to get to them."""
    for turn in story.kept_elsewhere():
        words = " ".join(turn.text.split())[:60]
        click.echo(
            f"     kept on another branch: “{words}”; /go {turn.id} in `softlore story "
            f"{story.name}` goes there",
            err=True,
        )


def _pick(lines: list[LearnableLine], pick: str | None) -> list[LearnableLine]:
    if pick is None:
        if not interactive():
            raise ConfigError("which lines? expected --pick 1,2 or --all; nothing was learned")
        pick = click.prompt("Learn which (numbers, or all)", default="all", err=True)
    if pick.strip() == "all":
        return lines
    words = pick.replace(",", " ").split()
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(numbers) < len(words) or not all(1 <= number <= len(lines) for number in numbers):
        raise ConfigError(
            f"--pick {pick!r}; expected numbers from 1 to {len(lines)}, such as 1,2; fix it"
        )
    return [lines[number - 1] for number in numbers]


def _confirm(question: str) -> bool:
    return interactive() and click.confirm(question, default=True, err=True)


def _print_table(results: list[LearnedEntry]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("entry", "", "lines", "lore", "drift", box=box.SIMPLE_HEAD)
    for result in results:
        for label, measured in (("before", result.before), ("after", result.after)):
            lore = "–" if measured.lore is None else f"{measured.lore:.2f}"
            table.add_row(
                result.entry.name if label == "before" else "",
                label,
                f"{measured.lines:.2f}",
                lore,
                f"{measured.drift:.2f}",
            )
        if not result.better:
            table.add_row("", "", "[yellow]not better in all: compare before you save[/]", "", "")
    Console().print(table)
    click.echo(
        "lines, lore: loss in nats a token of the picked lines, and of the entry's own responses; "
        "drift: in nats a token, on other text; less is better"
    )


def _to_dict(result: LearnedEntry) -> dict[str, Any]:
    return {
        "entry": result.entry.name,
        "before": vars(result.before),
        "after": vars(result.after),
        "better": result.better,
    }


def _save(results: list[LearnedEntry], book: Any, story: Any, library: Any) -> None:
    """Saves prompts, moves the old ones, and saves the lorebook under a new name."""
    from softlore.prompts import PromptLibrary

    before = PromptLibrary(library.folder / "before")
    learned = {result.entry.name: result.entry for result in results}
    for result in results:
        before.save(library[result.entry.name])
        click.echo(f"wrote {library.save(result.prompt)}", err=True)
    entries = [learned.get(entry.name, entry) for entry in book]
    path = Path(story.settings.lorebook)
    path = path.with_name(path.name.removesuffix(".learned.yaml").split(".")[0] + ".learned.yaml")
    book.model_copy(update={"entries": entries}).save(path)
    story.set(lorebook=str(path))
    click.echo(f"wrote {path}; the story uses it from now on", err=True)
