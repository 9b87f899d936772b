"""Turns: the pieces of a story, by whom each is, and what hangs on a turn beside its text."""

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
ROOT = 0  # the place before a first turn
MAX_TEXT = 2**24  # characters of one turn; the longest novels have a quarter of that
MAX_DATA = 2**20  # characters of JSON of one turn
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True, slots=True)
class Turn:
    """A piece of a story. Its text never changes: an edit makes another turn.

    Attributes:
        id: its number in the story, in the order of making, from 1.
        parent: the turn it follows; ROOT (0) for a first one.
        by: "writer" or "model".
        created: ISO 8601 in UTC, to the second.
        json: what is kept with the turn, as it lies in the file; `data` reads it.
    """

    id: int
    parent: int
    by: By
    text: str
    created: str
    json: str = "{}"

    @property
    def data(self) -> dict[str, Any]:
        """What is kept with the turn, a copy. Raises StoryFileError if it is damaged."""
        try:
            data = plain(json.loads(self.json))
        except (ValueError, RecursionError) as error:
            raise StoryFileError(
                f"what is kept with turn {self.id} cannot be read ({error!s:.120}); expected "
                "JSON; the file is damaged: go back to a copy of it"
            ) from None
        if not isinstance(data, dict):
            raise StoryFileError(
                f"what is kept with turn {self.id} is {data!r:.60}; expected a JSON object; the "
                "file is damaged: go back to a copy of it"
            )
        return data


@dataclass(frozen=True)
class Branch:
    """A way in which the story has ended, or could.

    Attributes:
        id: its last turn; `story.go_to(branch.id)` continues there.
        created: when that turn was written.
        turns: how many turns it has.
        shared: how many of them are turns of the story as it stands.
        words: where it leaves the story as it stands; of its last turn if it does not.
        current: whether the story stands at its end.
    """

    id: int
    created: str
    turns: int
    shared: int
    words: str
    current: bool


@dataclass(frozen=True)
class StoryDraft:
    """A story that is in no file yet, or comes from another program's.

    Attributes:
        turns: by whom, and text, oldest first.
        lorebook: what lore came along, as plain JSON in the form of the file; None for none.
    """

    settings: StorySettings = field(default_factory=StorySettings)
    turns: tuple[tuple[By, str], ...] = ()
    lorebook: Any = None

    def __post_init__(self) -> None:
        for by, text in self.turns:
            clean_by(by)
            clean_text(text)

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.turns)


def now() -> str:
    """The time, ISO 8601 in UTC, to the second: `2026-11-23T19:10:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clean_text(text: object) -> str:
    """Returns `text`, or raises StoryError unless a turn can hold it."""
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
                f"a turn's text holds half a character (a lone surrogate) at {error.start}; "
                "expected Unicode text; remove that character"
            ) from None
    return text


def clean_by(by: object) -> By:
    """Returns `by`, or raises StoryError unless it is one of those who write."""
    if by not in BY:
        raise StoryError(f"a turn is by {by!r:.80}; expected 'writer' or 'model'; say which")
    return by


def clean_data(data: Mapping[str, Any] | None) -> str:
    """Returns `data` as JSON, or raises StoryError unless JSON can hold it."""
    try:
        text = json.dumps(plain(dict(data or {})), ensure_ascii=False)
    except (ValueError, TypeError) as error:
        raise StoryError(f"what is to be kept with a turn is no plain JSON: {error}") from None
    if len(text) > MAX_DATA:
        raise StoryError(
            f"what is to be kept with a turn is {len(text):,} characters long; expected at most "
            f"{MAX_DATA:,}; keep less"
        )
    return text


def number_of(turn: Turn | int) -> int:
    """The number of a turn, or ROOT. Raises StoryError for what cannot be one."""
    number = turn.id if isinstance(turn, Turn) else turn
    if not isinstance(number, int) or isinstance(number, bool) or not ROOT <= number < 2**63:
        raise StoryError(f"{number!r:.80} is no turn's number; expected a turn, or its number")
    return number


def place_of(number: int, path: Sequence[Turn]) -> int | None:
    """Where the turn of that number stands in a path, along which numbers grow; None if not."""
    place = bisect.bisect_left(path, number, key=lambda turn: turn.id)
    return place if place < len(path) and path[place].id == number else None


def turn_from_row(row: tuple[Any, ...]) -> Turn:
    """A row (id, parent, by, text, created, data) as a turn; ValueError unless it is one."""
    number, parent, by, text, created, data = row
    if parent is None:
        parent = ROOT
    if type(number) is not int or type(parent) is not int or not ROOT <= parent < number:
        raise ValueError(f"turn {number!r:.40} follows {parent!r:.40}")
    if by not in BY:
        raise ValueError(f"turn {number} is by {by!r:.40}")
    if type(text) is not str or len(text) > MAX_TEXT:
        raise ValueError(f"turn {number} has no text, or too long a one")
    if type(created) is not str or not _TIME.fullmatch(created):
        raise ValueError(f"turn {number} was made at {created!r:.40}")
    if type(data) is not str or len(data) > MAX_DATA:
        raise ValueError(f"turn {number} has no data, or too much")
    return Turn(number, parent, by, text, created, data)
