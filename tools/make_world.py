"""Makes a lorebook of a thousand entries: a world to measure at the size that people share.

    python tools/make_world.py --shared DIR --out runs/world.yaml
    python tools/make_world.py --shared DIR --every 16 --out runs/sample.yaml

DIR has `data/light_characters.json`. The first entries are its 300 characters: their sentences in
the third person, under names that are made here, since theirs ("a guard") are not distinct. All
others are made from lists of trades, places, garments and so on; no two have the same facts. Every
made one knows another entry, whose name stands in its text. Each entry has calls of its own
sentences, and held-out ones.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated

from measure_styles import entry_of, third_person
from measuring import Shared, main
from softlore.lore import Entry, Lorebook
from softlore.lore.sentences import sentences

BEGINNINGS = (
    "Al", "Bar", "Cor", "Dun", "El", "Far", "Gar", "Hal", "Is", "Jor", "Kel", "Lor", "Mar", "Nor",
    "Os", "Per", "Quin", "Ros", "Sel", "Tam", "Ul", "Ves", "Wil", "Yar", "Zan", "Ab", "Bel", "Cad",
    "Dor", "Em", "Fen", "Gil", "Hes", "Il", "Jas", "Kor", "Lan", "Mel", "Nim", "Ol", "Pad", "Raf",
    "Sam", "Tor", "Urs", "Vin", "Wal", "Yol", "Zel", "Thes",
)  # fmt: skip
ENDINGS = {
    "she": ("andra", "beth", "eline", "issa", "ova", "rith", "una", "wyn", "yra", "essa"),
    "he": ("dric", "bert", "gan", "ius", "mund", "ric", "ston", "vald", "win", "zor"),
}
SURNAMES = ("Ashdown", "Blackwood", "Copperfield", "Drayton", "Eastlake", "Fenwick")
TRADES = (
    "baker", "bell ringer", "candle maker", "carpenter", "clockmaker", "cook", "ferryman",
    "fiddler", "glass blower", "goat herd", "gravedigger", "healer", "hunter", "judge",
    "lamp lighter", "locksmith", "map maker", "miller", "poet", "rope maker", "sailor", "smith",
    "tailor", "weaver",
)  # fmt: skip
PLACES = (
    "the mill", "the old bridge", "the harbour", "the north tower", "the salt market", "the forest",
    "the monastery", "the quarry", "the lighthouse", "the marsh", "the river", "the castle gate",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "grey", "yellow", "white", "black", "brown")
GARMENTS = ("coat", "hat", "scarf", "cloak", "apron", "pair of boots", "belt", "shawl")
THINGS = (
    "a silver key", "a wooden flute", "a tame raven", "a broken sword", "a jar of honey",
    "a lantern", "a deck of cards", "a glass eye", "a copper ring", "a book of maps",
    "a blind dog", "a bag of salt",
)  # fmt: skip
FEARS = (
    "thunder", "deep water", "spiders", "the dark", "horses", "strangers", "fire", "bells",
    "wolves", "high places", "the king", "old songs",
)  # fmt: skip


def world(
    *,
    shared: Shared,
    entries: int = 1000,
    every: Annotated[int, "keep one of so many: a sample of the same world"] = 1,
    out: Path = Path("runs/world.yaml"),
    seed: Annotated[int, "of names and facts"] = 0,
) -> dict[str, int]:
    """Writes the lorebook; says how many entries are LIGHT's, and how many made."""
    draw = random.Random(f"world/{seed}")
    names = _names(draw)
    of_light = list(_of_light(shared / "data", names))[:entries]
    made = list(_made(draw, names, entries - len(of_light), [e.name for e in of_light]))
    of_light, made = of_light[::every], made[::every]
    book = Lorebook(name="World", entries=[*of_light, *made])
    out.parent.mkdir(parents=True, exist_ok=True)
    book.save(out)
    return {"of LIGHT": len(of_light), "made": len(made)}


def _names(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Names with their pronouns, in an order by chance; a thousand first names, then again."""
    for surname in SURNAMES:
        firsts = [
            (beginning + ending, pronoun)
            for pronoun, endings in ENDINGS.items()
            for beginning, ending in product(BEGINNINGS, endings)
        ]
        draw.shuffle(firsts)
        for first, pronoun in firsts:
            yield f"{first} {surname}", pronoun


def _of_light(data: Path, names: Iterator[tuple[str, str]]) -> Iterator[Entry]:
    people = json.loads((data / "light_characters.json").read_text(encoding="utf-8"))
    for person, (name, pronoun) in zip(people, names, strict=False):
        persona = sentences(re.sub(r"\s+", " ", " ".join(person["persona"])))
        lore = [third_person(s, name.split()[0], pronoun) for s in persona if len(s.split()) > 2]
        lore = [s for s in lore if s.startswith(name.split()[0])][:4]
        role = f"{name} is {person['name']}." if not lore else f"{name}, {person['name']}."
        yield _with_key(entry_of(name, pronoun, lore or [role]))


def _made(
    draw: random.Random,
    names: Iterator[tuple[str, str]],
    count: int,
    known: Sequence[str],
) -> Iterator[Entry]:
    """Entries of made facts; each knows one of those before it."""
    facts = list(product(TRADES, PLACES, COLOURS))
    draw.shuffle(facts)
    others = list(known)
    for (name, pronoun), (trade, place, colour) in zip(names, facts[:count], strict=False):
        first = name.split()[0]
        garment, thing, fear = map(draw.choice, (GARMENTS, THINGS, FEARS))
        lore = [
            f"{first} is the {trade} at {place}.",
            f"{first} wears a {colour} {garment}.",
            f"{first} carries {thing} and fears {fear}.",
        ]
        if others:
            lore.append(f"{first} knows {draw.choice(others)}.")
        others.append(name)
        yield _with_key(entry_of(name, pronoun, lore))


def _with_key(entry: Entry) -> Entry:
    return entry.model_copy(update={"keys": [entry.name.split()[0]]})


if __name__ == "__main__":
    main(__doc__, world)
