"""Cuts long texts into chunks, and long entries into several with keys of their own."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from softlore.errors import LoreError
from softlore.lore.entry import Block, Entry
from softlore.lore.files import read_bytes
from softlore.lore.keywords import STOP_WORDS, words
from softlore.lore.lorebook import Lorebook
from softlore.lore.names import MAX_NAME, as_name
from softlore.lore.sentences import ends

TEXT_SUFFIXES = (".txt", ".md")
MAX_KEYS = 5  # of an entry that a long one was cut into
NAMES = 3.0  # weight of a word with a capital letter, beside other words
# Where a text is cut, from the best to the worst: paragraphs, sentences, words.
_CUTS: tuple[Callable[[str], Iterable[int]], ...] = (
    lambda text: (match.start() for match in re.finditer(r"(?<=\n)(?=\S)", text)),
    lambda text: ends(text, lines=False),
    lambda text: (match.start() for match in re.finditer(r"(?=\s)", text)),
)


def chunks(text: str, most: int, count: Callable[[str], int]) -> list[str]:
    """Parts of a text, of about one length and of at most `most` tokens; joined they are the text.

    Args:
        count: the tokens of a text.
    """
    cut = pieces(text, most, count)
    sizes = [count(piece) for piece in cut]
    target = sum(sizes) / max(1, -(-sum(sizes) // most))
    parts, held, done = [""], 0, 0
    for piece, size in zip(cut, sizes, strict=True):
        if held and (held + size > most or done >= target * len(parts)):
            parts.append("")
            held = 0
        parts[-1] += piece
        held, done = held + size, done + size
    return parts


def pieces(text: str, most: int, count: Callable[[str], int], level: int = 0) -> list[str]:
    """Paragraphs, cut into sentences, words and less where they have over `most` tokens."""
    if len(text) < 2 or count(text) <= most:
        return [text]
    cuts = [0, *(_CUTS[level](text) if level < len(_CUTS) else [len(text) // 2]), len(text)]
    parts = (text[start:end] for start, end in itertools.pairwise(cuts))
    return [piece for part in parts if part for piece in pieces(part, most, count, level + 1)]


# entries ---------------------------------------------------------------------------------------


def load_texts(path: Path) -> Lorebook:
    """A lorebook, or a plain text (.txt, .md) as one of a single entry.

    Raises:
        LoreError: the file is neither, or holds no text.
    """
    if path.suffix.lower() not in TEXT_SUFFIXES:
        return Lorebook.load(path)
    try:
        text = read_bytes(path).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise LoreError(
            f"{str(path)!r} is no UTF-8 text ({error.reason}); expected one; save it as UTF-8"
        ) from None
    if not text:
        raise LoreError(f"{str(path)!r} is empty; expected a text; name another file")
    name = as_name(path.stem)
    return Lorebook(name=name, entries=[Entry(name=name, text=text)])


def split_entries(book: Lorebook, most: int) -> Lorebook:
    """A lorebook in which no entry's text has over `most` characters.

    A longer one becomes entries of about one length, `NAME 1`, `NAME 2` and so on, cut at
    paragraphs where that can be. Their keys are the words that are frequent in each and rare in
    the others, names first. A block goes to the part that has the most of its words.
    """
    entries: list[Entry] = []
    taken = {entry.name.casefold() for entry in book}
    for entry in book:
        if len(entry.text) <= most:
            entries.append(entry)
            continue
        parts = [part for part in chunks(entry.text, most, len) if part.strip()]
        blocks, held_out = (_by_part(some, parts) for some in (entry.blocks, entry.held_out))
        number = 0
        for part, keys, own, tests in zip(parts, _keys(parts), blocks, held_out, strict=True):
            number += 1
            while (name := _numbered(entry.name, number)).casefold() in taken:
                number += 1
            fields: dict[str, Any] = {"name": name, "text": part.strip(), "keys": keys}
            fields |= {"blocks": own, "held_out": tests}
            entries.append(entry.model_copy(update=fields))
    return book.model_copy(update={"entries": entries, "origin": None})


def _numbered(name: str, number: int) -> str:
    return f"{name[: MAX_NAME - 8].rstrip()} {number}"


def _by_part(blocks: Sequence[Block], parts: Sequence[str]) -> list[list[Block]]:
    """The blocks of each part."""
    known = [set(words(part)) for part in parts]
    owned: list[list[Block]] = [[] for _ in parts]
    for block in blocks:
        own = {word for text in (block.call, *block.responses) for word in words(text)}
        shared = [len(own & in_part) for in_part in known]
        owned[shared.index(max(shared))].append(block)
    return owned


def _keys(parts: Sequence[str]) -> list[list[str]]:
    """Words of each part that over half of the others lack, the most telling first."""
    counts = [_weighted_words(part) for part in parts]
    spread = Counter(word for of_part in counts for word in of_part)
    keys = []
    for of_part in counts:
        worth = {w: n * math.log(0.6 * len(parts) / spread[w]) for w, n in of_part.items()}
        best = sorted(of_part, key=lambda word: (-worth[word], word))
        keys.append([word for word in best if worth[word] > 0][:MAX_KEYS])
    return keys


def _weighted_words(text: str) -> dict[str, float]:
    """How often each word is there; those with a capital letter within a sentence count more."""
    names = Counter(re.findall(r"(?<=[\w,;] )[^\W\d_a-z][^\W\d_]{2,}", text))
    capital = {name.casefold(): name for name in names if name.casefold() not in STOP_WORDS}
    counts: Counter[str] = Counter(
        word for word in words(text) if len(word) > 2 and word not in STOP_WORDS
    )
    return {
        capital.get(word, word): n * (NAMES if word in capital else 1.0)
        for word, n in counts.items()
    }
