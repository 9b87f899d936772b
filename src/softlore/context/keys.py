"""Finds the keys of entries in texts: words, phrases and regular expressions.

A key is a word, a phrase, or `/pattern/flags` as JavaScript writes it. Lorebooks come from
strangers, so a pattern is checked before it is compiled, and searched for under a time limit.

Most keys of a book are in none of the texts. Plain keys are therefore indexed by their rarest
trigram (run of three characters), and searched for in the texts only that contain it.
"""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import regex

from softlore.lore.patterns import compile_pattern, split_pattern

KEY_SECONDS = 0.1  # limit of one search for one regular expression
TOTAL_SECONDS = 2.0  # limit of all such searches in one activation
GRAM = 3  # characters of a trigram; of shorter keys all
SAMPLE = 2000  # keys by which it is known which trigrams are rare

# Scripts that write no spaces between words, or join particles to them: a word has no boundary
# there that could be checked, so that a key matches anywhere.
_SPACELESS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー"
)
# Emoji are joined to no letter, but may be part of another emoji: of a family, a flag, a keycap.
_EMOJI = r"\p{Extended_Pictographic}\p{Regional_Indicator}\p{Emoji_Modifier}\u20e3"
_JOINER, _KEYCAP = "\u200d", "\u20e3"
_spaceless = regex.compile(rf"[{_SPACELESS}]", regex.V1)
_word = regex.compile(rf"[[\w\p{{M}}]--[{_SPACELESS}{_EMOJI}]]", regex.V1)
_emoji = regex.compile(rf"[{_EMOJI}]", regex.V1)
_in_emoji = regex.compile(rf"[{_EMOJI}{_JOINER}\p{{M}}\U000e0020-\U000e007f]", regex.V1)
_cluster = regex.compile(r"\X")
_variation_selector = regex.compile(r"[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_skin_tone = regex.compile(r"\p{Emoji_Modifier}")
_MAX_EMOJI = 64  # characters of one emoji, or of flags in a row


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


class Folding(NamedTuple):
    """What counts when a plain key is compared with a text."""

    case: bool
    skin_tones: bool  # of emoji: they count for keys that have one


_FOLDINGS = {folding: Folding(*folding) for folding in product((False, True), repeat=2)}


class ScannedTexts:
    """Texts to search, the nearest first; `entries` are the names of those whose texts they are."""

    def __init__(self, texts: Sequence[str], entries: Sequence[str] = ()) -> None:
        self.texts, self.entries = list(texts), entries
        self._folded: dict[Folding, list[str]] = {}

    def folded(self, folding: Folding) -> list[str]:
        """Returns the normalized texts."""
        if folding not in self._folded:
            self._folded[folding] = [fold(text, folding) for text in self.texts]
        return self._folded[folding]


class Substring(NamedTuple):
    """A key that is searched as a substring; if `bounded`, only as a word by itself."""

    place: int
    text: str
    folding: Folding
    bounded: bool

    def is_in(self, text: str) -> bool:
        start = text.find(self.text)
        while start >= 0 and self.bounded:
            end = start + len(self.text)
            before, after = text[start - 1 : start] if start else "", text[end : end + 1]
            if not (
                _is_joined(text, start, before, self.text[0])
                or _is_joined(text, end, after, self.text[-1])
            ):
                return True
            start = text.find(self.text, start + 1)
        return start >= 0


@dataclass(frozen=True, slots=True)
class Keys:
    """An entry's keys, prepared for search. A key is identified by its place in the list.

    Attributes:
        size: the number of keys, including blank and invalid ones.
        invalid: keys that are no valid regular expression, with the reason. They match nothing.
    """

    size: int
    substrings: Sequence[Substring] = ()
    patterns: Sequence[tuple[str, Any, int]] = ()
    invalid: Sequence[tuple[str, str]] = ()

    def find_patterns(self, texts: Sequence[str], search: PatternSearch) -> dict[int, int]:
        """Returns the places of the patterns found, each with the place of the nearest text."""
        places: dict[int, int] = {}
        for key, pattern, place in self.patterns:
            # SillyTavern puts this character before every message, and keys may match it.
            mark = "\x01" if r"\x01" in key else ""
            matches = (
                i for i, text in enumerate(texts) if search.matches(key, pattern, mark + text)
            )
            if (nearest := next(matches, None)) is not None:
                places[place] = nearest
        return places


class IndexedKey(NamedTuple):
    """A plain key of one of the `Keys` of an index."""

    number: int  # of the keys
    key: Substring


class KeyIndex:
    """The plain keys of many entries by a trigram that is rare in a sample of them."""

    def __init__(self, keys: Sequence[Keys]) -> None:
        plain = [IndexedKey(i, key) for i, of_one in enumerate(keys) for key in of_one.substrings]
        counts = Counter(
            gram for _, key in plain[:: len(plain) // SAMPLE + 1] for gram in grams(key.text)
        )
        self.by_gram: dict[Folding, dict[str, list[IndexedKey]]] = {}
        for one in plain:
            unseen = (gram for gram in grams(one.key.text) if gram not in counts)
            rarest = next(unseen, None) or min(grams(one.key.text), key=counts.__getitem__)
            of_folding = self.by_gram.setdefault(one.key.folding, {})
            of_folding.setdefault(rarest, []).append(one)


class KeySearch:
    """Searches for the plain keys of an index in one batch of texts after the other."""

    def __init__(self, index: KeyIndex) -> None:
        self._by_gram = {folding: dict(keys) for folding, keys in index.by_gram.items()}
        self._sizes = {
            folding: sorted(set(map(len, keys))) for folding, keys in index.by_gram.items()
        }

    def find(
        self, texts: ScannedTexts, wanted: Callable[[IndexedKey], bool] = lambda key: True
    ) -> Iterator[tuple[IndexedKey, int]]:
        """Yields the keys found, each with the place of the nearest text.

        Keys that are not `wanted` are not searched for, now or later.
        """
        for folding, by_gram in self._by_gram.items():
            folded = texts.folded(folding)
            places: dict[str, list[int]] = {}
            for place, text in enumerate(folded):
                for size in self._sizes[folding]:
                    for gram in by_gram.keys() & grams(text, size):
                        places.setdefault(gram, []).append(place)
            for gram, with_gram in places.items():
                by_gram[gram] = [key for key in by_gram[gram] if wanted(key)]
                for one in by_gram[gram]:
                    matches = (place for place in with_gram if one.key.is_in(folded[place]))
                    if (nearest := next(matches, None)) is not None:
                        yield one, nearest


@lru_cache(maxsize=2**15)
def prepare_keys(keys: tuple[str, ...], case_sensitive: bool, whole_words: bool) -> Keys:
    """Prepares keys for search.

    With `whole_words`, a key without a space in it must be a word by itself; as in SillyTavern, one
    with a space matches anywhere. An emoji must not be part of another. Blank keys match nothing.
    Neither setting applies to `/pattern/flags`; a key that is not quite of that form is plain.
    """
    substrings, patterns, invalid = [], [], []
    for place, key in enumerate(keys):
        if parts := split_pattern(key):
            pattern, problem = compile_pattern(*parts)
            if problem:
                invalid.append((key, problem))
            else:
                patterns.append((key, pattern, place))
            continue
        folding = _FOLDINGS[case_sensitive, not key.isascii() and bool(_skin_tone.search(key))]
        text = fold(key.strip(), folding)
        bounded = whole_words and " " not in text and len(text.split()) == 1
        if text:
            substrings.append(Substring(place, text, folding, bounded))
    return Keys(len(keys), substrings, patterns, invalid)


class KeySettings(NamedTuple):
    """An entry's keys and how they are searched."""

    keys: tuple[str, ...]
    secondary: tuple[str, ...]
    case_sensitive: bool
    whole_words: bool


@dataclass(frozen=True)
class PreparedBook:
    """The keys of a book's entries, prepared for search.

    Attributes:
        keys: of entry i, `keys[2 * i]` are the keys and `keys[2 * i + 1]` the secondary ones.
        with_patterns: the entries with regular expressions among their keys.
        may_be_bad: those with any among their keys or secondary keys, valid or not.
    """

    keys: list[Keys]
    index: KeyIndex
    with_patterns: list[int]
    may_be_bad: list[int]


@lru_cache(maxsize=8)
def prepare_book(entries: tuple[KeySettings, ...]) -> PreparedBook:
    """Prepares the keys of a book, once for all scans in which they are the same."""
    keys = [
        prepare_keys(some, entry.case_sensitive, entry.whole_words)
        for entry in entries
        for some in (entry.keys, entry.secondary)
    ]
    with_patterns = [i for i, of_entry in enumerate(keys[::2]) if of_entry.patterns]
    may_be_bad = sorted({i // 2 for i, some in enumerate(keys) if some.patterns or some.invalid})
    return PreparedBook(keys, KeyIndex(keys), with_patterns, may_be_bad)


def fold(text: str, folding: Folding) -> str:
    """Normalizes accents and apostrophes, and, unless they count, case and skin tones.

    Variation selectors, which choose the glyph of a character, never count.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).replace("’", "'")
        text = _variation_selector.sub("", text)
        if not folding.skin_tones:
            text = _skin_tone.sub("", text)
    return text if folding.case else text.casefold()


def grams(text: str, size: int = GRAM) -> Iterator[str]:
    """Every run of `size` characters in a text; a shorter text itself."""
    return (text[i : i + size] for i in range(max(1, len(text) - size + 1)))


def _is_joined(text: str, end: int, neighbour: str, edge: str) -> bool:
    """Whether a key that ends (or begins) at a place of a text is part of a longer word or emoji.

    Args:
        neighbour: the character next to the key; empty at the end of the text.
        edge: the key's own character there.
    """
    if not neighbour or neighbour.isspace():
        return False
    if neighbour.isascii() and edge.isascii():
        return bool(_word.match(neighbour))
    if _emoji.match(edge) or neighbour in (_JOINER, _KEYCAP):
        return _is_in_cluster(text, end)
    return bool(_word.match(neighbour)) and not _spaceless.match(edge)


def _is_in_cluster(text: str, place: int) -> bool:
    """Whether a place of a text is inside what is shown as one character, such as an emoji."""
    if not 0 < place < len(text):
        return False
    start = place
    while start > max(0, place - _MAX_EMOJI) and _in_emoji.match(text[start - 1]):
        start -= 1
    start -= start > 0 and start == place  # what a mark or joiner stands on
    return all(match.start() != place for match in _cluster.finditer(text, start, place + 1))
