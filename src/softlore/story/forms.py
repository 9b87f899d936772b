"""Forms of a story: prose, a chat of named speakers, or messages in the model's chat template.

A story's text is the same in all of them, what its turns say in a row. What differs is how a turn
begins, and what the model reads::

    prose      … She went down. │ The harbour lay
    chat       Ada: Who are you? │ Marta: I mend clocks. │ ends before the next speaker's name
    instruct   <|user|>Who are you?<|end|> │ <|assistant|>I mend clocks. │ ends by itself
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from softlore.context.chat import Chat, render_chat
from softlore.errors import InputError, PromptMismatchError, StoryError
from softlore.lore.macros import CHARACTER, MacroNames
from softlore.model import LanguageModel
from softlore.prompts import Context, SoftPrompt
from softlore.story.changes import StoryLore
from softlore.story.layout import parse_context
from softlore.story.seams import join_turns
from softlore.story.settings import StorySettings
from softlore.story.turns import Turn

NARRATOR = "Narrator"  # speaks where a chat has no cast
RECENT = 16  # turns among which the last speaker is looked for
BEGIN = "Begin."  # said by the writer where a template wants him first
PARAGRAPH = "\n\n"  # between messages, in the story's text


@dataclass(frozen=True)
class Reading:
    """What the model reads of a story's turns, and how its own begins.

    Attributes:
        texts: the turns, the last one with what introduces the model's.
        memory: replaces the settings' memory; None: it stays.
        lead: what the model's turn begins with, before its own words.
        stop: what ends them.
        strip: whether they begin with a space that does not belong to them.
        speaker: who speaks, in a chat.
        lengths: by text, the characters of the story that it has; None: its own.
    """

    texts: list[str]
    memory: Context | None = None
    lead: str = ""
    stop: tuple[str, ...] = ()
    strip: bool = False
    speaker: str = ""
    lengths: list[int] | None = None

    def omitted(self, characters: int) -> int:
        """Characters of the story's beginning that are out, where so many of the texts' are."""
        if self.lengths is None:
            return characters
        out = 0
        for text, length in zip(self.texts, self.lengths, strict=True):
            characters -= len(text)
            if characters < 0:
                break
            out += length
        return out


def typed(story_text: str, text: str, settings: StorySettings, names: MacroNames) -> str:
    """A turn of the writer as it is added to the story.

    In prose it begins with a space where one belongs, in a chat with the writer's name unless it
    begins with a speaker's, and as a message in a new paragraph.
    """
    if settings.form == "prose" or not text:
        return join_turns(story_text, text)
    if settings.form == "instruct":
        return _gap(story_text, PARAGRAPH) + text
    speakers = [names.user, *cast_of(settings, names)]
    named = any(text.startswith(f"{name}:") for name in speakers)
    return _gap(story_text, "\n") + (text if named else f"{names.user}: {text}")


def cast_of(settings: StorySettings, names: MacroNames) -> dict[str, list[str]]:
    """The speakers that the model writes for, each with its own lore.

    Without a cast that is the character of the lorebook or card, or a narrator.
    """
    return settings.cast or {names.char if names.char != CHARACTER else NARRATOR: []}


def read_turns(
    model: LanguageModel,
    settings: StorySettings,
    turns: Sequence[Turn],
    names: MacroNames,
    prompts: Mapping[str, SoftPrompt],
    speaker: str = "",
    within: bool = False,
) -> Reading:
    """What the model reads of a story's turns, in the story's form.

    Args:
        speaker: who speaks next in a chat; else whom the last turn names, or whose turn it is.
        within: the model goes on within the last turn.

    Raises:
        StoryError: the speaker is not of the cast, or the story is no chat.
        InputError: the model's chat template refuses the story.
    """
    cast = cast_of(settings, names) if settings.form == "chat" else {}
    if speaker and speaker not in cast:
        expected = f"one of {', '.join(cast)}" if cast else "a story in the form chat"
        raise StoryError(
            f"{speaker!r:.80} is not a speaker of this story; expected {expected}; add the "
            "speaker to its cast"
        )
    texts = [turn.text for turn in turns]
    if settings.form == "prose" or not (turns or cast):
        return Reading(texts)
    if settings.form == "instruct":
        return _messages(model, turns, names.fill(settings.memory), prompts)
    stop = tuple(f"\n{name}:" for name in dict.fromkeys([names.user, *cast]))
    if within:
        return Reading(texts, stop=stop)
    speaker = speaker or next_speaker(list(cast), texts)
    lead = _gap("".join(texts[-1:]), "\n") + f"{speaker}:"
    return Reading([*texts[:-1], "".join(texts[-1:]) + lead], None, lead, stop, speaker=speaker)


def next_speaker(cast: Sequence[str], texts: Sequence[str]) -> str:
    """Who speaks next: whom the last line names, else the one after who spoke last.

    A word of a name is enough, if no other speaker has it.
    """
    lines = "".join(texts[-RECENT:]).rstrip().split("\n")
    spoke = [name for line in lines for name in cast if line.startswith(f"{name}:")]
    others = [name for name in cast if not lines[-1].startswith(f"{name}:")]
    named = {name: _last_named(_names_of(name, cast), lines[-1]) for name in others}
    if max(named.values(), default=-1) >= 0:
        return max(named, key=named.__getitem__)
    return cast[(cast.index(spoke[-1]) + 1) % len(cast)] if spoke else cast[0]


def _names_of(name: str, cast: Sequence[str]) -> list[str]:
    """The name, and its words of three letters or more that are no other speaker's."""
    foreign = {word for other in cast if other != name for word in other.split()}
    return [name, *(word for word in name.split() if len(word) >= 3 and word not in foreign)]


def _last_named(names: Sequence[str], line: str) -> int:
    """Where the last of the names begins in a line; -1: there is none."""
    pattern = "|".join(map(re.escape, names))
    return max((m.start() for m in re.finditer(rf"\b(?:{pattern})\b", line)), default=-1)


def with_own_lore(
    model: LanguageModel,
    lore: StoryLore,
    cast: Mapping[str, Sequence[str]],
    speaker: str,
    prompts: Mapping[str, SoftPrompt],
) -> tuple[StoryLore, list[SoftPrompt], dict[str, str]]:
    """Lore in which a speaker's own entries are active; its own soft prompts; and why others not.

    Its own are those of the cast, and those with its name, which need not be there.
    """
    if not speaker:
        return lore, [], {}
    named = cast.get(speaker, ())
    own = {*named, speaker}
    entries = [
        entry.model_copy(update={"constant": True}) if entry.name in own else entry
        for entry in lore.entries
    ]
    always: list[SoftPrompt] = []
    missing: dict[str, str] = {}
    for name in sorted(own - {entry.name for entry in entries}):
        prompt = prompts.get(name)
        try:
            if prompt is not None:
                model.check_prompt(prompt)
                always.append(prompt)
            elif name in named:
                missing[name] = f"{speaker} has it, and no entry or soft prompt is called so"
        except PromptMismatchError as error:
            missing[name] = str(error)
    return replace(lore, entries=entries), always, missing


@dataclass(frozen=True)
class _StoryMessage:
    role: str
    text: str
    calls: tuple[Any, ...] = ()

    def for_template(self, template: str) -> dict[str, Any]:
        return {"role": self.role, "content": self.text}


def _messages(
    model: LanguageModel, turns: Sequence[Turn], memory: str, prompts: Mapping[str, SoftPrompt]
) -> Reading:
    """The turns as messages: the memory is the system's, neighbours by one author are one."""
    groups = [(by, list(group)) for by, group in groupby(turns, key=lambda turn: turn.by)]
    said = [("".join(turn.text for turn in group), by) for by, group in groups]
    lengths = [len(text) for text, _ in said]
    messages = [
        _StoryMessage("assistant" if by == "model" else "user", text.strip()) for text, by in said
    ]
    if messages[-1].role == "assistant":  # goes on where it ends
        messages[-1] = _StoryMessage("assistant", said[-1][0].lstrip())
    system = [_StoryMessage("system", memory)] if memory else []
    try:
        chat, extra = render_chat(model, [*system, *messages]), 0
    except InputError:
        chat, extra = _render_without_system(model, messages, memory)
    texts = [chat.turns] if isinstance(chat.turns, str) else chat.turns
    counts = chat.counts or (len(messages) + extra,)
    starts, at = [], 0
    for number, count in enumerate(counts):
        count -= extra if number == 0 else 0
        starts.append(sum(lengths[at : at + count]))
        at += count
    begins_anew = messages[-1].role == "user"
    lead = _gap(said[-1][0], PARAGRAPH) if begins_anew else ""
    read = parse_context(chat.memory, prompts)
    return Reading(texts, read, lead, chat.stop, begins_anew, lengths=starts)


def _render_without_system(
    model: LanguageModel, messages: Sequence[_StoryMessage], memory: str
) -> tuple[Chat, int]:
    """For templates that know no system, and want the writer first; and messages added to that."""
    first, *rest = messages
    extra = first.role == "assistant"
    begun = [_StoryMessage("user", BEGIN), first] if extra else [first]
    begun[0] = _StoryMessage("user", "\n\n".join(filter(None, [memory, begun[0].text])))
    return render_chat(model, [*begun, *rest]), int(extra)


def _gap(before: str, gap: str) -> str:
    """The line breaks of a gap that a text does not end with yet; none after nothing."""
    if not before:
        return ""
    return gap[len(before) - len(before.rstrip("\n")) :]
