"""`softlore story`: a story written in the terminal, turn by turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from softlore.cli.options import model_options, prompts_option, sampling_options


@click.command()
@click.argument("name", required=False)
@click.option("--lorebook", type=click.Path(path_type=Path, dir_okay=False),
              help="Lore that wakes when the story mentions it.")  # fmt: skip
@click.option("--tokens", default=80, show_default=True, type=click.IntRange(min=1),
              help="The most tokens of a turn.")  # fmt: skip
@click.option("--budget", type=click.IntRange(min=0),
              help="Tokens of the context for lore; 0: a quarter of it.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), help="Makes the story repeatable.")
@click.option("--stories", "stories_folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of stories.  [default: softlore's own]")  # fmt: skip
@click.option("--import", "import_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Begin with a KoboldAI save, Markdown or plain text.")  # fmt: skip
@click.option("--export", "export_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the story to this file, and end.")  # fmt: skip
@sampling_options
@model_options
@prompts_option
def command(
    name: str | None,
    lorebook: Path | None,
    tokens: int,
    budget: int | None,
    seed: int | None,
    stories_folder: Path | None,
    import_file: Path | None,
    export_file: Path | None,
    model_name: str | None,
    dtype: str | None,
    device: str | None,
    folder: Path | None,
    sampling: dict[str, Any],
) -> None:
    """Write the story NAME turn by turn; without NAME, list the stories.

    What is typed goes into the story and the model writes on; an empty line lets it go on by
    itself. Lore wakes when it is mentioned. Ctrl-C stops the model, and what was told is kept.
    Everything is saved as it is written. Commands begin with /: /help tells of them. Lore, model,
    prompts, budget and seed stay with the story, so that its name is enough the next time.

    \b
    Example:
      softlore story harbour --lorebook lore.yaml
      softlore story harbour
    """
    from softlore.story import Stories

    stories = Stories(stories_folder)
    if name is None:
        _list(stories)
        return
    with _opened(stories, name, import_file) as story:
        given = {
            "lorebook": lorebook and str(lorebook.resolve()),
            "prompts": folder and str(folder.resolve()),
            "model": model_name,
            "budget": budget,
            "seed": seed,
        }
        story.set(**{key: value for key, value in given.items() if value is not None})
        if export_file is not None:
            from softlore.story.files import write_story

            write_story(story, export_file)
            click.echo(f"wrote {export_file}", err=True)
            return
        _write(story, stories, tokens, sampling, dtype, device)


def _list(stories: Any) -> None:
    for name in stories:
        with stories.open(name) as story:
            words = " ".join(story.text[-60:].split())
            click.echo(f"{name:24} {len(story):4} turns  … {words}")
    click.echo(
        f"{len(stories)} stories in {stories.folder}; softlore story NAME opens one, or begins it",
        err=True,
    )


def _opened(stories: Any, name: str, import_file: Path | None) -> Any:
    from softlore.errors import ConfigError

    if import_file is None:
        return stories.open_or_create(name)
    if name in stories:
        raise ConfigError(
            f"there is a story {name!r} already; expected a new name for what is imported; "
            "choose another"
        )
    from softlore.story.files import read_story

    draft = read_story(import_file)
    story = stories.create(name, draft)
    if draft.lorebook:
        _take_lore(story, draft.lorebook, stories.folder / f"{name}.lorebook.yaml")
    return story


def _take_lore(story: Any, data: Any, path: Path) -> None:
    """Keeps the lore that came with a story as a lorebook beside it."""
    from softlore.lore import Lorebook

    book = Lorebook.from_data(data, name=story.name, source="the lore in the file")
    if book.entries:
        book.save(path)
        story.set(lorebook=str(path.resolve()))
        entries = "1 entry" if len(book) == 1 else f"{len(book)} entries"
        click.echo(f"lore came along: {entries}, in {path}", err=True)


def _write(
    story: Any,
    stories: Any,
    tokens: int,
    sampling: dict[str, Any],
    dtype: str | None,
    device: str | None,
) -> None:
    import sys

    from softlore.cli.terminal import Terminal, comfortable_reader, line_reader
    from softlore.story.session import StorySession

    session = StorySession.open(story, dtype=dtype, device=device)
    read = line_reader()
    if sys.stdin.isatty() and sys.stdout.isatty():
        read = comfortable_reader(session, stories.folder / ".history")
    Terminal(session, read, tokens, sampling).run()
