"""Chapters: what has left a story's context, condensed to a summary and a soft prompt each.

A chapter is an entry of a hidden lorebook beside the story, `NAME.chapters/chapters.yaml`, and its
soft prompt is a file in that folder. It belongs to the turn that it ends in, so it is there on
every branch that has this turn, and stays through edits. It takes part in the choice under the
budget like any lore, once what it tells is out of the context.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from softlore.disk import storage_error
from softlore.errors import SoftloreError, StoryError
from softlore.lore import Block, Entry, Lorebook
from softlore.lore.sentences import sentences, starts
from softlore.model import LanguageModel
from softlore.prompts import PromptLibrary, SoftPrompt
from softlore.story.changes import StoryLore
from softlore.story.library import chapters_folder
from softlore.story.turns import Turn
from softlore.story.view import StoryView

FILE = "chapters.yaml"
LONGEST, SHARE = 1024, 3  # tokens of a chapter: at most that, and that part of the context
SHORTEST_SHARE = 4  # of the longest: what has left must be as much to become a chapter
CHARACTERS = 4  # that a token has, roughly
MEASURED = 12  # sentences of a chapter that the gains of its forms are measured on
LEAST_WORDS = 6  # of such a sentence
PLACE = "chapter"  # the field of an entry that says where it belongs

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chapter:
    """A chapter on a path of turns.

    Attributes:
        entry: with the summary as its text.
        start, end: the characters of the path that it tells of.
        prompt: of the model at hand; None while there is none.
    """

    entry: Entry
    start: int
    end: int
    prompt: SoftPrompt | None = None

    @property
    def place(self) -> dict[str, Any]:
        """Where it belongs, whether its prompt is `trained`, and whether it is `pinned`."""
        place: dict[str, Any] = self.entry.extra[PLACE]
        return place

    @property
    def pinned(self) -> bool:
        return bool(self.place.get("pinned"))

    @property
    def state(self) -> str:
        """What there is of it, in words."""
        if not self.entry.enabled:
            return "forgotten"
        forms = ["pinned" if self.pinned else "summary"]
        if self.prompt is not None:
            more = "" if self.place.get("trained") else ", to be trained further"
            forms.append(f"soft prompt of {len(self.prompt)} tokens{more}")
        return " and ".join(forms)


class Chapters:
    """The chapters of a story. Its methods may be called from several threads."""

    def __init__(self, story: StoryView, model: LanguageModel) -> None:
        self.folder = chapters_folder(story.path)
        self.library = PromptLibrary(self.folder)
        self.model = model
        self._story = story
        self._lock = threading.RLock()
        self._read: tuple[tuple[int, int] | None, list[Entry]] = (None, [])

    @property
    def _file(self) -> Path:
        return self.folder / FILE

    def on_path(self, turns: Sequence[Turn], omitted: float = math.inf) -> list[Chapter]:
        """The chapters on a path of turns.

        `omitted`: only those of which half or more is in so many characters of its beginning.
        """
        entries = [(e, e.extra[PLACE]) for e in self._entries()]
        if not entries:
            return []
        places = self._story.places([place["turn"] for _, place in entries], turns)
        starts = [0, *accumulate(len(turn.text) for turn in turns)]
        found: list[tuple[int, Entry]] = []
        for (entry, place), at in zip(entries, places, strict=True):
            if at and self._is_of_story(place):
                offset = min(place["end"], len(turns[at - 1].text))
                found.append((starts[at - 1] + offset, entry))
        chapters: list[Chapter] = []
        for chapter_end, entry in sorted(found, key=lambda one: one[0]):
            start = chapters[-1].end if chapters else 0
            if start < chapter_end and (start + chapter_end) / 2 <= omitted:
                chapters.append(Chapter(entry, start, chapter_end, self._prompt(entry.name)))
        return chapters

    def next_part(self, turns: Sequence[Turn], omitted: int) -> tuple[int, int] | None:
        """The characters of a path that are to become its next chapter; None for too few.

        `omitted`: characters of its beginning that are out of the context.
        """
        chapters = self.on_path(turns)
        start = chapters[-1].end if chapters else 0
        context = self.model.context_length or math.inf
        longest = int(min(LONGEST, context // SHARE))
        shortest = longest * CHARACTERS // SHORTEST_SHARE
        if omitted - start < shortest:
            return None
        end = min(omitted, start + longest * CHARACTERS)
        text = "".join(turn.text for turn in turns)[start:end]
        if (tokens := len(self.model.encode(text))) > longest:
            text = text[: len(text) * longest // tokens]
        if start + len(text) < omitted:  # within the story: after a sentence
            cut = max(starts(text), default=0)
            text = text[:cut] if 2 * cut > len(text) else text
        return start, start + len(text)

    def add(self, turns: Sequence[Turn], start: int, end: int, summary: str) -> Entry:
        """Adds a chapter that tells of characters of a path. Raises StorageError."""
        with self._lock:
            entries = self._entries()
            number = 1 + max((e.order for e in entries), default=0)
            starts = [0, *accumulate(len(turn.text) for turn in turns)]
            at = next(i for i, after in enumerate(starts[1:]) if after >= end)
            origin = self._story.turn(self._story.origin(turns[at]))
            place = {"turn": origin.id, "created": origin.created, "end": end - starts[at]}
            text = "".join(turn.text for turn in turns)[start:end]
            entry = Entry(
                name=f"Chapter {number}",
                text=summary,
                held_out=_measured(text),
                constant=True,
                order=number,
                **{PLACE: place},
            )
            self._save([*entries, entry])
            return entry

    def change(self, name: str, text: str | None = None, **place: Any) -> None:
        """Changes the summary of a chapter, or facts in its `place`. Raises StoryError.

        A summary that the writer changes is pinned: it enters as it is, outside of the budget.
        """
        with self._lock:
            told: dict[str, Any] = {}
            if text is not None:
                if not text.strip():
                    raise StoryError(
                        f"the summary of {name!r} is empty; expected some text; write what the "
                        "story should remember, or forget the chapter"
                    )
                told = {"text": text.strip(), "use": "text", "ignore_budget": True}
                place |= {"pinned": True}
            self._update(name, {PLACE: self._find(name).extra[PLACE] | place, **told})

    def save_prompt(self, name: str, prompt: SoftPrompt, trained: bool) -> None:
        """Saves the soft prompt of a chapter. `trained`: it is not trained further."""
        with self._lock:
            self._find(name)
            self.library.save(prompt.replace(name=name))
            self.change(name, trained=trained)

    def forget(self, name: str) -> None:
        """Empties a chapter: it is not used, and its text is not condensed again."""
        with self._lock:
            self._update(name, {"enabled": False})

    # internals ---------------------------------------------------------------------------------

    def _update(self, name: str, fields: dict[str, Any]) -> None:
        entry = self._find(name)
        new = Entry(**entry.data() | fields)
        self._save([new if e is entry else e for e in self._entries()])

    def _find(self, name: str) -> Entry:
        entries = self._entries()
        for entry in entries:
            if entry.name == name:
                return entry
        raise StoryError(
            f"the story {self._story.name!r} has no chapter {name!r:.80}; expected one of "
            f"{', '.join(entry.name for entry in entries) or 'none'}; check the name"
        )

    def _entries(self) -> list[Entry]:
        """The entries in the file; none where it is missing or cannot be read."""
        with self._lock:
            try:
                status = self._file.stat()
            except OSError:
                return []
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp != self._read[0]:
                try:
                    entries = [e for e in Lorebook.load(self._file) if _is_placed(e.extra)]
                except SoftloreError as error:
                    _log.warning("the chapters of a story are left out: %s", error)
                    entries = []
                self._read = stamp, entries
            return self._read[1]

    def _save(self, entries: list[Entry]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make the folder", self.folder, error) from error
        Lorebook(name="chapters", entries=entries).save(self._file)

    def _is_of_story(self, place: Mapping[str, Any]) -> bool:
        """Whether the turn is the one that it was made for, not one of another story's."""
        try:
            return self._story.turn(place["turn"]).created == place.get("created")
        except StoryError:
            return False

    def _prompt(self, name: str) -> SoftPrompt | None:
        """A chapter's soft prompt; None if it is missing, or of another model."""
        try:
            prompt = self.library.get(name)
            if prompt is not None:
                self.model.check_prompt(prompt)
        except SoftloreError:
            return None
        return prompt


def _is_placed(extra: Mapping[str, Any]) -> bool:
    place = extra.get(PLACE)
    numbers = [place.get("turn"), place.get("end")] if isinstance(place, dict) else [None]
    return all(type(number) is int and number >= 0 for number in numbers)


def _measured(text: str) -> list[Block]:
    """Sentences of a chapter, cut in a third and a rest: its forms are measured on these."""
    cut = []
    for sentence in sentences(" ".join(text.split())):
        words = sentence.split(" ")
        if len(words) >= LEAST_WORDS:
            at = max(2, len(words) // 3)
            cut.append(Block(call=" ".join(words[:at]), responses=[" " + " ".join(words[at:])]))
    step = max(1, len(cut) // MEASURED)
    return cut[::step][:MEASURED]


def with_chapters(lore: StoryLore, chapters: Sequence[Chapter]) -> StoryLore:
    """Lore with chapters among its entries, except those whose names it has."""
    known = {entry.name for entry in lore.entries}
    chapters = [chapter for chapter in chapters if chapter.entry.name not in known]
    own = {one.entry.name: one.prompt for one in chapters if one.prompt is not None}
    return replace(lore, entries=[*lore.entries, *(one.entry for one in chapters)], own=own)
