"""`softlore lore suggest`: entries that a story suggests, to accept, edit or drop one by one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli import common, options
from softlore.errors import ConfigError, LoreError

if TYPE_CHECKING:
    from softlore.lore import Entry
    from softlore.story import Story
    from softlore.story.suggesting import Suggestion, Suggestions

_CHOICES = "[a]ccept  [e]dit  [d]rop  [s]kip  [q]uit"


@click.command("suggest")
@click.argument("story_name", metavar="STORY")
@click.option("--stories", "stories_folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of stories.  [default: softlore's own]")  # fmt: skip
@click.option("--lorebook", type=options.PATH,
              help="The lorebook to add to.  [default: the story's, or a new one]")  # fmt: skip
@click.option("--surprise", is_flag=True,
              help="Load the story's model; rank by what it could not have guessed.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Accept all that is suggested, without asking.")
@options.with_model
@options.json_option
def suggest(
    story_name: str,
    stories_folder: Path | None,
    lorebook: Path | None,
    surprise: bool,
    yes: bool,
    source: common.ModelSource,
    json_path: str | None,
) -> None:
    """Suggest entries for the names that recur in the story STORY.

    Of each: its name, its keys, and a text made of the sentences that tell of it. You accept it,
    edit it first, or drop it, so that it is not suggested again. What an entry is activated by
    already is not suggested. --json alone writes what is suggested, and changes nothing.

    Names are found by their capitals, and fairy tales' people ("the fox") by that they speak;
    the latter in English only.

    \b
    Example:
      softlore lore suggest harbour
      softlore lore suggest harbour --yes
    """
    from softlore.story import StoryLibrary

    asks = not yes and json_path is None
    if asks and not common.interactive():
        raise ConfigError(
            "what is suggested cannot be confirmed here; expected --yes or --json -; add one"
        )
    stories = StoryLibrary(stories_folder)
    with stories.open(story_name) as story:
        target = _Target(story, lorebook)
        from softlore.story.suggesting import suggest_entries, surprise_of

        measure = None
        if surprise or source.name is not None:
            from softlore.model import require_frozen_model

            model = source.load(story.settings.model or None)
            measure = surprise_of(require_frozen_model(model, "measuring surprise"))
        suggested = suggest_entries(
            [turn.text for turn in story.turns], target.entries, story.settings.dropped, measure
        )
        if json_path != "-":
            _say_notes(suggested)
        if yes:
            target.add([one.entry for one in suggested.found])
        elif asks:
            _ask(suggested.found, story, target)
        common.write_json(_report(suggested), json_path)


class _Target:
    """The lorebook that accepted entries are added to; of another program's file, a copy."""

    def __init__(self, story: Story, given: Path | None) -> None:
        from softlore.lore import Lorebook
        from softlore.lore.names import as_name

        self._story = story
        path = given or (Path(story.settings.lorebook) if story.settings.lorebook else None)
        if path is None or (given is not None and not given.exists()):
            self._path = path or story.path.with_name(f"{story.name}.lorebook.yaml")
            if path is None and self._path.exists():
                self._book = Lorebook.load(self._path)
            else:
                self._book = Lorebook(name=as_name(self._path.stem), entries=[])
            return
        self._book = Lorebook.load(path)
        own = self._book.origin is None and path.suffix.lower() in (".yaml", ".yml", ".json")
        self._path = path if own else path.with_name(path.stem + ".softlore.yaml")

    @property
    def entries(self) -> list[Entry]:
        return self._book.entries

    def add(self, entries: list[Entry]) -> None:
        """Adds entries, saves the lorebook, and has the story use it. Raises LoreError."""
        from softlore.lore import Lorebook

        if not entries:
            common.say("nothing is suggested that the lorebook does not have")
            return
        data = self._book.data()
        self._book = Lorebook(
            **{**data, "entries": [*data["entries"], *(entry.data() for entry in entries)]}
        )
        self._book.save(self._path)
        self._story.set(lorebook=str(self._path.resolve()))
        names = ", ".join(entry.name for entry in entries)
        common.say(f"added {names} to {self._path}; `softlore train` makes soft prompts of them")


def _say_notes(suggested: Suggestions) -> None:
    for note in suggested.notes:
        common.say(note)


def _report(suggested: Suggestions) -> dict[str, Any]:
    rows = [
        one.entry.data() | {"mentions": one.mentions, "turns": one.turns, "surprise": one.surprise}
        for one in suggested.found
    ]
    return {"suggestions": rows, "notes": suggested.notes}


def _ask(found: list[Suggestion], story: Story, target: _Target) -> None:
    """Shows each suggestion, and asks whether to take, edit or drop it."""
    if not found:
        common.say("no name recurs that the lorebook does not have")
    for number, one in enumerate(found, start=1):
        entry: Entry | None = one.entry
        times = common.counted(one.mentions, "sentence")
        click.secho(f"\n{number}/{len(found)}  {one.entry.name}", bold=True, nl=False)
        click.secho(f"  in {times} of {common.counted(one.turns, 'turn')}", dim=True)
        _show(one.entry)
        answer = ""
        while answer not in ("a", "e", "d", "s", "q"):
            answer = click.prompt(_CHOICES, default="a", err=True).strip().lower()[:1]
        if answer == "q":
            break
        if answer == "d":
            story.set(dropped=[*story.settings.dropped, one.entry.name])
        elif answer != "s":
            entry = _edited(one.entry) if answer == "e" else one.entry
            if entry is not None:
                target.add([entry])


def _show(entry: Entry) -> None:
    click.echo(f"     keys: {', '.join(entry.keys)}")
    click.echo(f"     {entry.text}")


def _edited(entry: Entry) -> Entry | None:
    """The entry as the writer's editor leaves it; None if it was left without saving."""
    from softlore.lore import Entry
    from softlore.lore.files import parse
    from softlore.lore.plain import plain, write_yaml

    text: str | None = write_yaml(plain(entry.data()))
    while True:
        text = click.edit(text, extension=".yaml")
        if text is None:
            common.say("it was not saved in the editor: skipped")
            return None
        try:
            data = parse(text.encode(), "the entry", "yaml")
            if not isinstance(data, dict):
                raise LoreError("the entry is not a mapping; expected its name, keys and text")
            return Entry(**data)
        except LoreError as error:
            common.say(f"{error}")
            if not click.confirm("Edit it again?", default=True, err=True):
                return None
