"""`softlore story`: a story written in the terminal, turn by turn."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli.common import ModelSource, interactive, library
from softlore.cli.gguf import cache_options, gguf_option, runner_of
from softlore.cli.options import (
    find_vectors,
    names_options,
    prompts_option,
    sampling_options,
    split_vectors,
    vector_option,
    with_model,
)

if TYPE_CHECKING:
    from softlore.lore import Lorebook
    from softlore.model import LanguageModel
    from softlore.settings import Names
    from softlore.story import Story, StoryDraft, StoryLibrary, StorySettings
    from softlore.story.session import StorySession
    from softlore.story.settings import Form


@click.command()
@click.argument("name", required=False)
@click.option("--lorebook", type=click.Path(path_type=Path, dir_okay=False),
              help="Lore, activated when the story mentions it.")  # fmt: skip
@click.option("--tokens", default=80, show_default=True, type=click.IntRange(min=1),
              help="Maximum tokens of a turn.")  # fmt: skip
@click.option("--budget", type=click.IntRange(min=0),
              help="Tokens of the context for lore; 0: a quarter of it.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), help="Makes the story repeatable.")
@click.option("--stories", "stories_folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of stories.  [default: softlore's own]")  # fmt: skip
@click.option("--import", "import_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Begin with a KoboldAI save, Markdown or plain text.")  # fmt: skip
@click.option("--card", type=click.Path(path_type=Path, dir_okay=False),
              help="Begin with this character card: its first message, scenario and lore.",
              )  # fmt: skip
@click.option("--greeting", type=click.IntRange(min=1), metavar="N",
              help="With --card: its Nth first message; 2 is the first alternate.  [default: 1]",
              )  # fmt: skip
@click.option("--form", type=click.Choice(["prose", "chat", "instruct"]),
              help="How turns follow each other: as prose, as lines with names, or as messages in "
                   "the model's chat template.  [default: the story's, at first prose]",
              )  # fmt: skip
@click.option("--export", "export_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the story to this file, and exit.")  # fmt: skip
@click.option("--delete", is_flag=True, help="Mark the story's file as deleted, and exit.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@names_options
@sampling_options
@vector_option
@with_model
@gguf_option
@cache_options
@prompts_option
def command(
    name: str | None,
    lorebook: Path | None,
    tokens: int,
    budget: int | None,
    seed: int | None,
    stories_folder: Path | None,
    import_file: Path | None,
    card: Path | None,
    greeting: int | None,
    form: Form | None,
    export_file: Path | None,
    delete: bool,
    yes: bool,
    source: ModelSource,
    gguf: Path | None,
    cache: tuple[str, bool],
    folder: Path | None,
    names: Names,
    sampling: dict[str, Any],
    vectors: tuple[str, ...],
) -> None:
    """Write the story NAME turn by turn; without NAME, list the stories.

    What is typed goes into the story and the model continues it; on an empty line it continues
    by itself. Lore is activated when it is mentioned. Ctrl-C stops the model, and what it has
    written stays. Everything is saved at once. Commands begin with /: /help lists them. Lore,
    model, prompts, budget and seed are saved with the story, so that its name is enough the next
    time, and so are control vectors by their names (--vector dark=0 turns one off); --gguf is not.

    \b
    Example:
      softlore story harbour --lorebook lore.yaml
      softlore story harbour
      softlore story evening --card emma.png --user Ada --form chat
      softlore story harbour --gguf storyteller-Q4_K.gguf
      softlore story harbour --vector dark=0.8
    """
    from softlore.errors import ConfigError
    from softlore.lore import Lorebook
    from softlore.story import StoryLibrary

    stories = StoryLibrary(stories_folder)
    if name is None:
        if delete or import_file or export_file or card:
            raise ConfigError(
                "which story? expected its NAME with --delete, --import, --card and --export; "
                "name one"
            )
        _list(stories)
        return
    if delete:
        _delete(stories, name, yes)
        return
    given: dict[str, Any] = {
        "lorebook": lorebook and str(lorebook.resolve()),
        "prompts": folder and str(folder.resolve()),
        "model": None if gguf else _lasting(source.name),  # with a file: whose tokenizer it has
        "budget": budget,
        "seed": seed,
        "form": form,
        **names.given(),
    }
    given = {key: value for key, value in given.items() if value is not None}
    origin = _StorySource(stories, name, import_file)
    if greeting is not None and card is None:
        raise ConfigError(
            "--greeting is of a card, and there is none; expected --card FILE; add it, or leave "
            "--greeting out"
        )
    if card is not None:
        origin.begin(card, lorebook, greeting or 1, names, form or "prose")
    strengths, vector_files = split_vectors(vectors)
    if strengths:
        given["vectors"] = origin.settings().vectors | strengths
    if export_file is not None:
        library(folder)
        if lorebook is not None:
            Lorebook.load(lorebook)
        with origin.open() if import_file or card else stories.open(name) as story:
            story.set(**given)
            _export(story, export_file)
        return
    settings = origin.settings().changed(**given)
    own = settings.model or (Lorebook.load(settings.lorebook).model if settings.lorebook else None)
    with source.loading(own, gguf=gguf, brief=True) as shown:
        from softlore.story.session import StorySession, sources

        library(folder)  # checked before a story is created
        book, prompts = sources(settings)
        runner = runner_of(shown, gguf, cache)
        _check_vectors(runner.model, settings, strengths)
        if vector_files:
            files = find_vectors(vector_files, runner.model.layers)
            sampling = {**sampling, "vectors": files}
    from softlore.story.condensing import ChapterWriter

    with origin.open() as story, closing(ChapterWriter()) as chapters:
        story.set(**given)
        lore = book if lorebook else origin.book or book
        session = StorySession(story, runner, lore, prompts, chapter_writer=chapters)
        _write(session, stories, tokens, sampling)


def _check_vectors(
    model: LanguageModel, settings: StorySettings, given: Mapping[str, float]
) -> None:
    """Refuses vectors that were given now and don't fit; tells which of the story's don't."""
    from softlore.prompts.vector_folder import fitting_vectors
    from softlore.story.steering import active_vectors

    fitting_vectors(model, {name: strength for name, strength in given.items() if strength})
    for vector, why in active_vectors(model, settings.vectors)[1].items():
        click.echo(f"{vector} is not used: {why}", err=True)


def _lasting(model_name: str | None) -> str | None:
    """The name under which the story finds its model from every folder."""
    from softlore.model.finding import lasting_name

    return None if model_name is None else lasting_name(model_name)


def _export(story: Story, path: Path) -> None:
    from softlore.story.files import write_story

    write_story(story, path)
    click.echo(f"wrote {path}", err=True)


def _list(stories: StoryLibrary) -> None:
    """Lists the stories; for those that cannot be read, the error."""
    from softlore.cli.reading import turns
    from softlore.errors import SoftloreError

    count = 0
    for name in stories:
        try:
            with stories.open(name) as story:
                words = " ".join(story.text[-60:].split())
                click.echo(f"{name:24} {turns(len(story)):>10}  … {words}")
                count += 1
        except SoftloreError as error:
            click.echo(f"{name}: {error}", err=True)
    noun = "story" if count == 1 else "stories"
    click.echo(
        f"{count} {noun} in {stories.folder}; softlore story NAME opens or creates one", err=True
    )


def _delete(stories: StoryLibrary, name: str, yes: bool) -> None:
    from softlore.errors import ConfigError

    if name in stories and not yes:
        if not interactive():
            raise ConfigError(
                f"deleting the story {name!r} cannot be confirmed here; expected --yes; add it"
            )
        if not click.confirm(f"Delete the story {name!r}?", default=False, err=True):
            click.echo("nothing was deleted", err=True)
            return
    renamed = stories.delete(name)
    click.echo(
        f"renamed to {renamed}; to restore the story, remove .deleted from that name", err=True
    )


class _StorySource:
    """A story that exists or is to be created, possibly from a file, once all input is checked.

    Attributes:
        book: the lore that came with the file.
    """

    def __init__(self, stories: StoryLibrary, name: str, import_file: Path | None) -> None:
        self._stories, self._name = stories, name
        self._draft: StoryDraft | None = None
        self.book: Lorebook | None = None
        if import_file is None:
            return
        self._check_new()
        from softlore.story.files import read_story

        self._draft = read_story(import_file)
        if self._draft.lorebook:
            from softlore.lore import Lorebook

            source = "the lore in the file"
            book = Lorebook.from_data(self._draft.lorebook, name=name, source=source)
            self.book = book if book.entries else None

    def begin(
        self, card: Path, lorebook: Path | None, greeting: int, names: Names, form: Form
    ) -> None:
        """Begins the story with a card, whose lore it has unless there is another lorebook."""
        from softlore.errors import ConfigError
        from softlore.lore import Lorebook
        from softlore.story import StorySettings
        from softlore.story.beginning import draft_of_card

        if self._draft is not None:
            raise ConfigError(
                "--card and --import are both given; expected one beginning; leave one out"
            )
        self._check_new()
        book = Lorebook.load(card)
        path = str((lorebook or card).resolve())
        settings = StorySettings(lorebook=path, char=names.char, user=names.user, form=form)
        self._draft = draft_of_card(book, settings, greeting)

    def _check_new(self) -> None:
        from softlore.errors import ConfigError

        if self._name in self._stories:
            raise ConfigError(
                f"there is a story {self._name!r} already; expected a new name for what is "
                "imported; choose another"
            )

    def settings(self) -> StorySettings:
        """The settings that it has, or will have."""
        from softlore.errors import StoryNotFoundError
        from softlore.story import StorySettings

        if self._draft is not None:
            return self._draft.settings
        try:
            with self._stories.open(self._name) as story:
                return story.settings
        except StoryNotFoundError:
            return StorySettings()

    def open(self) -> Story:
        """Opens or creates the story; lore in its file is saved as a lorebook beside it."""
        if self._draft is None:
            return self._stories.open_or_create(self._name)
        story = self._stories.create(self._name, self._draft)
        if self.book is not None:
            path = self._stories.folder / f"{self._name}.lorebook.yaml"
            self.book.save(path)
            story.set(lorebook=str(path.resolve()))
            entries = f"{len(self.book)} {'entry' if len(self.book) == 1 else 'entries'}"
            click.echo(f"lore came along: {entries}, in {path}", err=True)
        return story


def _write(
    session: StorySession, stories: StoryLibrary, tokens: int, sampling: dict[str, Any]
) -> None:
    import sys

    from softlore.cli.reading import editor_reader, line_reader
    from softlore.cli.terminal import COMMANDS, Terminal

    read = line_reader()
    if sys.stdin.isatty() and sys.stdout.isatty():
        read = editor_reader(session, stories.folder / ".history", COMMANDS)
    Terminal(session, read, tokens, sampling).run()
