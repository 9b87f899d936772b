"""Measures on a real third-party story model (tinytalk-3m, 3.4 M parameters): the figures of
docs/results.md, one command each.

    python tools/measure.py emma --shared DIR          # one entry, both kinds, held-out calls
    python tools/measure.py company --shared DIR       # two characters, alone and together
    python tools/measure.py light --shared DIR         # twenty characters in one run
    python tools/measure.py distil --shared DIR        # plain text into 16 and 8 prefix tokens
    python tools/measure.py long --shared DIR          # responses of 300 tokens on the storyteller

DIR has `models/tinytalk-3m` and `data/`; the package itself needs neither.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from measuring import Keep, Seed, Shared, main, measure
from softlore.compare.harness import Row, grid
from softlore.compare.methods import TrainedMethod, train_method
from softlore.context.compose import ContextLike
from softlore.decode import SamplingParams, sample_ids
from softlore.lore import Block, Entry, Lorebook
from softlore.measure import copied, divergence, drift, recall
from softlore.measure.score import trunk
from softlore.model import FrozenModel
from softlore.prompts import Context

# Paraphrased calls; none is trained on.
HELD_OUT = [
    (" Emma was wearing", " a crisp black pantsuit"),
    (" Emma was dressed in", " a crisp black pantsuit"),
    (" Emma worked as a", " British cyborg assassin, tasked with killing high-profile targets"),
    (" For a living, Emma was a", " British cyborg assassin"),
    (" The colour of Emma's hair was", " long and blonde, tied in a ponytail"),
    (" Everyone looked at Emma's hair, which was", " long and blonde, tied in a ponytail"),
    (" Inside Emma's arms were", " two guns implanted into them"),
    (" Emma came from a country, she was", " British"),
    (" Emma's character was", " classy, style-conscious, perfectionist, cold, ruthless"),
    (" People who knew Emma said that she was", " cold, ruthless, and calculating"),
]
# The embedding kind drifts more than prefixes, so it gets a longer run and a stronger guard.
EMMA_METHODS: dict[str, dict[str, Any]] = {
    "prefix, 10": {"n_tokens": 10, "max_spacing": 100},
    "embedding, 50": {
        "n_tokens": 50,
        "kind": "embedding",
        "max_spacing": 100,
        "max_steps": 700,
        "drift_guard": 1.25,
    },
}
Lengths = Annotated[list[int], "tokens of the soft prompts"]


class TinytalkData:
    """The model tinytalk-3m, lore for it, and unrelated story text."""

    def __init__(self, shared: Path) -> None:
        self.model = FrozenModel.from_pretrained(shared / "models" / "tinytalk-3m")
        self.folder = shared / "data"
        self.texts = json.loads((self.folder / "measure.json").read_text(encoding="utf-8"))
        self.unrelated = [self.model.encode(text) for text in self.texts["unrelated"]]
        self.emma = Lorebook.load(self.folder / "emma.json", name="Emma").entries[0]
        pairs = [(pair["call"], pair["response"]) for pair in self.texts["second_character"]]
        self.bram = Entry(name="Bram", blocks=merge_blocks(pairs))

    def recall(self, conditioning: ContextLike, entry: Entry, distance: int) -> float:
        filler = self.unrelated[:5]
        return round(recall(self.model, conditioning, entry.blocks, distance, filler), 3)

    def drift(self, conditioning: ContextLike) -> float:
        return round(drift(self.model, conditioning, self.unrelated), 3) if conditioning else 0.0

    @cached_property
    def passages(self) -> list[list[int]]:
        """Passages that the model writes after Bram's text, by other draws than training's."""
        openings = [self.texts["openers"][i % len(self.texts["openers"])] for i in range(96)]
        params = SamplingParams(temperature=1.0, top_k=0)
        written = continue_texts(
            self.model, self.texts["lore_text"], openings, 48, params, seed=9001
        )
        return [
            self.model.encode(opening) + ids for opening, ids in zip(openings, written, strict=True)
        ]

    def lore_words(self, conditioning: ContextLike) -> Row:
        """Lore words in 48 stories of 60 tokens after "One day, Bram"."""
        openings, params = ["One day, Bram"] * 48, SamplingParams(temperature=0.8, top_k=40)
        written = continue_texts(self.model, conditioning, openings, 60, params, seed=7)
        texts = [self.model.decode(ids).lower() for ids in written]
        keywords = [word.lower() for word in self.texts["lore_keywords"]]
        hits = [sum(word in text for word in keywords) for text in texts]
        return {
            "lore words a story": round(fmean(hits), 2),
            "stories with any": round(fmean(count > 0 for count in hits), 2),
        }


def merge_blocks(pairs: Sequence[tuple[str, str]]) -> list[Block]:
    """Blocks of (call, response) pairs; pairs with the same call become one."""
    calls: dict[str, list[str]] = {}
    for call, response in pairs:
        calls.setdefault(call, []).append(response)
    return [Block(call=call, responses=responses) for call, responses in calls.items()]


def train(model: FrozenModel, entries: Sequence[Entry], **settings: Any) -> TrainedMethod:
    """Trains entries in company, and reports the time on standard error."""
    trained = train_method(model, "", entries=entries, **settings)
    names = ", ".join(entry.name for entry in entries[:4]) + (" …" if len(entries) > 4 else "")
    print(f"trained {names} in {trained.seconds:.0f} s", file=sys.stderr)
    return trained


def continue_texts(
    model: FrozenModel,
    conditioning: ContextLike,
    openings: Sequence[str],
    tokens: int,
    params: SamplingParams,
    seed: int,
) -> list[list[int]]:
    """New token ids after a conditioning and each opening."""
    tree = trunk(model, conditioning)
    contexts = [(tree, model.encode(opening)) for opening in openings]
    return sample_ids(model, contexts, params, tokens, seed)


def emma(*, shared: Shared, seed: Seed = 0, keep: Keep = None) -> list[Row]:
    """One entry: embedding kind, 50 tokens; prefix kind, 10 tokens."""
    data = TinytalkData(shared)

    def case(method: str) -> Row:
        conditioning: ContextLike = ""
        seconds = 0.0
        if method != "bare":
            trained = train(data.model, [data.emma], seed=seed, **EMMA_METHODS[method])
            conditioning, seconds = trained.conditionings["Emma"], trained.seconds
        held_out = recall(data.model, conditioning, merge_blocks(HELD_OUT))
        return {
            "recall at 0": data.recall(conditioning, data.emma, 0),
            "recall at 80": data.recall(conditioning, data.emma, 80),
            "held-out calls": round(held_out, 3),
            "drift": data.drift(conditioning),
            "seconds": round(seconds, 1),
        }

    return measure(grid(method=["bare", *EMMA_METHODS]), case, keep)


def company(*, shared: Shared, seed: Seed = 0, keep: Keep = None) -> list[Row]:
    """Two characters in one run: alone, and together in both orders."""
    data = TinytalkData(shared)

    def case(kind: str, n_tokens: int) -> list[Row]:
        entries = [data.emma, data.bram]
        trained = train(data.model, entries, kind=kind, n_tokens=n_tokens, seed=seed)
        a, b = trained.conditionings["Emma"], trained.conditionings["Bram"]
        together = {"Emma, Bram": Context([a, b]), "Bram, Emma": Context([b, a])}
        return [
            {
                "prompts": name,
                "Emma": data.recall(together.get(name, a), data.emma, 40),
                "Bram": data.recall(together.get(name, b), data.bram, 40),
                "drift": data.drift(together.get(name, a)),
                "seconds": round(trained.seconds, 1),
            }
            for name in ("alone", *together)
        ]

    cases = [{"kind": "prefix", "n_tokens": 10}, {"kind": "embedding", "n_tokens": 40}]
    return measure(cases, case, keep)


def light_entries(data: Path, count: int) -> list[Entry]:
    """LIGHT characters: name and the first words of a persona sentence → the rest of it."""
    entries: list[Entry] = []
    for character in json.loads((data / "light_characters.json").read_text(encoding="utf-8")):
        text = " ".join(character["persona"])
        sentences = [s.split() for s in re.split(r"(?<=[.!?])\s+", text)]
        pairs = [
            (f" {character['name']}: {' '.join(s[:3])}", " " + " ".join(s[3:]))
            for s in sentences
            if 6 <= len(s) <= 20
        ][:5]
        name = re.sub(r"[^\w .'-]", "", character["name"])
        if len(pairs) >= 3 and name not in {e.name for e in entries}:
            entries.append(Entry(name=name, blocks=merge_blocks(pairs)))
        if len(entries) == count:
            break
    return entries


def light(
    *,
    shared: Shared,
    count: Annotated[int, "characters"] = 20,
    kind: Annotated[Literal["prefix", "embedding"] | None, "[default: both]"] = None,
    time_budget: Annotated[float, "seconds of training"] = 280.0,
    seed: Seed = 0,
    keep: Keep = None,
) -> list[Row]:
    """Twenty characters in one run: alone, four together, and with another's prompt."""
    data = TinytalkData(shared)
    entries = light_entries(data.folder, count)
    names = [entry.name for entry in entries]

    def case(kind: str, n_tokens: int) -> Row:
        settings = {"kind": kind, "n_tokens": n_tokens, "seed": seed, "time_budget": time_budget}
        trained = train(data.model, entries, **settings)
        prompts, draw = trained.conditionings, random.Random(seed)
        recalls: dict[str, list[float]] = {"alone": [], "four together": [], "wrong prompt": []}
        for entry in entries:
            others = [name for name in names if name != entry.name]
            group = [*draw.sample(others, 3), entry.name]
            draw.shuffle(group)
            conditionings = {
                "alone": prompts[entry.name],
                "four together": Context([prompts[name] for name in group]),
                "wrong prompt": prompts[draw.choice(others)],
            }
            for name, conditioning in conditionings.items():
                recalls[name].append(data.recall(conditioning, entry, 40))
        return {
            **{name: round(fmean(values), 3) for name, values in recalls.items()},
            "drift": round(fmean(map(data.drift, prompts.values())), 3),
            "characters": len(entries),
            "seconds": round(trained.seconds, 1),
        }

    cases = [{"kind": "prefix", "n_tokens": 10}, {"kind": "embedding", "n_tokens": 20}]
    return measure([c for c in cases if kind in (None, c["kind"])], case, keep)


def distil(
    *,
    shared: Shared,
    n_tokens: Lengths = [16, 8],  # noqa: B006 - read only
    seeds: Annotated[int, "runs of each length"] = 3,
    max_steps: int = 400,
    together: Annotated[bool, "also in company"] = False,
    keep: Keep = None,
) -> list[Row]:
    """Plain text into prefix tokens: fidelity over seeds, and lore words in sampled stories."""
    data = TinytalkData(shared)
    model, text = data.model, data.texts["lore_text"]
    entry = Entry(name="Bram", text=text)
    bare = divergence(model, text, "", data.passages)

    def fidelity(conditioning: ContextLike, seconds: float) -> Row:
        kl = divergence(model, text, conditioning, data.passages)
        figures = {"KL": round(kl, 3), "fidelity": round(1 - kl / bare, 3)}
        return {**figures, **data.lore_words(conditioning), "seconds": round(seconds, 1)}

    def case(n_tokens: int, seed: int) -> Row:
        trained = train(
            model, [entry], n_tokens=n_tokens, seed=seed, max_steps=max_steps, style="none"
        )
        return fidelity(trained.conditionings["Bram"], trained.seconds)

    rows: list[Row] = [
        {"method": "bare", "KL": round(bare, 3), **data.lore_words("")},
        {"method": "text", "tokens": len(model.encode(text)), **data.lore_words(text)},
    ]
    rows += measure(grid(n_tokens=n_tokens, seed=range(seeds)), case, keep)
    if together:
        trained = train(model, [entry, data.emma], n_tokens=16, seed=0, style="none")
        alone, emma = trained.conditionings["Bram"], trained.conditionings["Emma"]
        both = Context([alone, emma])
        rows.append({"method": "in company, alone", **fidelity(alone, trained.seconds)})
        rows.append(
            {
                "method": "in company, with Emma",
                **fidelity(both, trained.seconds),
                "Emma recalls": data.recall(both, data.emma, 40),
            }
        )
    return rows


def long(*, n_tokens: int = 16, seed: Seed = 0, shared: Path | None = None) -> Row:
    """One prompt trained with responses of 300 tokens and more, on the storyteller."""
    model = FrozenModel.from_pretrained("storyteller")
    params = SamplingParams(temperature=1.0, top_k=0)
    ids = continue_texts(model, "", ["The old house", "Her brother"], 320, params, seed=11)
    responses = [" " + model.decode(row).strip() for row in ids]
    calls = ["The tale of the house:", "The tale of the brother:"]
    entry = Entry(name="tales", blocks=merge_blocks(list(zip(calls, responses, strict=True))))
    trained = train(model, [entry], n_tokens=n_tokens, seed=seed)
    prompt = trained.conditionings["tales"]
    params = SamplingParams(temperature=0.8, top_k=40)
    written = continue_texts(model, prompt, calls[:1], 300, params, seed=1)
    return {
        "response tokens": [len(model.encode(response)) for response in responses],
        "recall, bare": round(recall(model, "", entry.blocks), 3),
        "recall, soft": round(recall(model, prompt, entry.blocks), 3),
        "copy": asdict(copied(written, [model.encode(response) for response in responses])),
        "seconds": round(trained.seconds, 1),
    }


if __name__ == "__main__":
    main(__doc__, emma, company, light, distil, long)
