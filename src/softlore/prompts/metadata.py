"""What a soft prompt's metadata may hold: text that is text, JSON that is JSON."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from softlore.errors import PromptError

MAX_DEPTH = 16  # of nested lists and objects


def now() -> str:
    """The time, ISO 8601 in UTC, to the second: `2026-11-23T19:10:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clean_text(field: str, value: object) -> str:
    """Returns `value`, or raises PromptError unless it is text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise PromptError(
            f"{field} is {type(value).__name__} {value!r:.80}; expected a string (an empty one if "
            "there is nothing to say)"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{field} holds half a character (a lone surrogate) at {error.start}; expected "
            "Unicode text; remove that character"
        ) from None
    return value


def clean_created(value: object) -> str:
    """Returns the time unchanged, or raises PromptError unless it is UTC in ISO 8601, or empty."""
    text = clean_text("created", value)
    try:
        if not text or datetime.fromisoformat(text).utcoffset() == timedelta(0):
            return text
    except ValueError:
        pass
    raise PromptError(
        f"created is {text!r:.80}; expected ISO 8601 in UTC, such as '2026-11-23T19:10:00Z', or "
        "an empty string if it is not known"
    )


def clean_json(field: str, value: object) -> dict[str, Any]:
    """Returns a deep copy of a JSON object as a file would give it back, or raises PromptError.

    Numbers are finite, keys are strings, depth is at most 16. Tuples become lists.
    """
    if not isinstance(value, dict):
        raise PromptError(f"{field} is {type(value).__name__}; expected a dict of JSON values")
    _walk(field, value, MAX_DEPTH)
    try:
        text = json.dumps(value, allow_nan=False)
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise PromptError(
            f"{field} cannot be kept as JSON: {error}; expected strings, finite numbers, true, "
            "false, None, and lists and dicts of these; convert the value, or leave it out"
        ) from None


def clean_extra(value: object, known: frozenset[str]) -> dict[str, str]:
    """Returns a copy of the metadata keys this version does not know, or raises PromptError."""
    if not isinstance(value, dict):
        raise PromptError(f"extra is {type(value).__name__}; expected a dict of strings")
    for key, text in value.items():
        clean_text("a key of extra", key)
        clean_text(f"extra[{key!r:.80}]", text)
        if key in known:
            raise PromptError(f"extra holds {key!r}, a key of the format's own; set that field")
    return copy.copy(value)


def _walk(field: str, value: object, depth: int) -> None:
    """Refuses what json.dumps would silently change or choke on: odd keys, depth, surrogates."""
    if isinstance(value, str):
        clean_text(field, value)
    elif isinstance(value, dict | list | tuple):
        if depth == 0:
            raise PromptError(f"{field} is nested more than {MAX_DEPTH} deep; flatten it")
        if isinstance(value, dict):
            for key in value:
                clean_text(f"a key of {field}", key)
            value = list(value.values())
        for item in value:
            _walk(field, item, depth - 1)
