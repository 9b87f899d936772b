"""Measures on a real third-party story model (tinytalk-3m, 3.4 M parameters): the figures of
docs/results.md, one command each.

    python tools/measure.py emma --shared DIR          # one entry, both kinds, held-out calls
    python tools/measure.py company --shared DIR       # two characters, alone and together
    python tools/measure.py light --shared DIR         # twenty characters in one run
    python tools/measure.py distil --shared DIR        # plain text into 16 and 8 prefix tokens
    python tools/measure.py long --shared DIR          # responses of 300 tokens on the storyteller

DIR holds `models/tinytalk-3m` and `data/`; the package itself needs neither.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from softlore.decode import SamplingParams, sample_ids
from softlore.lore import Block, Entry, Lorebook
from softlore.measure import copied
from softlore.measure.score import divergence, drift, recall
from softlore.model import FrozenModel
from softlore.prompts import Context
from softlore.tune import WorldInfoTrainer

# Paraphrased calls of our own; none is trained on.
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


# Rows bend more than prefixes: they want a longer run and a stronger guard.
EMBEDDING = {
    "n_tokens": 50,
    "kind": "embedding",
    "max_spacing": 100,
    "max_steps": 700,
    "drift_guard": 1.25,
}


class Bench:
    """A model, its data, and story text of nobody's lore."""

    def __init__(self, shared: Path) -> None:
        self.model = FrozenModel.from_pretrained(shared / "models" / "tinytalk-3m")
        self.data = shared / "data"
        self.texts = json.loads((self.data / "measure.json").read_text(encoding="utf-8"))
        self.unrelated = [self.model.encode(text) for text in self.texts["unrelated"]]
        self.emma = Lorebook.load(self.data / "emma.json", name="Emma").entries[0]
        pairs = [(pair["call"], pair["response"]) for pair in self.texts["second_character"]]
        self.bram = Entry(name="Bram", blocks=_merged(pairs))

    def recalls(self, conditioning: Any, entry: Entry, distances: tuple[int, ...]) -> list[float]:
        return [
            round(recall(self.model, conditioning, entry.blocks, d, self.unrelated[:5]), 3)
            for d in distances
        ]

    def drift(self, conditioning: Any) -> float:
        return round(drift(self.model, conditioning, self.unrelated), 3)


def _merged(pairs: list[tuple[str, str]]) -> list[Block]:
    calls: dict[str, list[str]] = {}
    for call, response in pairs:
        calls.setdefault(call, []).append(response)
    return [Block(call=call, responses=responses) for call, responses in calls.items()]


def _trained(model: FrozenModel, entries: list[Entry], **settings: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    prompts = WorldInfoTrainer(model, entries=entries, **settings).train()
    seconds = time.perf_counter() - start
    names = ", ".join(entry.name for entry in entries[:4]) + (" …" if len(entries) > 4 else "")
    print(f"trained {names} in {seconds:.0f} s", file=sys.stderr)
    return prompts, seconds


def emma(bench: Bench, options: Any) -> dict[str, Any]:
    """One entry: embedding kind, 50 tokens; prefix kind, 10 tokens."""
    held_out = _merged(HELD_OUT)
    report: dict[str, Any] = {}
    conditionings: dict[str, tuple[Any, float]] = {"bare": ("", 0.0)}
    for name, settings in (
        ("prefix, 10", {"n_tokens": 10, "max_spacing": 100}),
        ("embedding, 50", EMBEDDING),
    ):
        made, seconds = _trained(bench.model, [bench.emma], seed=options.seed, **settings)
        conditionings[name] = (made["Emma"], seconds)
    for name, (conditioning, seconds) in conditionings.items():
        at_0, at_80 = bench.recalls(conditioning, bench.emma, (0, 80))
        report[name] = {
            "recall at 0": at_0,
            "recall at 80": at_80,
            "held-out calls": round(recall(bench.model, conditioning, held_out), 3),
            "drift": bench.drift(conditioning) if conditioning else 0.0,
            "seconds": round(seconds, 1),
        }
    return report


def company(bench: Bench, options: Any) -> dict[str, Any]:
    """Two characters in one run: alone, and together in both orders."""
    report: dict[str, Any] = {}
    for kind, n_tokens in (("prefix", 10), ("embedding", 40)):
        made, seconds = _trained(
            bench.model, [bench.emma, bench.bram], kind=kind, n_tokens=n_tokens, seed=options.seed
        )
        a, b = made["Emma"], made["Bram"]
        conditionings = {
            "alone": None,
            "Emma, Bram": Context([a, b]),
            "Bram, Emma": Context([b, a]),
        }
        for name, conditioning in conditionings.items():
            report[f"{kind}, {n_tokens}: {name}"] = {
                "Emma": bench.recalls(conditioning or a, bench.emma, (40,))[0],
                "Bram": bench.recalls(conditioning or b, bench.bram, (40,))[0],
                "drift": bench.drift(conditioning or a),
                "seconds": round(seconds, 1),
            }
    return report


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
            entries.append(Entry(name=name, blocks=_merged(pairs)))
        if len(entries) == count:
            break
    return entries


def light(bench: Bench, options: Any) -> dict[str, Any]:
    """Twenty characters in one run: alone, four together, and with another's prompt."""
    entries = light_entries(bench.data, options.count)
    report: dict[str, Any] = {}
    for kind, n_tokens in (("prefix", 10), ("embedding", 20)):
        if options.kind not in (None, kind):
            continue
        made, seconds = _trained(
            bench.model,
            entries,
            kind=kind,
            n_tokens=n_tokens,
            seed=options.seed,
            time_budget=options.time_budget,
        )
        draw = random.Random(options.seed)
        rows: dict[str, list[float]] = {"alone": [], "four together": [], "wrong prompt": []}
        for entry in entries:
            others = [e.name for e in entries if e.name != entry.name]
            group = [*draw.sample(others, 3), entry.name]
            draw.shuffle(group)
            rows["alone"] += bench.recalls(made[entry.name], entry, (40,))
            rows["four together"] += bench.recalls(
                Context([made[name] for name in group]), entry, (40,)
            )
            rows["wrong prompt"] += bench.recalls(made[draw.choice(others)], entry, (40,))
        report[f"{kind}, {n_tokens}"] = {
            name: round(statistics.mean(values), 3) for name, values in rows.items()
        } | {
            "drift": round(statistics.mean(bench.drift(p) for p in made.values()), 3),
            "characters": len(entries),
            "seconds": round(seconds, 1),
        }
    return report


def distil(bench: Bench, options: Any) -> dict[str, Any]:
    """Plain text into prefix tokens: fidelity over seeds, and lore words in sampled stories."""
    model, text = bench.model, bench.texts["lore_text"]
    openers, words = bench.texts["openers"], bench.texts["lore_keywords"]
    entry = Entry(name="Bram", text=text)
    passages = _passages(model, text, openers, 96, 48, seed=9001)
    bare = divergence(model, text, "", passages)
    report: dict[str, Any] = {"bare": {"KL": round(bare, 3)} | _keywords(model, "", words)}
    report["text"] = {"tokens": len(model.encode(text))} | _keywords(model, text, words)
    settings = [(n, 0, []) for n in options.n_tokens]
    for (n, _, _), seed in itertools.product(settings, range(options.seeds)):
        made, seconds = _trained(model, [entry], n_tokens=n, seed=seed, max_steps=options.max_steps)
        report[f"prefix, {n}, seed {seed}"] = _fidelity(
            model, text, made["Bram"], passages, bare, words, seconds
        )
    if options.together:
        made, seconds = _trained(model, [entry, bench.emma], n_tokens=16, seed=0)
        both = Context([made["Bram"], made["Emma"]])
        report["in company, alone"] = _fidelity(
            model, text, made["Bram"], passages, bare, words, seconds
        )
        report["in company, with Emma"] = _fidelity(
            model, text, both, passages, bare, words, seconds
        ) | {"Emma recalls": bench.recalls(both, bench.emma, (40,))[0]}
    return report


def _fidelity(
    model: FrozenModel,
    text: str,
    conditioning: Any,
    passages: list[list[int]],
    bare: float,
    words: list[str],
    seconds: float,
) -> dict[str, Any]:
    left = divergence(model, text, conditioning, passages)
    found = {"KL": round(left, 3), "fidelity": round(1 - left / bare, 3)}
    return found | _keywords(model, conditioning, words) | {"seconds": round(seconds, 1)}


def _passages(
    model: FrozenModel, conditioning: Any, openers: list[str], count: int, length: int, seed: int
) -> list[list[int]]:
    """Held-out passages: what the model writes after the head, by other seeds than training's."""
    starts = [openers[i % len(openers)] for i in range(count)]
    return [
        model.encode(start) + ids
        for start, ids in zip(
            starts, _stories(model, conditioning, starts, length, seed, 1.0, 0), strict=True
        )
    ]


def _stories(
    model: FrozenModel,
    conditioning: Any,
    starts: list[str],
    length: int,
    seed: int,
    temperature: float,
    top_k: int,
) -> list[list[int]]:
    from softlore.measure.score import trunk

    before = trunk(model, conditioning)
    params = SamplingParams(temperature=temperature, top_k=top_k)
    contexts = [(before, model.encode(start)) for start in starts]
    return sample_ids(model, contexts, params, length, seed)


def _keywords(model: FrozenModel, conditioning: Any, words: list[str]) -> dict[str, float]:
    """Lore words in 48 stories of 60 tokens after "One day, Bram" (temperature 0.8, top-k 40)."""
    starts = ["One day, Bram"] * 48
    texts = [
        model.decode(ids).lower() for ids in _stories(model, conditioning, starts, 60, 7, 0.8, 40)
    ]
    hits = [sum(word.lower() in text for word in words) for text in texts]
    return {
        "lore words a story": round(statistics.mean(hits), 2),
        "stories with any": round(sum(h > 0 for h in hits) / len(hits), 2),
    }


def long(bench: Bench, options: Any) -> dict[str, Any]:
    """One prompt trained with responses of 300 tokens and more, on the storyteller."""
    model = FrozenModel.from_pretrained("storyteller")
    ids = _stories(model, "", ["The old house", "Her brother"], 320, 11, 1.0, 0)
    responses = [" " + model.decode(row).strip() for row in ids]
    blocks = [
        ("The tale of the house:", responses[:1]),
        ("The tale of the brother:", responses[1:]),
    ]
    entry = Entry(name="tales", blocks=blocks)
    made, seconds = _trained(model, [entry], n_tokens=options.n_tokens[0], seed=options.seed)
    written = _stories(model, made["tales"], ["The tale of the house:"], 300, 1, 0.8, 40)[0]
    copy = copied([written], [model.encode(response) for response in responses])
    return {
        "response tokens": {"each": [len(model.encode(r)) for r in responses]},
        "recall": {
            "bare": round(recall(model, "", entry.blocks), 3),
            "soft": round(recall(model, made["tales"], entry.blocks), 3),
        },
        "copy": asdict(copy),
        "seconds": {"training": round(seconds, 1)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["emma", "company", "light", "distil", "long"])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3, help="runs of `distil`")
    parser.add_argument("--count", type=int, default=20, help="characters of `light`")
    parser.add_argument(
        "--kind", choices=["prefix", "embedding"], help="of `light`; both if absent"
    )
    parser.add_argument("--time-budget", type=float, default=280.0, help="of `light`, seconds")
    parser.add_argument("--n-tokens", type=int, nargs="*", default=[16, 8])
    parser.add_argument("--max-steps", type=int, default=400, help="of `distil`")
    parser.add_argument("--together", action="store_true", help="`distil` also in company")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = globals()[options.what](Bench(options.shared), options)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
