"""Terminal: runs a story session, reads text and commands, prints generated text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softlore.cli.plan_view import lore_table, show_parts
from softlore.cli.reading import LineReader, number_of, turns, words_of
from softlore.cli.wrapping import WordWrapper, terminal_width
from softlore.errors import ConfigError, SoftloreError, StoryError

if TYPE_CHECKING:
    from softlore.story.session import StorySession

SHOWN = 2000  # characters of a story's end that are shown when it is opened


class Terminal:
    """Runs a story session; every command is a method, whose docstring is its help.

    Args:
        read: returns the next line; raises EOFError at the end, KeyboardInterrupt on Ctrl-C.
    """

    def __init__(
        self, session: StorySession, read: LineReader, tokens: int, sampling: dict[str, Any]
    ) -> None:
        self.session = session
        self.story = session.story
        self._read = read
        self._tokens = tokens
        self._sampling = sampling

    def run(self) -> None:
        """Reads lines until /quit or the end of input."""
        self._open()
        while True:
            try:
                line = self._read("")
            except KeyboardInterrupt:
                click.echo("(/quit leaves; the story is saved)", err=True)
                continue
            except EOFError:
                break
            try:
                if self._do(line) == "quit":
                    break
            except KeyboardInterrupt:
                click.echo("\n(stopped; the text so far is kept)", err=True)
            except SoftloreError as error:
                click.echo(f"{error}", err=True)

    def _do(self, line: str) -> str | None:
        if not line.startswith("/") or line.startswith("//"):
            self.say(line.removeprefix("/") if line.startswith("//") else line)
            return None
        word, _, rest = line[1:].partition(" ")
        name = next((command for command in COMMANDS if command == word), None)
        if name is None:
            close = [command for command in COMMANDS if command.startswith(word)]
            if len(close) != 1:
                raise ConfigError(
                    f"there is no command /{word}; expected one of /{' /'.join(COMMANDS)}; /help "
                    "lists them, and // begins a text with /"
                )
            name = close[0]
        method: Callable[[str], str | None] = getattr(self, name)
        return method(rest.strip())

    def _open(self) -> None:
        click.secho(
            f"{self.story.name}: {turns(len(self.story))}; an empty line lets the model continue, "
            "/help lists the commands",
            dim=True,
            err=True,
        )
        text = self.story.text
        self._print(("… " if len(text) > SHOWN else "") + text[-SHOWN:])

    def _print(self, text: str) -> None:
        """Prints a part of the story, wrapped between words."""
        wrapper = WordWrapper(terminal_width())
        click.echo(wrapper.add(text) + wrapper.flush())

    # writing -----------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Adds the typed text to the story, then lets the model continue."""
        if text.strip():
            self.session.add(text)
        self._stream(self.session.continue_story(self._tokens, **self._sampling))

    def next(self, speaker: str) -> None:
        """In a chat, let a speaker speak: /next Marta; without a name whose turn it is."""
        pieces = self.session.continue_story(self._tokens, speaker=speaker, **self._sampling)
        self._stream(pieces)

    def retry(self, _: str = "") -> None:
        """Generate the model's last turn again; /undo restores the old one."""
        self._stream(self.session.retry(self._tokens, **self._sampling))

    def _stream(self, pieces: Iterator[str]) -> None:
        wrapper = WordWrapper(terminal_width())
        try:
            for piece in pieces:
                click.echo(wrapper.add(piece), nl=False)
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
            click.echo(wrapper.flush())
        usage = self.session.cache_usage
        if usage.why and usage.read > 256:
            click.secho(f"(read {usage.read} tokens again: {usage.why})", dim=True, err=True)

    # going back --------------------------------------------------------------------------------

    def undo(self, _: str = "") -> None:
        """Undo the last change, whatever it was."""
        self._moved("undone", self.story.undo(), "nothing to undo")

    def redo(self, _: str = "") -> None:
        """Redo what was undone."""
        self._moved("done again", self.story.redo(), "nothing to redo")

    def _moved(self, what: str, operation: str, nothing: str) -> None:
        done = f"{what}: {OPERATIONS.get(operation, operation)}" if operation else nothing
        click.secho(f"({done})", dim=True, err=True)
        if operation:
            self._print("… " + self.story.text[-300:])

    def branches(self, _: str = "") -> None:
        """List the branches of the story; /go NUMBER switches to one."""
        for branch in self.story.branches():
            mark = "*" if branch.current else " "
            words = " ".join(branch.words.split())[:60]
            click.echo(f"{mark} {branch.id:5}  {turns(branch.turns):>9}  {branch.created}  {words}")

    def go(self, number: str) -> None:
        """Go to a branch or a turn: /go NUMBER."""
        try:
            self.story.go_to(int(number))
        except ValueError:
            raise ConfigError(f"/go {number!r}; expected a number that /branches lists") from None
        self._print("… " + self.story.text[-300:])

    def edit(self, text: str) -> None:
        """Change the last turn: opens it for editing, or replaces it by the text."""
        head = self.story.head
        if head is None:
            raise StoryError("the story has no turn yet; expected one to edit; write something")
        space = head.text[: len(head.text) - len(head.text.lstrip())]
        self.story.edit(head, space + text if text else self._read(head.text))

    def keep(self, _: str = "") -> None:
        """Mark the last turn for softlore learn."""
        head = self.story.head
        if head is None:
            raise StoryError("the story has no turn yet; expected one to keep; write something")
        self.story.mark(head)
        click.secho("(kept: softlore learn will offer it)", dim=True, err=True)

    # settings ----------------------------------------------------------------------------------

    def memory(self, text: str) -> None:
        """Show the memory and the chapters, or set it: /memory TEXT. A single - empties it."""
        self._setting("memory", text)
        if not text:
            self._list_chapters()

    def chapters(self, text: str) -> None:
        """Show what was condensed; /chapters 2 = TEXT changes a summary, an empty one forgets it.

        `wait`: waits until all that has left the context is condensed.
        """
        number, equals, told = (part.strip() for part in text.partition("="))
        chapters = self.session.chapters
        if equals and told:
            chapters.change(f"Chapter {number}", told.replace("\\n", "\n"))
        elif equals:
            chapters.forget(f"Chapter {number}")
        elif number == "wait" and self.session.chapter_writer is not None:
            self.session.chapter_writer.wait()
        elif number:
            raise ConfigError(
                f"/chapters {text}; expected NUMBER = TEXT, or wait, or nothing; write it so"
            )
        self._list_chapters()

    def _list_chapters(self) -> None:
        found = self.session.chapters.on_path(self.story.turns)
        for one in found:
            click.secho(f"{one.entry.name} ({one.state})", dim=True)
            click.echo(one.entry.text)
        if not found and self.story.settings.chapters:
            click.secho("(no chapters: nothing has left the context yet)", dim=True, err=True)

    def note(self, text: str) -> None:
        """Show the author's note, or set it: /note TEXT. A single - empties it."""
        self._setting("note", text)

    def _setting(self, name: str, text: str) -> None:
        if text:
            self.story.set(**{name: "" if text == "-" else text.replace("\\n", "\n")})
        click.echo(getattr(self.story.settings, name) or "(empty)")

    def set(self, text: str) -> None:
        """Change settings: /set tokens=120 temperature=0.7 budget=200 seed=3 user=Ada."""
        from softlore.decode import SamplingParams
        from softlore.settings import Names

        sampling, tokens = dict(self._sampling), self._tokens
        of_story: dict[str, Any] = {}
        for word in words_of(text, "/set"):
            name, _, value = word.partition("=")
            if name in (*Names.model_fields, "form"):
                of_story[name] = value
                continue
            number = number_of(name, value)
            if name == "tokens":
                if not isinstance(number, int) or number < 1:
                    raise ConfigError(
                        f"/set tokens={value}; expected a whole number from 1; fix it"
                    )
                tokens = number
            elif name in ("budget", "seed", "note_depth", "context_tokens"):
                of_story[name] = number
            elif name in ("trim", "chapters"):
                of_story[name] = bool(number)
            else:
                sampling[name] = number
        SamplingParams.of(sampling)
        if of_story:
            self.story.set(**of_story)
        self._sampling, self._tokens = sampling, tokens
        shown = {"tokens": self._tokens, **self._sampling}
        click.echo(" ".join(f"{name}={value}" for name, value in shown.items()))

    def cast(self, text: str) -> None:
        """Make a chat of the story: /cast Marta "Old Tom=tom,sea"; - makes it prose again.

        After = are the entries or soft prompts that are active when the speaker speaks, besides
        those of its own name.
        """
        if text == "-":
            self.story.set(form="prose")
        elif text:
            named = (word.partition("=") for word in words_of(text, "/cast"))
            cast = {name: [one for one in own.split(",") if one] for name, _, own in named}
            self.story.set(form="chat", cast=cast)
        settings = self.story.settings
        told = [f"{name}={','.join(own)}" if own else name for name, own in settings.cast.items()]
        click.echo(f"{settings.form}: {' '.join(told) or '(no speakers)'}")

    def vector(self, text: str) -> None:
        """Show or set the control vectors: /vector dark=0.8 terse; dark=0 turns one off."""
        from softlore.cli.options import parse_strength
        from softlore.prompts.vector_folder import fitting_vectors

        known = self.story.settings.vectors
        given = dict(parse_strength(word, "/vector") for word in words_of(text, "/vector"))
        for name in (name for name in given if not given[name] and name not in known):
            raise ConfigError(
                f"/vector {name}=0: the story has no vector of that name; expected one of "
                f"{', '.join(known) or 'none'}; check the name"
            )
        fitting_vectors(self.session.model, {n: one for n, one in given.items() if one})
        if text:
            self.story.set(vectors=known | given)
        now = self.story.settings.vectors.items()
        told = " ".join(f"{name}={strength:g}" for name, strength in now)
        click.echo(told or "(none; softlore vector inspect lists them)")

    def change(self, text: str) -> None:
        """Change an entry from here on: /change NAME = TEXT; nothing after = ends it."""
        name, equals, told = (part.strip() for part in text.partition("="))
        if equals:
            known = [entry.name for entry in self.session.composer.entries]
            if name not in known and not told:
                raise ConfigError(
                    f"/change {name}: there is no such entry to end; expected one of "
                    f"{', '.join(known) or 'none'}; check the name"
                )
            self.story.change_entry(name, told.replace("\\n", "\n"))
        elif name:
            raise ConfigError(
                f"/change {name}; expected NAME = TEXT, what the entry is from here on; write it so"
            )
        for place, change in self.story.changes():
            click.echo(f"since turn {place}, {change.entry}: {change.text or '(ended)'}")

    # looking -----------------------------------------------------------------------------------

    def lore(self, _: str = "") -> None:
        """Show which entries are active, in which form, and which are not and why."""
        from rich.console import Console

        Console().print(lore_table(self.session.plan_turn()))

    def tokens(self, _: str = "") -> None:
        """Show what fills the context."""
        show_parts(self.session.plan_turn(self._tokens))

    def show(self, _: str = "") -> None:
        """Show the whole story."""
        click.echo_via_pager(self.story.text) if _is_terminal() else click.echo(self.story.text)

    def save(self, path: str) -> None:
        """Write the story to a file, by its ending: /save FILE.md, .txt or .json (KoboldAI)."""
        if not path:
            click.echo("every turn is saved as it is written; /save FILE exports the story")
            return
        from softlore.story.files import write_story

        write_story(self.story, Path(path).expanduser())
        click.echo(f"wrote {path}")

    def help(self, _: str = "") -> None:
        """List the commands."""
        for name in COMMANDS:
            summary = (getattr(Terminal, name).__doc__ or "").split("\n")[0]
            click.echo(f"/{name:9} {summary}")

    def quit(self, _: str = "") -> str:
        """Leave; the story is saved already."""
        return "quit"


# What can be undone, in words.
OPERATIONS = {
    "add": "a new turn",
    "edit": "a change of the text",
    "cut": "taking turns off",
    "go to": "going to another branch",
    "set": "a change of the settings",
}
COMMANDS = (
    "next", "retry", "undo", "redo", "edit", "keep", "cast", "memory", "chapters", "note", "lore",
    "change", "vector", "tokens", "set", "branches", "go", "show", "save", "help", "quit",
)  # fmt: skip


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
