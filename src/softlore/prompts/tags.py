"""Tags, by which plain text names soft prompts and control vectors.

`[[soft:NAME]]` stands where its prompt is read; `[[vector:NAME=0.8]]` steers all of the text,
wherever it stands, and takes no place in it. A tag that is meant literally is written with a
backslash, `[[soft:\\NAME]]`; of several backslashes one is removed.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from softlore.errors import UnknownPromptError
from softlore.prompts.fields import is_name

MAX_TAG = 400  # characters, more than any has
_VECTOR = re.compile(
    r"\[\[vector:(?P<slashes>\\*)(?P<name>[^\[\]\\\r\n=]{1,300})"
    r"(?:=(?P<strength>[-+]?\d{1,9}(?:\.\d{0,9})?))?\]\]"
)
_TAG = re.compile(r"\[\[soft:(?P<slashes>\\*)(?P<name>[^\[\]\\\r\n]{1,300})\]\]")

T = TypeVar("T")


def tag_of(name: str) -> str:
    """The tag of a prompt."""
    return f"[[soft:{name}]]"


def split_tags(text: str, named: Mapping[str, T]) -> list[str | T]:
    """Text and the prompts that its tags name, in order; escaped tags become text.

    Raises UnknownPromptError for a name that is not in `named`.
    """
    pieces: list[str | T] = []
    end = 0
    for match, slashes, name in _tags(text):
        pieces.append(text[end : match.start()])
        pieces.append(_with_slashes(match, slashes - 1) if slashes else _find(name, named))
        end = match.end()
    return [*pieces, text[end:]]


def split_vector_tags(text: str) -> tuple[str, dict[str, float]]:
    """The text without its tags of control vectors, and the vectors' strengths by name.

    Without a strength it is 1; of several tags of one name the last counts. Escaped tags become
    text; what only resembles one stays.
    """
    strengths: dict[str, float] = {}

    def found(match: re.Match[str]) -> str:
        name, slashes = match["name"].strip(" "), match["slashes"]
        if not is_name(name):
            return match[0]
        if slashes:
            return match[0].replace(slashes, slashes[1:], 1)
        strengths[unicodedata.normalize("NFC", name)] = float(match["strength"] or 1)
        return ""

    return _VECTOR.sub(found, text), strengths


def escape_tags(text: str) -> str:
    """Text in which every tag is literal, for `split_tags` to give back."""
    parts: list[str] = []
    end = 0
    for match, slashes, _ in _tags(text):
        parts += text[end : match.start()], _with_slashes(match, slashes + 1)
        end = match.end()
    return "".join((*parts, text[end:]))


def past_tag(text: str, start: int) -> int:
    """Where to cut the beginning of a text: `start`, or the end of the tag around it."""
    start = max(0, start)
    for tag in _TAG.finditer(text, max(0, start - MAX_TAG)):
        if tag.start() >= start:
            break
        if start < tag.end():
            return tag.end()
    return start


def drop_cut_tag(text: str, names: Iterable[str]) -> str:
    """Removes the rest of a tag of which the beginning was cut off (`dog]] ran`)."""
    before, bracket, after = text.partition("]")
    if not bracket:
        return text
    rest = before + ("]]" if after.startswith("]") else "]")
    if any(tag_of(name) != rest and tag_of(name).endswith(rest) for name in names):
        return text[len(rest) :]
    return text


def _tags(text: str) -> Iterator[tuple[re.Match[str], int, str]]:
    """Each tag with its number of backslashes and its name; what only resembles one is skipped."""
    for match in _TAG.finditer(text):
        name = match["name"].strip(" ")
        if is_name(name):
            yield match, len(match["slashes"]), unicodedata.normalize("NFC", name)


def _with_slashes(match: re.Match[str], slashes: int) -> str:
    return "[[soft:" + "\\" * slashes + match["name"] + "]]"


def _find(name: str, named: Mapping[str, T]) -> T:
    if name in named:
        return named[name]
    known = {key.casefold(): key for key in named}
    close = [known[key] for key in difflib.get_close_matches(name.casefold(), known, n=3)]
    if close:
        hint = "did you mean " + " or ".join(map(tag_of, close)) + "?"
    elif known:
        first = ", ".join(map(repr, sorted(named)[:5]))
        hint = f"known: {first}{' …' if len(known) > 5 else ''}"
    else:
        hint = "no prompts were given; train one, or name the folder that holds them"
    raise UnknownPromptError(
        f"the text names the prompt {tag_of(name)}, which is not available; {hint} "
        f"(to write the tag literally: [[soft:\\{name}]])"
    )
