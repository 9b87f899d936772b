"""Authoring styles: an entry's text as blocks, for those who have written no calls and responses.

mkultra left open how lore is best put into calls and responses; these are the candidates. All are
plain rules over English sentences and words: they need no model, and the same text always gives
the same blocks.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

from softlore.errors import ConfigError
from softlore.lore.entry import Block, Entry
from softlore.lore.keywords import lore_keywords
from softlore.lore.lorebook import Lorebook
from softlore.lore.validation import nearest

BRACKETED = "bracketed"  # its responses stand in brackets, which are banned when a story is written
CLOUDS, CLOUD_WORDS = 6, 8  # word clouds an entry, and words in each
EXAMPLES = 3  # lines of story for each fact
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]*\s+")
_SUBJECTS = {"he": "his", "she": "her", "it": "its", "they": "their"}
# How a line of story comes to a subject, before a fact about it is shown.
_LEADS = (
    "It was late when {name} came in.", "The door opened, and there stood {name}.",
    "Nobody in the room spoke when {name} came.", "That was the first time they saw {name}.",
    "At the corner they met {name}.", "One morning there was {name} again.",
    "They had often heard of {name}.", "Everybody turned to look at {name}.",
    '"Look," said the boy, "it is {name}."', "In the evening they talked of {name}.",
)  # fmt: skip


def sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return [part.strip() for part in _SENTENCE.split(str(text)) if part.strip()]


def style_blocks(entry: Entry, style: str) -> list[Block]:
    """An entry's text as blocks, in a style of `STYLES`.

    Raises:
        ConfigError: there is no such style.
    """
    if style not in STYLES:
        raise ConfigError(
            f"there is no authoring style {style!r}; expected one of {', '.join(STYLES)}"
            f"{nearest(style, list(STYLES))}"
        )
    merged: dict[str, list[str]] = {}
    for call, response in STYLES[style](entry):
        if call.strip() and response.strip(" []"):  # else there is nothing to cut
            answers = merged.setdefault(call, [])
            answers += [response] if response not in answers else []
    return [Block(call=call, responses=answers) for call, answers in merged.items()]


def with_blocks(book: Lorebook, style: str) -> Lorebook:
    """A lorebook in which entries that have only a text have blocks made of it.

    Raises:
        ConfigError: there is no such style.
    """
    entries = [
        entry if entry.blocks else entry.model_copy(update={"blocks": style_blocks(entry, style)})
        for entry in book
    ]
    return book.model_copy(update={"entries": entries})


def _noun(entry: Entry) -> list[tuple[str, str]]:
    """Each sentence cut after its subject and verb, the subject always named."""
    return [_cut(_named(entry, sentence)) for sentence in _told(entry)]


def _pronoun(entry: Entry) -> list[tuple[str, str]]:
    """The same after a line that names the subject, which then is a pronoun."""
    pairs = []
    for place, sentence in enumerate(_told(entry)):
        call, response = _cut(_unnamed(entry, sentence))
        lead = _LEADS[place % len(_LEADS)].format(name=entry.name)
        pairs.append((f"{lead} {call}", response))
    return pairs


def _mixed(entry: Entry) -> list[tuple[str, str]]:
    """Proper noun and pronoun, both."""
    return _noun(entry) + _pronoun(entry)


def _sentences(entry: Entry) -> list[tuple[str, str]]:
    """Whole sentences, each the answer to the subject's name or to the sentence before it."""
    told = _told(entry)
    pairs = [(entry.name + ".", " " + sentence) for sentence in told]
    return pairs + [(a, " " + b) for a, b in itertools.pairwise(told)]


def _cloud(entry: Entry) -> list[tuple[str, str]]:
    """The name, and some of the lore's keywords in any order."""
    keywords = lore_keywords(entry)
    draw = random.Random(f"cloud/{entry.name}")
    clouds = []
    for _ in range(CLOUDS if keywords else 0):
        some = draw.sample(keywords, min(CLOUD_WORDS, len(keywords)))
        clouds.append((f"{entry.name}:", " " + ", ".join(some) + "."))
    return clouds


def _implicit(entry: Entry) -> list[tuple[str, str]]:
    """Each fact shown in a line of story: the line leads to the subject, and the fact follows."""
    pairs = []
    for place, sentence in enumerate(_told(entry)):
        fact = _unnamed(entry, sentence)
        for number in range(EXAMPLES):
            lead = _LEADS[(place + number * 3) % len(_LEADS)].format(name=entry.name)
            pairs.append((lead, " " + fact))
    return pairs


def _bracketed(entry: Entry) -> list[tuple[str, str]]:
    """As `noun`, with each response in brackets."""
    return [(call, f" [{response.strip()}]") for call, response in _noun(entry)]


STYLES: dict[str, Callable[[Entry], list[tuple[str, str]]]] = {
    "sentences": _sentences,
    "noun": _noun,
    "pronoun": _pronoun,
    "mixed": _mixed,
    "implicit": _implicit,
    "cloud": _cloud,
    BRACKETED: _bracketed,
}


def _told(entry: Entry) -> list[str]:
    """The sentences that say something: of three words or more."""
    found = [sentence for sentence in sentences(entry.text) if len(sentence.split()) > 2]
    return found or ([entry.text.strip()] if entry.text.strip() else [])


def _pronoun_of(entry: Entry) -> str:
    """The pronoun that the text uses most for its subject; "they" where it uses none."""
    words = re.findall(r"[a-z]+", entry.text.lower())
    counts = {p: words.count(p) + words.count(own) for p, own in _SUBJECTS.items()}
    best = max(counts, key=lambda pronoun: counts[pronoun])
    return best if counts[best] else "they"


def _named(entry: Entry, sentence: str) -> str:
    """A sentence whose first word is the name, where it was a pronoun."""
    first, _, rest = sentence.partition(" ")
    own = {own: pronoun for pronoun, own in _SUBJECTS.items()}
    if first.lower() in _SUBJECTS:
        return f"{entry.name} {rest}"
    return f"{entry.name}'s {rest}" if first.lower() in own else sentence


def _unnamed(entry: Entry, sentence: str) -> str:
    """A sentence whose first word is a pronoun, where it was the name."""
    pronoun = _pronoun_of(entry)
    for name, instead in ((f"{entry.name}'s ", _SUBJECTS[pronoun]), (f"{entry.name} ", pronoun)):
        if sentence.startswith(name):
            return f"{instead.capitalize()} {sentence.removeprefix(name)}"
    return sentence


def _cut(sentence: str) -> tuple[str, str]:
    """A sentence cut after its subject and verb, near enough: a third of it, two words at least."""
    words = sentence.split(" ")
    at = max(2, min(len(words) // 3 + 1, 5)) if len(words) > 2 else 1
    return " ".join(words[:at]), " " + " ".join(words[at:])
