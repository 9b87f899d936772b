"""Turns, branches and drafts of stories, and the checks of what a turn may hold."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from softlore.errors import StoryError, StoryFileError
from softlore.lore.plain import plain
from softlore.story.settings import StorySettings

By = Literal["writer", "model"]
BY: tuple[By, ...] = get_args(By)
ROOT = 0  # the parent of a first turn
MAX_TEXT = 2**24  # characters of one turn: four times the longest novels
MAX_DATA = 2**20  # characters of JSON of one turn
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True, slots=True)
class Turn:
    """A part of a story by one author. It never changes: an edit makes another turn.

    Attributes:
        id: its number in the story, from 1, in the order of creation.
        parent: the number of the turn it follows; ROOT (0) for a first one.
        created: ISO 8601 in UTC, to the second.
        json: the data saved with the turn, as in the file; `data` parses it.
    """

    id: int
    parent: int
    by: By
    text: str
    created: str
    json: str = "{}"

    @property
    def data(self) -> dict[str, Any]:
        """The data saved with the turn, a copy. Raises StoryFileError if they are damaged."""
        try:
            data = plain(json.loads(self.json))
            if not isinstance(data, dict):
                raise ValueError(f"{data!r:.60} is not a JSON object")
        except (ValueError, RecursionError) as error:
            raise StoryFileError(
                f"the data of turn {self.id} cannot be read ({error!s:.120}); expected a JSON "
                "object; the file is damaged: restore a copy of it"
            ) from None
        return data


@dataclass(frozen=True)
class StoryBranch:
    """A path of turns from a first one to one that no other follows.

    Attributes:
        id: its last turn; `story.go_to(branch.id)` continues there.
        created: when that turn was added.
        turns: its number of turns.
        shared: how many of them are also turns of the story as it is now.
        words: the first words that differ from the story; of its last turn if none does.
        current: whether all of its turns are the story's.
    """

    id: int
    created: str
    turns: int
    shared: int
    words: str
    current: bool


@dataclass(frozen=True)
class StoryDraft:
    """A story outside of a story file, to create one from or to write in another format.

    Attributes:
        turns: author and text of each, oldest first.
        lorebook: lore of an imported file, as plain JSON in that file's form; None for none.
        alternatives: texts in place of the first turn, by its author: other branches.
    """

    settings: StorySettings = field(default_factory=StorySettings)
    turns: tuple[tuple[By, str], ...] = ()
    lorebook: Any = None
    alternatives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for by, text in self.turns:
            check_by(by)
            check_text(text)
        for text in self.alternatives:
            check_text(text)

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.turns)


def now() -> str:
    """The time, ISO 8601 in UTC, to the second: `2026-11-23T19:10:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_text(text: object) -> str:
    """Returns `text`. Raises StoryError unless it can be the text of a turn."""
    if not isinstance(text, str):
        raise StoryError(f"a turn's text is {type(text).__name__} {text!r:.80}; expected a string")
    if len(text) > MAX_TEXT:
        raise StoryError(
            f"a turn's text is {len(text):,} characters long; expected at most {MAX_TEXT:,}; add "
            "it in several turns"
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise StoryError(
                f"a turn's text has a lone surrogate (half a character) at {error.start}; "
                "expected Unicode text; remove that character"
            ) from None
    return text


def check_by(by: object) -> By:
    """Returns `by`. Raises StoryError unless it is an author of turns."""
    if by not in BY:
        raise StoryError(
            f"a turn has the author {by!r:.80}; expected 'writer' or 'model'; use one of them"
        )
    return by


def check_data(data: Mapping[str, Any] | None) -> str:
    """Returns `data` as JSON. Raises StoryError if it cannot be saved with a turn."""
    try:
        text = json.dumps(plain(dict(data or {})), ensure_ascii=False)
    except (ValueError, TypeError) as error:
        raise StoryError(f"the data of a turn are not plain JSON: {error}") from None
    if len(text) > MAX_DATA:
        raise StoryError(
            f"the data of a turn are {len(text):,} characters long; expected at most "
            f"{MAX_DATA:,}; save less with it"
        )
    return text


def number_of(turn: Turn | int) -> int:
    """The number of a turn, or ROOT. Raises StoryError for anything else."""
    number = turn.id if isinstance(turn, Turn) else turn
    if not isinstance(number, int) or isinstance(number, bool) or not ROOT <= number < 2**63:
        raise StoryError(f"{number!r:.80} is not a turn's number; expected a turn, or its number")
    return number


def index_of(number: int, path: Sequence[Turn]) -> int | None:
    """The index of a turn in a path, along which numbers grow; None if it is not there."""
    index = bisect.bisect_left(path, number, key=lambda turn: turn.id)
    return index if index < len(path) and path[index].id == number else None


def turn_from_row(row: tuple[Any, ...]) -> Turn:
    """Makes a turn of a row (id, parent, by, text, created, data). Raises ValueError."""
    number, parent, by, text, created, data = row
    parent = ROOT if parent is None else parent
    if type(number) is not int or type(parent) is not int or not ROOT <= parent < number:
        raise ValueError(f"turn {number!r:.40} follows {parent!r:.40}")
    if by not in BY:
        raise ValueError(f"turn {number} is by {by!r:.40}")
    if type(text) is not str or len(text) > MAX_TEXT:
        raise ValueError(f"the text of turn {number} is missing or too long")
    if type(created) is not str or not _TIME.fullmatch(created):
        raise ValueError(f"turn {number} was created at {created!r:.40}")
    if type(data) is not str or len(data) > MAX_DATA:
        raise ValueError(f"the data of turn {number} are missing or too long")
    return Turn(number, parent, by, text, created, data)
