"""Lore that a story suggests: names that recur become entries, with the sentences they come from.

The names are found by rules (`softlore.lore.recurring`). They are ranked by the sentences that
mention them and, where a model is at hand, by how little it could have guessed those sentences.
What an entry of the lorebook is activated by already is not suggested.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from softlore.context.activation import activate
from softlore.context.scan import ScanSettings
from softlore.lore import Entry
from softlore.lore.names import as_name
from softlore.lore.recurring import NameFinder, RecurringName, Sentence
from softlore.measure.score import mean, token_losses, trunk
from softlore.model import FrozenModel

MOST = 24  # suggestions at once
TEXT_SENTENCES, TEXT_CHARACTERS = 4, 480  # of a suggested text, at most
SHORTEST, LONGEST = 25, 240  # characters of a sentence that tells something by itself
SURPRISE_NAMES, SURPRISE_SENTENCES = 12, 4  # of how many sentences the surprise is measured

Surprise = Callable[[Sequence[str]], list[float]]  # of each sentence, in nats a token


@dataclass(frozen=True)
class Suggestion:
    """An entry that a story suggests.

    Attributes:
        mentions: sentences of the story that mention it.
        turns: turns that do.
        surprise: of its sentences, in nats a token; None if it was not measured.
    """

    entry: Entry
    mentions: int
    turns: int
    surprise: float | None = None


@dataclass(frozen=True)
class Suggestions:
    """What a story suggests, the most likely first, and what the rules could not do, in words."""

    found: list[Suggestion]
    notes: list[str]


def suggest_entries(
    turns: Sequence[str],
    book: Sequence[Entry] = (),
    dropped: Collection[str] = (),
    surprise: Surprise | None = None,
) -> Suggestions:
    """The entries that the turns of a story suggest.

    Args:
        book: entries that there are; what their keys activate by is not suggested.
        dropped: names that are not suggested.
        surprise: measures sentences; see `surprise_of`.
    """
    finder = NameFinder(turns)
    refused = {name.casefold() for name in dropped}
    names = [
        name
        for name in finder.names
        if refused.isdisjoint(key.casefold() for key in name.keys) and not _is_known(name, book)
    ]
    found, taken = [], {entry.name.casefold() for entry in book}
    for name in names:
        title = as_name(name.name)
        if title.casefold() not in taken:
            taken.add(title.casefold())
            found.append((name, title))
    suggestions = [
        Suggestion(
            Entry(name=title, keys=name.keys, text=_text(name, finder.sentences)),
            len(name.sentences),
            len(name.parts),
        )
        for name, title in found
    ]
    if surprise is not None and suggestions:
        suggestions = _ranked_by_surprise(suggestions, finder, [n for n, _ in found], surprise)
    return Suggestions(suggestions[:MOST], finder.notes)


def surprise_of(model: FrozenModel) -> Surprise:
    """A measure of how little a model could have guessed sentences."""

    def measure(sentences: Sequence[str]) -> list[float]:
        start = model.encode("\n")
        pairs = [(start, model.encode(text, inside=True)) for text in sentences]
        losses = token_losses(model, trunk(model, ""), pairs)
        return [float(loss.mean()) for loss in losses]

    return measure


def _is_known(name: RecurringName, book: Sequence[Entry]) -> bool:
    """Whether an entry of the lorebook is activated by a name or its other forms."""
    always = {"constant": False, "enabled": True, "probability": 100, "secondary_keys": [],
              "delay": 0, "delay_until_recursion": 0, "group": "", "scan_depth": None}  # fmt: skip
    entries = [e.model_copy(update={**always, "keys": e.keys or [e.name]}) for e in book]
    scan = ScanSettings(recursive=False)
    return any(activate(entries, [key], scan).active for key in name.keys)


def _text(name: RecurringName, sentences: Sequence[Sentence]) -> str:
    """The sentences that tell the most of a name, in the story's order."""
    keys = [key.casefold() for key in name.keys]
    text: dict[int, str] = {}
    room = TEXT_CHARACTERS
    ranked = sorted(name.sentences, key=lambda n: (-_worth(n, name, keys, sentences), n))
    for number in ranked:
        sentence = sentences[number].text
        repeated = sentence.casefold() in (one.casefold() for one in text.values())
        if len(text) < TEXT_SENTENCES and (len(sentence) < room or not text) and not repeated:
            text[number] = sentence[:LONGEST] if not text else sentence
            room -= len(text[number]) + 1
    return " ".join(text[number] for number in sorted(text))


def _worth(
    number: int, name: RecurringName, keys: Sequence[str], sentences: Sequence[Sentence]
) -> float:
    """How much a sentence tells of a name: its first one, those it begins, but for speeches."""
    text = sentences[number].text
    places = [text.casefold().find(key) for key in keys]
    place = min((at for at in places if at >= 0), default=len(text))
    worth = 1.0 - place / max(1, len(text))
    worth += 1.0 if number == name.sentences[0] else 0.0
    worth -= 1.0 if text[0].islower() else 0.0  # the end of a speech
    worth -= 1.0 if any(mark in text for mark in '"“”«»„') else 0.0
    worth -= 1.0 if not SHORTEST <= len(text) <= LONGEST else 0.0
    return worth


def _ranked_by_surprise(
    suggestions: Sequence[Suggestion],
    finder: NameFinder,
    names: Sequence[RecurringName],
    surprise: Surprise,
) -> list[Suggestion]:
    """The first suggestions in the order of mentions, weighted by the surprise of sentences."""
    picked = [
        [finder.sentences[n].text[:LONGEST] for n in islice(name.sentences, SURPRISE_SENTENCES)]
        for name in names[:SURPRISE_NAMES]
    ]
    measured = iter(surprise([text for of_name in picked for text in of_name]))
    nats = [mean(list(islice(measured, len(of_name)))) for of_name in picked]
    usual = mean(nats) or 1.0
    first = [replace(one, surprise=n) for one, n in zip(suggestions, nats, strict=False)]
    first.sort(key=lambda one: -one.mentions * (one.surprise or 0.0) / usual)
    return [*first, *suggestions[len(first) :]]
