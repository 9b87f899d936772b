"""Keys: whether the words, phrases and regular expressions of an entry stand in a text.

A key is a word, a phrase, or `/pattern/flags` as JavaScript writes it. Lorebooks come from
strangers, so a pattern is checked before it is compiled, and searched for under a time limit.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import regex

from softlore.context.patterns import compiled, split_pattern

KEY_SECONDS = 0.1  # the longest one search for one regular expression may take
ALL_SECONDS = 2.0  # the longest all of them together may take, in one activation
GRAM = 3  # characters; see `_Piece.grams`

# Scripts that set no spaces between words, or join particles to them: there, a word has no edge
# that could be checked, and a key is found wherever it stands.
_SPACELESS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー"
)
_spaceless = regex.compile(rf"[{_SPACELESS}]", regex.V1)
_word = regex.compile(rf"[[\w\p{{M}}]--[{_SPACELESS}]]", regex.V1)
_words = regex.compile(rf"[[\w\p{{M}}]--[{_SPACELESS}]]+", regex.V1)


class Watch:
    """How long regular expressions have searched in one activation, and which took too long.

    Attributes:
        slow: the keys that were given up, each with the reason in plain words. They match nothing.
    """

    def __init__(self) -> None:
        self.slow: dict[str, str] = {}
        self._left = ALL_SECONDS

    def finds(self, key: str, pattern: Any, text: str) -> bool:
        if key in self.slow:
            return False
        if self._left <= 0:
            self.slow[key] = f"not searched for: those before it took over {ALL_SECONDS:g} s"
            return False
        began = time.perf_counter()
        try:
            return pattern.search(text, timeout=min(KEY_SECONDS, self._left)) is not None
        except (TimeoutError, MemoryError):
            self.slow[key] = f"given up after {KEY_SECONDS:g} s; make the pattern simpler"
            return False
        finally:
            self._left -= time.perf_counter() - began


class ScannedTexts:
    """Texts to search, the nearest first. What is made of them is made once, when first needed."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self._folded: dict[bool, _Folded] = {}

    def folded(self, case_sensitive: bool) -> _Folded:
        if case_sensitive not in self._folded:
            self._folded[case_sensitive] = _Folded([fold(t, case_sensitive) for t in self.texts])
        return self._folded[case_sensitive]


class _Folded:
    """Texts made alike, their words, and their runs of `n` characters."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.grams = _Grams(texts)

    @cached_property
    def words_of(self) -> list[set[str]]:
        return [set(_words.findall(text)) for text in self.texts]

    @cached_property
    def words(self) -> set[str]:
        return set().union(*self.words_of)


class _Grams(dict[int, set[str]]):
    """All runs of `n` characters in texts, by `n`."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def __missing__(self, n: int) -> set[str]:
        self[n] = set().union(*(grams(text, n) for text in self._texts))
        return self[n]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A key that is looked for as a run of characters.

    `grams` are its runs of `n` characters. Most keys are not there, and a set says so far sooner
    than a search through the text.
    """

    place: int
    needle: str
    n: int
    grams: frozenset[str]
    bounded: bool


@dataclass(frozen=True)
class Keys:
    """An entry's keys, made ready to be found. A key is known by its place in the list.

    Attributes:
        size: how many keys there are.
        wrong: keys that are no valid regular expression, each with the reason. They match nothing.
    """

    size: int
    case_sensitive: bool
    words: tuple[tuple[str, int], ...]
    word_set: frozenset[str]
    pieces: tuple[_Piece, ...]
    patterns: tuple[tuple[str, Any, int], ...]
    wrong: tuple[tuple[str, str], ...]

    def find(self, texts: ScannedTexts, watch: Watch) -> dict[int, int]:
        """The places of the keys that are found, each with the place of the nearest text."""
        found: dict[int, int] = {}
        if self.word_set or self.pieces:
            self._find_plain(texts.folded(self.case_sensitive), found)
        for key, pattern, place in self.patterns:
            for i, text in enumerate(texts.texts):
                # SillyTavern sets this character before every message, and keys may ask for it.
                if watch.finds(key, pattern, "\x01" + text if r"\x01" in key else text):
                    found[place] = i
                    break
            if key in watch.slow:
                found.pop(place, None)
        return found

    def _find_plain(self, folded: _Folded, found: dict[int, int]) -> None:
        if not self.word_set.isdisjoint(folded.words):
            for word, place in self.words:
                if word in folded.words:
                    found[place] = next(i for i, own in enumerate(folded.words_of) if word in own)
        known = folded.grams
        for piece in self.pieces:
            if piece.grams <= known[piece.n]:
                for i, text in enumerate(folded.texts):
                    if _stands(piece, text):
                        found[piece.place] = i
                        break


@lru_cache(maxsize=2**15)
def read_keys(keys: tuple[str, ...], case_sensitive: bool, whole_words: bool) -> Keys:
    """Makes keys ready to be found. As in SillyTavern, whole words are asked of single words only.

    With `whole_words`, a key without a space in it must stand as a word of its own; one with a
    space is found as it stands. Blank keys match nothing. Case and whole words say nothing about
    `/pattern/flags`, nor does anything about a key that is not quite of that form: it is plain.
    """
    words: list[tuple[str, int]] = []
    pieces: list[_Piece] = []
    patterns: list[tuple[str, Any, int]] = []
    wrong: list[tuple[str, str]] = []
    for place, key in enumerate(keys):
        if parts := split_pattern(key.strip()):
            pattern, why = compiled(*parts)
            if why:
                wrong.append((key, why))
            else:
                patterns.append((key, pattern, place))
            continue
        needle = fold(key.strip(), case_sensitive)
        bounded = whole_words and len(needle.split()) == 1
        if bounded and _words.fullmatch(needle):
            words.append((needle, place))
        elif needle:
            n = min(GRAM, len(needle))
            pieces.append(_Piece(place, needle, n, frozenset(grams(needle, n)), bounded))
    word_set = frozenset(word for word, _ in words)
    return Keys(
        len(keys),
        case_sensitive,
        tuple(words),
        word_set,
        tuple(pieces),
        tuple(patterns),
        tuple(wrong),
    )


def fold(text: str, case_sensitive: bool) -> str:
    """A text with accents, apostrophes and, unless it matters, case written in one way."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).replace("’", "'")
    return text if case_sensitive else text.casefold()


def grams(text: str, n: int) -> set[str]:
    """Every run of `n` characters in a text."""
    return {text[i : i + n] for i in range(len(text) - n + 1)}


def _stands(piece: _Piece, text: str) -> bool:
    needle = piece.needle
    at = text.find(needle)
    while at >= 0 and piece.bounded:
        end = at + len(needle)
        before, after = text[at - 1 : at] if at else "", text[end : end + 1]
        if not (_joined(before, needle[0]) or _joined(after, needle[-1])):
            return True
        at = text.find(needle, at + 1)
    return at >= 0


def _joined(neighbour: str, edge: str) -> bool:
    """Whether a character beside a key belongs to the same word as the key's character there."""
    return bool(_word.match(neighbour)) and not _spaceless.match(edge)
