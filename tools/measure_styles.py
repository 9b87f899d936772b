"""Authoring styles, measured: characters of LIGHT as prose, and every style's blocks of it.

    python tools/measure_styles.py --shared DIR --model storyteller
    python tools/measure_styles.py --shared DIR --model DIR/models/tinytalk-3m --keep rows.jsonl

A seed takes an hour of one core; with --keep a run that is cut off goes on after the last seed.

DIR holds `data/light_characters.json`: sentences in the first person, which are told here in the
third of somebody with a name, as a lorebook has them. What is asked of every style alike stands in
none of them: recall asks in reported speech with the name ("Everybody knew that Martha milks"),
held-out calls with a pronoun after a line of story. Intervals are over the characters, each the
mean of its seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from softlore.compare.comparison import run_comparison
from softlore.compare.harness import interval
from softlore.compare.methods import make_styles
from softlore.disk import write_atomically
from softlore.lore import Block, Entry, Lorebook
from softlore.lore.styles import sentences
from softlore.model import FrozenModel

NOT_FIGURES = ("method", "kind", "entry", "seed", "conditioning", "story")
NAMES = (
    "Martha she", "Osric he", "Ysolde she", "Corwin he", "Brenna she", "Aldous he", "Tamsin she",
    "Edric he", "Maude she", "Roland he", "Ottilie she", "Percival he", "Rowena she", "Godfrey he",
    "Agatha she", "Leofric he", "Petra she", "Tobias he", "Winifred she", "Ambrose he",
    "Sabina she", "Jasper he", "Hester she", "Barnaby he", "Cordelia she", "Matthias he",
    "Philippa she", "Lambert he", "Drusilla she", "Hugo he",
)  # fmt: skip
_OWN = {"he": ("him", "his", "himself"), "she": ("her", "her", "herself")}
_VERBS = {"am": "is", "have": "has", "do": "does", "don't": "doesn't", "haven't": "hasn't"}
# After these no verb changes; past forms and auxiliaries.
_FIXED = set(
    "can could will would shall should may might must was had did grew came made took saw knew "
    "went lost found won't can't couldn't wouldn't didn't cannot was never".split()
)
_ADVERBS = set("always often also now never still only sometimes just really truly then".split())


def third_person(sentence: str, name: str, pronoun: str) -> str:
    """A sentence of "I" told of somebody: "I am a maid." → "Martha is a maid."."""
    him, his, himself = _OWN[pronoun]
    text = re.sub(r"\b[Ii]'m\b", "I am", sentence)
    text = re.sub(r"\b[Ii]'ve\b", "I have", text)
    text = re.sub(r"\b[Ii]'ll\b", "I will", text)
    text = re.sub(r"\b([Ii]) ((?:[a-z']+ )*?)([a-z']+)\b", partial(_conjugated, pronoun), text)
    swaps = (
        ("me", him),
        ("my", his),
        ("My", his.capitalize()),
        ("myself", himself),
        ("am", "is"),
    )
    for mine, theirs in swaps:
        text = re.sub(rf"\b{mine}\b", theirs, text)
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


def characters(data: Path, count: int) -> Iterator[Entry]:
    """The first LIGHT characters who speak of themselves in three plain sentences or more."""
    people = json.loads((data / "light_characters.json").read_text(encoding="utf-8"))
    told = 0
    for person in people:
        said = sentences(re.sub(r"\s+", " ", " ".join(person["persona"])))
        plain = [
            s for s in said if re.match(r"(I|I'm|I've|My) \w", s) and 5 <= len(s.split()) <= 24
        ]
        if len(plain) < 3 or not re.match(r"I(?:'m| am) (?:a|an|the) ", plain[0]):
            continue
        name, pronoun = NAMES[told].split()
        yield _entry(name, pronoun, [third_person(s, name, pronoun) for s in plain[:5]])
        told += 1
        if told == count:
            return


def _entry(name: str, pronoun: str, told: list[str]) -> Entry:
    asked, held_out = [], []
    for sentence in told:
        first, second, *rest = sentence.split(" ")
        response = " " + " ".join(rest)
        he = pronoun if first == name else _OWN[pronoun][1]
        asked.append(Block(call=f"Everybody knew that {first} {second}", responses=[response]))
        held_out.append(
            Block(
                call=f"{name} sat down by the fire. They said that {he} {second}",
                responses=[response],
            )
        )
    return Entry(name=name, text=" ".join(told), blocks=asked, held_out=held_out)


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a style: each figure's mean over characters with its 95 % interval."""
    columns = [name for name in rows[0] if name not in NOT_FIGURES]
    told = []
    for way in dict.fromkeys(row["method"] for row in rows):
        row: dict[str, Any] = {"style": way}
        for column in columns:
            by_entry: dict[str, list[float]] = {}
            for one in rows:
                if one["method"] == way and one[column] is not None:
                    by_entry.setdefault(one["entry"], []).append(one[column])
            if by_entry:
                row[column] = str(interval([statistics.fmean(v) for v in by_entry.values()]))
        told.append(row)
    return told


def kept(path: Path | None) -> list[dict[str, Any]]:
    """The rows of seeds that were measured before."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--model", default="storyteller")
    parser.add_argument("--characters", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=150)
    parser.add_argument("--stories", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--keep", type=Path, help="JSON lines: seeds that stand there are not measured again"
    )
    parser.add_argument("--show", action="store_true", help="print the lore and end")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    book = Lorebook(
        name="LIGHT", entries=list(characters(options.shared / "data", options.characters))
    )
    if options.show:
        print("\n".join(f"{entry.name}: {entry.text}" for entry in book))
        return
    model = FrozenModel.from_pretrained(options.model)
    rows = kept(options.keep)
    for seed in sorted(set(range(options.seeds)) - {row["seed"] for row in rows}):
        contest = run_comparison(
            model,
            book,
            seeds=[seed],
            distances=(0, 64),
            stories=options.stories,
            make=partial(make_styles, max_steps=options.max_steps),
            time_budget=1e9,
            on_progress=lambda _, doing: print(doing, file=sys.stderr, flush=True),
        )
        rows += contest.rows
        if options.keep is not None:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            write_atomically(options.keep, lines.encode())
    seeds = sorted({row["seed"] for row in rows})
    print(json.dumps({"table": table(rows), "seeds": seeds, "entries": len(book)}, indent=1))


if __name__ == "__main__":
    main()
