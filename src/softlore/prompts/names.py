"""What a soft prompt may be called. The name stands in text as `[[soft:NAME]]`."""

from __future__ import annotations

import unicodedata

from softlore.errors import PromptError

MAX_NAME = 128  # characters
_PUNCTUATION = " -_.'"


def clean_name(name: object) -> str:
    """Returns `name` in Unicode's composed form (NFC), or raises PromptError.

    Letters, marks and digits of any script, space and `-_.'`; at least one letter or digit; no
    space at either end; at most 128 characters.
    """
    if not isinstance(name, str):
        raise PromptError(f"a prompt's name is a string; got {type(name).__name__} {name!r:.80}")
    wrong = _too_long_to_compose(name)
    composed = name if wrong else unicodedata.normalize("NFC", name)
    wrong = wrong or _what_is_wrong(composed)
    if wrong:
        raise PromptError(
            f"prompt name {name!r:.160} {wrong}; expected 1 to {MAX_NAME} letters, digits, "
            "spaces and any of -_.' (such as 'dog' or \"Emma's house\"); give it another name"
        )
    return composed


def is_name(name: str) -> bool:
    """Whether `name`, once composed, can name a prompt."""
    if _too_long_to_compose(name):
        return False
    return not _what_is_wrong(unicodedata.normalize("NFC", name))


def _too_long_to_compose(name: str) -> str:
    """Composing takes the square of the length for marks in a row: a minute for 100,000."""
    return f"is {len(name)} characters long" if len(name) > 8 * MAX_NAME else ""


def _what_is_wrong(name: str) -> str:
    if len(name) > MAX_NAME:
        return f"is {len(name)} characters long"
    for character in name:
        if character not in _PUNCTUATION and unicodedata.category(character)[0] not in "LMN":
            return f"holds {character!r}"
    if not any(character.isalnum() for character in name):
        return "holds no letter or digit"
    if name != name.strip():
        return "begins or ends with a space"
    return ""
