"""Openings of passages: how a model is led to write about an entry's text, or about something else.

A passage is what a model writes after an opening, with the entry's text in its context; a prompt is
trained to have the text's effect there. What the prompt learns is what passages are about, so
openings come in kinds (`KINDS`), and a seeded draw takes them in proportion to their shares:

    cuts        a sentence of the text, cut after some word: asks for each fact where it stands
    retold      the same with a pronoun or in the past tense, after a lead that has the name
    questions   about the entry, or about a fact
    requests    such as "Describe Marta."
    stories     the entry, by its name or a key, in a story
    own         a new line: the model goes on as it likes, in the text's language
    others      other subjects: what the text does to these is little, and nothing else may leak

The rules for pronouns, tense and questions are for English; other languages have the other kinds.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

from softlore.lore.entry import Entry
from softlore.lore.styles import facts, lead, named, unnamed

# First words of passages on nothing in particular.
OPENERS = (
    "The", "One day", "It was", "He", "She", "There was", "When", "In the", "They", "At last",
    "A", "I", "The old", "Then", "Every", "After", "We", "His", "Her", "No one", "On the", "You",
)  # fmt: skip
# ... and of some that may or may not turn to an entry.
_ASIDE = ("Once upon a time", "The", "It was a cold day and", "He", "She", "They", "In the")
_QUESTIONS = (
    "Who is {}?", "What does {} look like?", "What do you know of {}?", "What is special about {}?",
    "Where would you find {}?", "What does {} like?", "What is {} afraid of?", "What does {} do?",
)  # fmt: skip
_REQUESTS = (
    "Tell me about {}.", "Describe {}.", "List what is known of {}:", "In short, {}",
    "A story about {}.", "What would {} do?", "Everything about {}:", "The truth about {} is that",
)  # fmt: skip
_NAMED = ("{}", "One day, {}", "{} was", "{} looked")
_STORIES = (
    *_NAMED, "In the morning, {}", "Then they saw {}, who",
    'The door opened. "{}!" they cried.', "It had rained all night. At last came {}",
    "The boy ran down the street until he met {}", "{} had", "{} always", '"My name is {},"',
)  # fmt: skip
_PAST = {
    "is": "was", "are": "were", "has": "had", "does": "did", "goes": "went", "keeps": "kept",
    "speaks": "spoke", "wears": "wore", "knows": "knew", "comes": "came", "stands": "stood",
    "sleeps": "slept", "tells": "told", "takes": "took", "makes": "made", "says": "said",
    "sees": "saw", "holds": "held", "leads": "led", "leaves": "left", "lies": "lay", "runs": "ran",
    "sits": "sat", "sells": "sold", "sings": "sang", "thinks": "thought", "writes": "wrote",
    "can": "could", "will": "would", "have": "had", "eats": "ate", "drinks": "drank",
    "gives": "gave", "finds": "found", "feels": "felt", "loses": "lost", "drives": "drove",
}  # fmt: skip


def as_line(text: str) -> str:
    """A text as a line of its own, as lore stands before what the model reads."""
    return text + ("" if text[-1:].isspace() else "\n")


def openers(entry: Entry) -> list[str]:
    """Openings of passages about an entry: some with its name or a key, some without either."""
    return [*_filled(_NAMED, _names(entry)), *_ASIDE]


def _names(entry: Entry) -> list[str]:
    return list(dict.fromkeys([entry.name, *entry.keys]))[:4]


def _cuts(entry: Entry) -> list[str]:
    return list(_cut_everywhere(named(entry, fact) for fact in facts(entry)))


def _retold(entry: Entry) -> list[str]:
    with_pronoun = (
        f"{lead(entry, number)} {start}"
        for number, fact in enumerate(facts(entry))
        for start in _cut_everywhere([unnamed(entry, fact)])
    )
    in_past = _cut_everywhere(_past(named(entry, fact)) for fact in facts(entry))
    return [*with_pronoun, *in_past]


def _filled(forms: Sequence[str], names: Sequence[str]) -> list[str]:
    return [form.format(name) for name in names for form in forms]


KINDS: dict[str, tuple[float, Callable[[Entry], Sequence[str]]]] = {
    "cuts": (0.25, _cuts),
    "retold": (0.2, _retold),
    "questions": (0.05, lambda entry: _filled(_QUESTIONS, [entry.name])),
    "requests": (0.05, lambda entry: _filled(_REQUESTS, [entry.name])),
    "stories": (0.2, lambda entry: _filled(_STORIES, _names(entry))),
    "own": (0.05, lambda entry: ["\n"]),
    "others": (0.2, lambda entry: [*OPENERS, *_ASIDE]),
}


def study_openings(entry: Entry, count: int = 768, part: int = 0) -> list[str]:
    """Openings of passages by which an entry's text is studied.

    Any few that follow each other hold the kinds in about their shares, and each kind's openings
    all come once before one comes again.

    Args:
        part: the number of a chunk of a long text, which the entry has as its text.
    """
    draw = random.Random(f"{entry.name}/{part}" if part else entry.name)
    streams = {kind: _forever(make(entry), draw) for kind, (_, make) in KINDS.items()}
    credit = dict.fromkeys(KINDS, 0.0)
    openings = []
    for _ in range(count):
        for kind, (share, _make) in KINDS.items():
            credit[kind] += share
        kind = max(credit, key=lambda name: credit[name])
        credit[kind] -= 1
        openings.append(next(streams[kind]))
    return openings


def _forever(openings: Sequence[str], draw: random.Random) -> Iterator[str]:
    while True:
        yield from draw.sample(list(openings), len(openings)) if openings else ["\n"]


def _cut_everywhere(sentences: Iterator[str] | Sequence[str]) -> Iterator[str]:
    """Each sentence, cut after each word but the first and the last."""
    for sentence in sentences:
        words = sentence.split()
        yield from (" ".join(words[:count]) for count in range(2, len(words)))


def _past(sentence: str) -> str:
    """A sentence of the present tense in the past: common verbs, and no others."""
    return re.sub(r"[A-Za-z]+", lambda word: _PAST.get(word[0], word[0]), sentence)
