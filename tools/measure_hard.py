"""Measures of hard prompts: the figures of docs/results.md, one command each.

    python tools/measure_hard.py search --shared DIR     # Emma: each method, and what it must beat
    python tools/measure_hard.py fidelity --shared DIR   # ten texts into 4 to 32 soft tokens
    python tools/measure_hard.py codes --data runs/corpus    # codes of the storyteller distilled

DIR holds `models/tinytalk-3m` and `data/`; `--data` is what ``tools/corpus.py`` wrote.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from evaluate_storyteller import ATTRIBUTED, read_passages
from measure import HELD_OUT, Bench, _merged, light_entries
from softlore import FrozenModel, WorldInfoTrainer
from softlore.compare.harness import interval
from softlore.control import Code, attribute, codes_of
from softlore.control.search import METHODS, Scorer, Searcher, best_of_random
from softlore.measure import recall
from softlore.tune.conditioning import conditioning_fidelity

HAND_WRITTEN = " Emma is a cold, classy British cyborg assassin in a black pantsuit.\n"


def told(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def search(options: Any) -> list[dict[str, Any]]:
    """Sixteen tokens by each method, beside nothing, a hand-written line and random prompts."""
    bench = Bench(options.shared)
    model, blocks, held_out = bench.model, bench.emma.blocks, _merged(HELD_OUT)

    def row(name: str, text: str, seconds: float = 0.0, **more: Any) -> dict[str, Any]:
        figures = {
            "recall": round(recall(model, text, blocks), 3),
            "held-out calls": round(recall(model, text, held_out), 3),
            "tokens": len(model.encode(text)),
            "seconds": round(seconds),
        }
        return told({"way": name, **figures, "text": text.strip(), **more})

    rows = [row("nothing", ""), row("hand-written", HAND_WRITTEN)]
    found = best_of_random(Scorer(model, blocks), 16, 100, options.seed)
    rows.append(row("best of 100 random", found.text + "\n", found.seconds))
    for method in METHODS:
        if method == "random":
            continue
        scorer = Scorer(model, blocks)
        one = Searcher(scorer, method, 16, seconds=options.seconds, seed=options.seed).search()
        more = {"steps": one.steps, "passes": one.passes}
        rows.append(row(method, one.text + "\n", one.seconds, **more))
    return rows


def fidelity(options: Any) -> list[dict[str, Any]]:
    """Personas distilled as they are, all of one kind and length in a run."""
    bench = Bench(options.shared)
    texts = {
        entry.name: " ".join(r.strip() for block in entry.blocks for r in block.responses) + "\n"
        for entry in light_entries(bench.data, options.texts)
    }
    rows = []
    for kind in options.kinds:
        for n_tokens in options.n_tokens:
            start = time.perf_counter()
            trainer = WorldInfoTrainer(
                bench.model,
                conditionings=texts,
                kind=kind,
                n_tokens=n_tokens,
                max_steps=options.max_steps,
                distil_passages=options.passages,
                company_size=1,
                seed=options.seed,
            )
            made = trainer.train()
            found = [conditioning_fidelity(bench.model, texts[name], made[name]) for name in texts]
            rows.append(
                told(
                    {
                        "kind": kind,
                        "n_tokens": n_tokens,
                        "fidelity": str(interval(found)),
                        "least": round(min(found), 3),
                        "texts": len(found),
                        "text tokens": round(
                            statistics.mean(len(bench.model.encode(t)) for t in texts.values())
                        ),
                        "seconds": round(time.perf_counter() - start),
                    }
                )
            )
    return rows


def codes(options: Any) -> list[dict[str, Any]]:
    """The storyteller's own codes distilled, and whether they still tell whose a passage is."""
    model = FrozenModel.from_pretrained("storyteller")
    own = {name: code for name, code in codes_of(model).items() if name != "Quest"}
    held_out = read_passages(options.data, options.attributed, 8 * ATTRIBUTED)
    sets: dict[str, dict[str, Code]] = {"the codes": own}
    for kind in options.kinds:
        for n_tokens in options.n_tokens:
            trainer = WorldInfoTrainer(
                model,
                conditionings={name: code.conditioning for name, code in own.items()},
                kind=kind,
                n_tokens=n_tokens,
                max_steps=options.max_steps,
                distil_passages=options.passages,
                company_size=1,
                seed=options.seed,
            )
            made = trainer.train()
            sets[f"{kind}, {n_tokens}"] = {name: Code(name, one) for name, one in made.items()}
    rows = []
    for name, these in sets.items():
        right = [
            attribute(model, model.decode(model.encode(text)[:ATTRIBUTED]), these)[0].code == genre
            for genre, texts in held_out.items()
            for text in texts
        ]
        share = round(sum(right) / len(right), 3)
        rows.append(told({"codes": name, "named right": share, "passages": len(right)}))
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["search", "fidelity", "codes"])
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--data", type=Path, help="folder that corpus.py wrote")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each search")
    parser.add_argument("--texts", type=int, default=10)
    parser.add_argument("--kinds", nargs="*", default=["prefix", "embedding"])
    parser.add_argument("--n-tokens", type=int, nargs="*", default=[4, 8, 16, 32])
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--passages", type=int, default=256, help="that a teacher writes")
    parser.add_argument("--attributed", type=int, default=100, help="passages a genre")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(json.dumps(globals()[options.what](options), indent=1))


if __name__ == "__main__":
    main()
