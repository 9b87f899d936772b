"""Reads the input of `softlore story`: plain lines, or a line editor with a status bar."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlore.errors import ConfigError, SoftloreError

if TYPE_CHECKING:
    from softlore.story.session import StorySession

LineReader = Callable[[str], str]  # from the line's initial text to what was typed


def line_reader() -> LineReader:
    """Lines of standard input as they are: for pipes and scripts."""
    import sys

    def read(given: str) -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return read


def editor_reader(session: StorySession, history: Path, commands: Sequence[str]) -> LineReader:
    """A line editor with history, completion and a bar; Alt-Enter starts a new line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.patch_stdout import patch_stdout

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    names = [f"[[soft:{name}]]" for name in session.composer.prompts]
    words = ["/" + name for name in commands] + names
    prompt: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)),
        completer=WordCompleter(words, sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        bottom_toolbar=Bar(session),
    )

    def read(given: str) -> str:
        with patch_stdout():
            return prompt.prompt("> ", default=given)

    return read


class Bar:
    """The line below the input: the story's length, and the context the model would read now.

    It is rendered at every key, so it is computed only when the story has changed.
    """

    def __init__(self, session: StorySession) -> None:
        self._session = session
        self._seen: tuple[Any, ...] | None = None
        self._text = ""

    def __call__(self) -> str:
        story = self._session.story
        seen = (len(story), story.head, story.settings, self._session.plan)
        if seen != self._seen:
            self._text = f" {story.name} · {turns(len(story))}{self._read()}"
            self._seen = seen
        return self._text

    def _read(self) -> str:
        if self._session.plan is None:  # the gain of lore is not measured before it is needed
            return ""
        try:
            plan = self._session.plan_turn()
        except SoftloreError:  # such as no room: the next turn reports it
            return ""
        lore = ", ".join(f"{name} ({form})" for name, form in plan.lore.items()) or "no lore"
        return f" · {plan.tokens}/{plan.limit} tokens · {lore}"


def turns(count: int) -> str:
    """A number of turns: "1 turn", "2 turns"."""
    return f"{count} turn" if count == 1 else f"{count} turns"


def words_of(text: str, command: str) -> list[str]:
    """The words of a line; double quotes hold several together."""
    words = shlex.shlex(text, posix=True)
    words.whitespace_split, words.quotes, words.escape, words.commenters = True, '"', "", ""
    try:
        return list(words)
    except ValueError:
        raise ConfigError(
            f"{command} {text!r:.60} has a quotation mark too few; expected two, or none; fix it"
        ) from None


def number_of(name: str, value: str) -> int | float:
    """The number of a setting that is written as `name=value`. Raises ConfigError."""
    try:
        return int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        raise ConfigError(
            f"/set {name}={value!r}; expected name=number, such as temperature=0.7; fix it"
        ) from None
