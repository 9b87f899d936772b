"""Finds the keys of entries in texts: words, phrases and regular expressions.

A key is a word, a phrase, or `/pattern/flags` as JavaScript writes it. Lorebooks come from
strangers, so a pattern is checked before it is compiled, and searched for under a time limit.

Most keys of a book are in none of the texts. A plain key is therefore searched as a substring only
if all its trigrams (runs of three characters) are among the texts' trigrams, collected once.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import regex

from softlore.context.patterns import compile_pattern, split_pattern

KEY_SECONDS = 0.1  # limit of one search for one regular expression
TOTAL_SECONDS = 2.0  # limit of all such searches in one activation

# Scripts that write no spaces between words, or join particles to them: a word has no boundary
# there that could be checked, so that a key matches anywhere.
_SPACELESS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー"
)
_spaceless = regex.compile(rf"[{_SPACELESS}]", regex.V1)
_word = regex.compile(rf"[[\w\p{{M}}]--[{_SPACELESS}]]", regex.V1)


class PatternSearch:
    """Searches for regular expressions, within the time limits of one activation.

    `timeouts` has the keys that took too long, with the reason. They match nothing.
    """

    def __init__(self) -> None:
        self.timeouts: dict[str, str] = {}
        self._remaining = TOTAL_SECONDS

    def matches(self, key: str, pattern: Any, text: str) -> bool:
        if key in self.timeouts:
            return False
        if self._remaining <= 0:
            self.timeouts[key] = f"not searched for: others took over {TOTAL_SECONDS:g} s"
            return False
        start = time.perf_counter()
        try:
            return pattern.search(text, timeout=min(KEY_SECONDS, self._remaining)) is not None
        except (TimeoutError, MemoryError):
            self.timeouts[key] = f"given up after {KEY_SECONDS:g} s; make the pattern simpler"
            return False
        finally:
            self._remaining -= time.perf_counter() - start


class ScannedTexts:
    """Texts to search, the nearest first; `entries` are the names of those whose texts they are."""

    def __init__(self, texts: Sequence[str], entries: Sequence[str] = ()) -> None:
        self.texts, self.entries = list(texts), entries
        self._folded: dict[bool, tuple[list[str], set[str]]] = {}

    def folded(self, case_sensitive: bool) -> tuple[list[str], set[str]]:
        """Returns the normalized texts, and their trigrams."""
        if case_sensitive not in self._folded:
            texts = [fold(text, case_sensitive) for text in self.texts]
            self._folded[case_sensitive] = texts, set().union(*map(trigrams, texts))
        return self._folded[case_sensitive]


@dataclass(frozen=True, slots=True)
class _Substring:
    """A key that is searched as a substring; if `bounded`, only as a word by itself."""

    place: int
    text: str
    trigrams: frozenset[str]
    bounded: bool

    def is_in(self, text: str) -> bool:
        start = text.find(self.text)
        while start >= 0 and self.bounded:
            end = start + len(self.text)
            before, after = text[start - 1 : start] if start else "", text[end : end + 1]
            if not (_joined(before, self.text[0]) or _joined(after, self.text[-1])):
                return True
            start = text.find(self.text, start + 1)
        return start >= 0


@dataclass
class Keys:
    """An entry's keys, prepared for search. A key is identified by its place in the list.

    Attributes:
        size: the number of keys, including blank and invalid ones.
        invalid: keys that are no valid regular expression, with the reason. They match nothing.
    """

    size: int
    case_sensitive: bool
    substrings: list[_Substring] = field(default_factory=list)
    patterns: list[tuple[str, Any, int]] = field(default_factory=list)
    invalid: list[tuple[str, str]] = field(default_factory=list)

    def find(self, texts: ScannedTexts, search: PatternSearch) -> dict[int, int]:
        """Returns the places of the keys found, each with the place of the nearest text."""
        places: dict[int, int | None] = {}
        if self.substrings:
            folded, text_trigrams = texts.folded(self.case_sensitive)
            for substring in self.substrings:
                if substring.trigrams <= text_trigrams:
                    matches = (i for i, text in enumerate(folded) if substring.is_in(text))
                    places[substring.place] = next(matches, None)
        for key, pattern, place in self.patterns:
            # SillyTavern puts this character before every message, and keys may match it.
            mark = "\x01" if r"\x01" in key else ""
            matches = (
                i for i, text in enumerate(texts.texts) if search.matches(key, pattern, mark + text)
            )
            places[place] = next(matches, None)
        return {place: i for place, i in places.items() if i is not None}


@lru_cache(maxsize=2**15)
def prepare_keys(keys: tuple[str, ...], case_sensitive: bool, whole_words: bool) -> Keys:
    """Prepares keys for search.

    With `whole_words`, a key without a space in it must be a word by itself; as in SillyTavern, one
    with a space matches anywhere. Blank keys match nothing. Neither setting applies to
    `/pattern/flags`; a key that is not quite of that form is plain.
    """
    prepared = Keys(len(keys), case_sensitive)
    for place, key in enumerate(keys):
        if parts := split_pattern(key.strip()):
            pattern, problem = compile_pattern(*parts)
            if problem:
                prepared.invalid.append((key, problem))
            else:
                prepared.patterns.append((key, pattern, place))
            continue
        text = fold(key.strip(), case_sensitive)
        bounded = whole_words and len(text.split()) == 1
        if text:
            substring = _Substring(place, text, frozenset(trigrams(text)), bounded)
            prepared.substrings.append(substring)
    return prepared


def fold(text: str, case_sensitive: bool) -> str:
    """Normalizes accents and apostrophes, and, unless it matters, case."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).replace("’", "'")
    return text if case_sensitive else text.casefold()


def trigrams(text: str) -> set[str]:
    """Every run of three characters in a text."""
    return {text[i : i + 3] for i in range(len(text) - 2)}


def _joined(neighbour: str, edge: str) -> bool:
    """Whether a character next to a key is in the same word as the key's character there."""
    return bool(_word.match(neighbour)) and not _spaceless.match(edge)
