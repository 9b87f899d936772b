"""Measures of control codes: the figures of docs/results.md, one command each.

    python tools/measure_codes.py learned --data runs/corpus --model DIR/models/tinytalk-3m
    python tools/measure_codes.py strength --data runs/corpus

`--data` is what ``tools/corpus.py`` wrote. `learned` trains codes for genres that the model was
never told apart, and asks them whose held-out passages are; `strength` writes under storyteller's
own codes at several strengths, and asks a naive Bayes classifier of words what came of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from evaluate_storyteller import ATTRIBUTED, NaiveBayes, read_passages
from softlore import FrozenModel, WorldInfoTrainer, generate
from softlore.cli.train import CODE_SETTINGS
from softlore.control import Code, attribute, codes_of
from softlore.measure import distinct, perplexity

TRAINED_ON = 120_000  # tokens of each genre
OPENINGS = ("The door", "He", "That evening", "She looked", "There was", "At last")


def learned(model: FrozenModel, options: Any) -> list[dict[str, Any]]:
    """Codes of each kind and length, trained in one run, and how often they name a passage."""
    tokenizer = AutoTokenizer.from_pretrained(options.storyteller)
    corpora = {}
    for genre in options.genres:
        ids = np.fromfile(options.data / f"train-{genre}.bin", np.uint16)[:TRAINED_ON]
        corpora[genre] = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    held_out = read_passages(options.data, options.passages, 8 * ATTRIBUTED)
    rows = []
    for kind in options.kinds:
        for n_tokens in options.n_tokens:
            start = time.perf_counter()
            trainer = WorldInfoTrainer(
                model,
                corpora=corpora,
                kind=kind,
                n_tokens=n_tokens,
                max_steps=options.max_steps,
                seed=options.seed,
                **CODE_SETTINGS,
            )
            made = trainer.train()
            seconds = time.perf_counter() - start
            codes = {name: Code(name, prompt) for name, prompt in made.items()}
            right = {
                genre: [
                    attribute(model, _cut(model, text), codes)[0].code == genre
                    for text in held_out[genre]
                ]
                for genre in options.genres
            }
            named = [one for found in right.values() for one in found]
            rows.append(
                {
                    "kind": kind,
                    "n_tokens": n_tokens,
                    "named right": round(sum(named) / len(named), 3),
                    **{genre: round(sum(r) / len(r), 3) for genre, r in right.items()},
                    "passages": len(named),
                    "seconds": round(seconds),
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def strength(model: FrozenModel, options: Any) -> list[dict[str, Any]]:
    """Texts written at several strengths: whose words they are in, and how well they read."""
    bayes = NaiveBayes(options.data, model.tokenizer)
    codes = {name: code for name, code in codes_of(model).items() if name in options.genres}
    rows = []
    for dose in options.strengths:
        right, pairs = [], []
        for name, code in codes.items():
            for seed in range(options.texts):
                opening = OPENINGS[seed % len(OPENINGS)]
                told = generate(
                    model,
                    opening,
                    80,
                    conditioning=[(code.conditioning, dose)],
                    seed=seed,
                    temperature=0.8,
                )
                right.append(bayes.name(opening + told) == name)
                pairs.append((model.encode(opening), model.encode(told, inside=True)))
        rows.append(
            {
                "strength": dose,
                "named right": round(sum(right) / len(right), 3),
                "perplexity": round(perplexity(model, pairs) or 0.0, 1),
                "distinct-2": round(distinct([written for _, written in pairs]) or 0.0, 3),
                "texts": len(right),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _cut(model: FrozenModel, text: str) -> str:
    return model.decode(model.encode(text)[:ATTRIBUTED])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["learned", "strength"])
    parser.add_argument("--data", type=Path, required=True, help="folder that corpus.py wrote")
    parser.add_argument("--model", default="storyteller")
    parser.add_argument("--storyteller", default="src/softlore/storyteller", help="its tokenizer")
    parser.add_argument("--genres", nargs="*", help="[default: two for `learned`, else all seven]")
    parser.add_argument("--kinds", nargs="*", default=["prefix", "embedding"])
    parser.add_argument("--n-tokens", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--passages", type=int, default=100, help="a genre")
    parser.add_argument("--strengths", type=float, nargs="*", default=[0, 0.5, 1, 1.5, 2, 3])
    parser.add_argument("--texts", type=int, default=12, help="a code and strength")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if not options.genres:
        of_all = "Adventure Detective Fairytale Horror Humor Romance SciFi".split()
        options.genres = ["Fairytale", "SciFi"] if options.what == "learned" else of_all
    model = FrozenModel.from_pretrained(options.model)
    print(json.dumps(globals()[options.what](model, options), indent=1))


if __name__ == "__main__":
    main()
