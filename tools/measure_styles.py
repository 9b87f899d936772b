"""Authoring styles, measured: characters of LIGHT as prose, and every style's blocks of it.

    python tools/measure_styles.py --shared DIR --model storyteller
    python tools/measure_styles.py --shared DIR --model DIR/models/tinytalk-3m --keep rows.jsonl

A seed takes an hour of one core; with --keep an interrupted run resumes after the last seed.

DIR has `data/light_characters.json`: sentences in the first person, which become the third person
of a named character here, as in a lorebook. All styles are measured on calls that none of them
trains on: recall on reported speech with the name ("Everybody knew that Martha milks"), held-out
calls with a pronoun after a line of story. Intervals are over the characters, each the mean of its
seeds.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from measuring import Keep, Shared, main
from softlore.compare.comparison import run_comparison
from softlore.compare.harness import summarize
from softlore.compare.methods import make_styles
from softlore.lore import Block, Entry, Lorebook
from softlore.lore.sentences import sentences
from softlore.model import FrozenModel

NAMES = (
    "Martha she", "Osric he", "Ysolde she", "Corwin he", "Brenna she", "Aldous he", "Tamsin she",
    "Edric he", "Maude she", "Roland he", "Ottilie she", "Percival he", "Rowena she", "Godfrey he",
    "Agatha she", "Leofric he", "Petra she", "Tobias he", "Winifred she", "Ambrose he",
    "Sabina she", "Jasper he", "Hester she", "Barnaby he", "Cordelia she", "Matthias he",
    "Philippa she", "Lambert he", "Drusilla she", "Hugo he",
)  # fmt: skip
_FORMS = {"he": ("him", "his", "himself"), "she": ("her", "her", "herself")}
_VERBS = {"am": "is", "have": "has", "do": "does", "don't": "doesn't", "haven't": "hasn't"}
# After these no verb changes; past forms and auxiliaries.
_FIXED = set(
    "can could will would shall should may might must was had did grew came made took saw knew "
    "went lost found won't can't couldn't wouldn't didn't cannot was never".split()
)
_ADVERBS = set("always often also now never still only sometimes just really truly then".split())


def third_person(sentence: str, name: str, pronoun: str) -> str:
    """A sentence in the first person put in the third: "I am a maid." → "Martha is a maid."."""
    him, his, himself = _FORMS[pronoun]
    text = re.sub(r"\b[Ii]'m\b", "I am", sentence)
    text = re.sub(r"\b[Ii]'ve\b", "I have", text)
    text = re.sub(r"\b[Ii]'ll\b", "I will", text)
    text = re.sub(r"\b([Ii]) ((?:[a-z']+ )*?)([a-z']+)\b", partial(_conjugated, pronoun), text)
    words = {"me": him, "my": his, "My": his.capitalize(), "myself": himself, "am": "is"}
    for word, replacement in words.items():
        text = re.sub(rf"\b{word}\b", replacement, text)
    first, _, rest = text.partition(" ")
    named = {pronoun: name, his: f"{name}'s"}.get(first.lower())
    return f"{named} {rest}" if named else text


def _conjugated(pronoun: str, match: re.Match[str]) -> str:
    before, verb = match[2].split(), match[3]
    words = [*before, verb]
    at = next((i for i, word in enumerate(words) if not _adverb(word)), len(words) - 1)
    words[at] = _third(words[at])
    return " ".join([pronoun, *words])


def _adverb(word: str) -> bool:
    return word in _ADVERBS or (word.endswith("ly") and len(word) > 4)


def _third(verb: str) -> str:
    if verb in _VERBS:
        return _VERBS[verb]
    if verb in _FIXED or verb.endswith("ed"):
        return verb
    if verb.endswith(("s", "sh", "ch", "x", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


def light_characters(data: Path, count: int) -> Iterator[Entry]:
    """The first LIGHT characters who speak of themselves in three plain sentences or more."""
    people = json.loads((data / "light_characters.json").read_text(encoding="utf-8"))
    names = iter(NAMES[:count])
    for person in people:
        persona = sentences(re.sub(r"\s+", " ", " ".join(person["persona"])))
        plain = [
            s for s in persona if re.match(r"(I|I'm|I've|My) \w", s) and 5 <= len(s.split()) <= 24
        ]
        if len(plain) < 3 or not re.match(r"I(?:'m| am) (?:a|an|the) ", plain[0]):
            continue
        name = next(names, None)
        if name is None:
            return
        name, pronoun = name.split()
        yield entry_of(name, pronoun, [third_person(s, name, pronoun) for s in plain[:5]])


def entry_of(name: str, pronoun: str, lore: list[str]) -> Entry:
    """An entry of sentences that begin with the first name, or a pronoun, and a verb.

    Its calls are reported speech ("Everybody knew that Martha milks"), the held-out ones the same
    with a pronoun, after a line of story. They go on until no other sentence goes on alike.
    """
    given = name.split()[0]
    blocks, held_out = [], []
    for sentence in lore:
        words = sentence.split(" ")
        count = 2
        while count < len(words) - 1 and any(
            other.split(" ")[:count] == words[:count] for other in lore if other != sentence
        ):
            count += 1
        first, called = words[0], " ".join(words[1:count])
        response = " " + " ".join(words[count:])
        he = pronoun if first == given else _FORMS[pronoun][1]
        blocks.append(Block(call=f"Everybody knew that {first} {called}", responses=[response]))
        call = f"{name} sat down by the fire. They said that {he} {called}"
        held_out.append(Block(call=call, responses=[response]))
    return Entry(name=name, text=" ".join(lore), blocks=blocks, held_out=held_out)


def styles(
    *,
    shared: Shared,
    model: str = "storyteller",
    characters: Annotated[int, "of LIGHT"] = 20,
    seeds: Annotated[int, "of everything that is drawn"] = 2,
    max_steps: int = 150,
    stories: Annotated[int, "for each character and style"] = 4,
    keep: Keep = None,
    show: Annotated[bool, "print the lore only"] = False,
) -> Any:
    """A row for each style: each figure's mean over characters with its 95 % interval."""
    book = Lorebook(name="LIGHT", entries=list(light_characters(shared / "data", characters)))
    if show:
        return {entry.name: entry.text for entry in book}
    comparison = run_comparison(
        FrozenModel.from_pretrained(model),
        book,
        seeds=range(seeds),
        distances=(0, 64),
        stories=stories,
        make=partial(make_styles, max_steps=max_steps),
        time_budget=1e9,
        path=keep,
        on_progress=lambda _, doing: print(doing, file=sys.stderr, flush=True),
    )
    means = summarize(comparison.rows, "method", "entry", comparison.columns)
    table = [
        {"style": style, **{column: str(mean) for column, mean in figures.items() if mean}}
        for style, figures in means.items()
    ]
    return {"table": table, "seeds": comparison.seeds, "entries": len(book)}


if __name__ == "__main__":
    main(__doc__, styles)
