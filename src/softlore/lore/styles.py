"""Authoring styles: make blocks of calls and responses from an entry's text.

There are many ways to turn lore into calls and responses; these can be compared. All are rules
over English sentences and words: they need no model, and are deterministic.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

from softlore.errors import ConfigError
from softlore.lore.entry import Block, Entry
from softlore.lore.keywords import lore_keywords, words
from softlore.lore.lorebook import Lorebook
from softlore.lore.sentences import sentences
from softlore.lore.validation import nearest

BRACKETED = "bracketed"  # responses in brackets, tokens that are banned in generation
CLOUDS, CLOUD_WORDS = 6, 8  # word clouds per entry, words per cloud
EXAMPLES = 3  # leads per fact
MOST_FACTS = 24  # of a text that `auto` makes blocks of; a longer one is distilled alone
ENGLISH = 0.15  # the least share of `_ENGLISH` among the words of an English text
_ENGLISH = frozenset("the a an of and in to is was with he she it her his its they their".split())
_SUBJECTS = {"he": "his", "she": "her", "it": "its", "they": "their"}
# Lines of a story that lead to a subject, before a fact about it.
_LEADS = (
    "It was late when {name} came in.", "The door opened, and there stood {name}.",
    "Nobody in the room spoke when {name} came.", "That was the first time they saw {name}.",
    "At the corner they met {name}.", "One morning there was {name} again.",
    "They had often heard of {name}.", "Everybody turned to look at {name}.",
    '"Look," said the boy, "it is {name}."', "In the evening they talked of {name}.",
)  # fmt: skip


def check_style(style: str) -> None:
    """Raises ConfigError unless there is an authoring style of that name."""
    if style not in STYLES:
        raise ConfigError(
            f"there is no authoring style {style!r}; expected one of {', '.join(STYLES)}"
            f"{nearest(style, list(STYLES))}"
        )


def style_blocks(entry: Entry, style: str) -> list[Block]:
    """Returns an entry's text as blocks, in a style of `STYLES`. Raises ConfigError for others."""
    check_style(style)
    merged: dict[str, dict[str, None]] = {}  # distinct responses by call
    for call, response in STYLES[style](entry):
        if call.strip() and response.strip(" []"):  # a sentence of one word has no response
            merged.setdefault(call, {})[response] = None
    return [Block(call=call, responses=list(distinct)) for call, distinct in merged.items()]


def blocks_of(entry: Entry, style: str) -> list[Block]:
    """An entry's own blocks, else those of its text.

    Args:
        style: of `STYLES`; none; or auto, which is implicit for English texts of some sentences,
            and none for others.
    """
    if entry.blocks:
        return entry.blocks
    if style == "auto":
        style = "implicit" if _is_short_english(entry) else "none"
    return [] if style == "none" else style_blocks(entry, style)


def _is_short_english(entry: Entry) -> bool:
    spoken = words(entry.text)
    known = sum(word in _ENGLISH for word in spoken)
    return known > 0 and known >= ENGLISH * len(spoken) and len(facts(entry)) <= MOST_FACTS


def with_blocks(book: Lorebook, style: str) -> Lorebook:
    """Returns a lorebook in which entries without blocks get `style_blocks` from their text.

    Raises:
        ConfigError: there is no such style, even if no entry needs it.
    """
    check_style(style)
    entries = [entry.model_copy(update={"blocks": blocks_of(entry, style)}) for entry in book]
    return book.model_copy(update={"entries": entries})


def _noun(entry: Entry) -> list[tuple[str, str]]:
    """Each sentence, cut after its subject and verb; the subject is the name."""
    return [_cut(named(entry, sentence)) for sentence in facts(entry)]


def _pronoun(entry: Entry) -> list[tuple[str, str]]:
    """As `noun`, but after a lead that has the name, with a pronoun as the subject."""
    cuts = [_cut(unnamed(entry, sentence)) for sentence in facts(entry)]
    return [(f"{lead(entry, i)} {call}", response) for i, (call, response) in enumerate(cuts)]


def _sentences(entry: Entry) -> list[tuple[str, str]]:
    """Uncut sentences, each the response to the name, and to the sentence before it."""
    uncut = facts(entry)
    pairs = [(entry.name + ".", " " + sentence) for sentence in uncut]
    return pairs + [(a, " " + b) for a, b in itertools.pairwise(uncut)]


def _cloud(entry: Entry) -> list[tuple[str, str]]:
    """The name, and a sample of the lore's keywords in any order."""
    keywords = lore_keywords(entry)
    rng = random.Random(f"cloud/{entry.name}")
    size = min(CLOUD_WORDS, len(keywords))
    samples = [rng.sample(keywords, size) for _ in range(CLOUDS if keywords else 0)]
    return [(f"{entry.name}:", f" {', '.join(sample)}.") for sample in samples]


def _implicit(entry: Entry) -> list[tuple[str, str]]:
    """Several leads to the subject, each followed by the uncut fact."""
    return [
        (lead(entry, place + number * 3), " " + unnamed(entry, sentence))
        for place, sentence in enumerate(facts(entry))
        for number in range(EXAMPLES)
    ]


STYLES: dict[str, Callable[[Entry], list[tuple[str, str]]]] = {
    "sentences": _sentences,
    "noun": _noun,
    "pronoun": _pronoun,
    "mixed": lambda entry: _noun(entry) + _pronoun(entry),
    "implicit": _implicit,
    "cloud": _cloud,
    BRACKETED: lambda entry: [(call, f" [{response.strip()}]") for call, response in _noun(entry)],
}


def lead(entry: Entry, number: int) -> str:
    """A line of a story that leads to the entry, in turn."""
    return _LEADS[number % len(_LEADS)].format(name=entry.name)


def facts(entry: Entry) -> list[str]:
    """The sentences of three words or more; the whole text if there is none."""
    facts = [sentence for sentence in sentences(entry.text) if len(sentence.split()) > 2]
    return facts or ([entry.text.strip()] if entry.text.strip() else [])


def _pronoun_of(entry: Entry) -> str:
    """The pronoun that the text uses most for its subject; "they" where it uses none."""
    spoken = re.findall(r"[a-z]+", entry.text.lower())
    counts = {p: spoken.count(p) + spoken.count(owner) for p, owner in _SUBJECTS.items()}
    best = max(counts, key=lambda pronoun: counts[pronoun])
    return best if counts[best] else "they"


def named(entry: Entry, sentence: str) -> str:
    """A sentence with the name in place of a pronoun as its first word."""
    first, _, rest = sentence.partition(" ")
    if first.lower() in _SUBJECTS:
        return f"{entry.name} {rest}"
    return f"{entry.name}'s {rest}" if first.lower() in _SUBJECTS.values() else sentence


def unnamed(entry: Entry, sentence: str) -> str:
    """A sentence with a pronoun in place of the name as its first word."""
    pronoun = _pronoun_of(entry)
    for name, instead in ((f"{entry.name}'s ", _SUBJECTS[pronoun]), (f"{entry.name} ", pronoun)):
        if sentence.startswith(name):
            return f"{instead.capitalize()} {sentence.removeprefix(name)}"
    return sentence


def _cut(sentence: str) -> tuple[str, str]:
    """A sentence cut roughly after its subject and verb: a third of it, two words at least."""
    words = sentence.split(" ")
    at = max(2, min(len(words) // 3 + 1, 5)) if len(words) > 2 else 1
    return " ".join(words[:at]), " " + " ".join(words[at:])
