"""Measures of control codes: the figures of docs/results.md, one command each.

    python tools/measure_codes.py learned --data runs/corpus --model DIR/models/tinytalk-3m
    python tools/measure_codes.py strength --data runs/corpus

`--data` is what ``tools/corpus.py`` wrote. `learned` trains codes for genres that the model was
not trained with, and attributes held-out passages by them; `strength` generates under
storyteller's own codes at several strengths, and classifies the texts by naive Bayes over words.
"""

from __future__ import annotations

from statistics import fmean
from typing import Annotated

import numpy as np
from transformers import AutoTokenizer

from evaluate_storyteller import ATTRIBUTED, bayes_of_corpus, read_passages
from measuring import Corpus, Keep, Kinds, Seed, main, measure
from softlore import FrozenModel, generate
from softlore.cli.train import CODE_SETTINGS
from softlore.compare.harness import Row, grid
from softlore.compare.methods import train_method
from softlore.control import Code, attribute, codes_of
from softlore.measure import distinct, perplexity
from windows import CODES

TRAINED_ON = 120_000  # tokens of each genre
OPENINGS = ("The door", "He", "That evening", "She looked", "There was", "At last")


def learned(
    *,
    data: Corpus,
    model: str = "storyteller",
    storyteller: Annotated[str, "the tokenizer's folder"] = "src/softlore/storyteller",
    genres: list[str] = ["Fairytale", "SciFi"],  # noqa: B006 - read only
    kinds: Kinds = ["prefix", "embedding"],  # noqa: B006
    n_tokens: list[int] = [1, 8],  # noqa: B006
    max_steps: int = 200,
    passages: Annotated[int, "for each genre"] = 100,
    seed: Seed = 0,
    keep: Keep = None,
) -> list[Row]:
    """Codes of each kind and length, trained in one run, and how often they name a passage."""
    frozen = FrozenModel.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(storyteller)
    corpora = {}
    for genre in genres:
        ids = np.fromfile(data / f"train-{genre}.bin", np.uint16)[:TRAINED_ON]
        corpora[genre] = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    held_out = read_passages(data, passages, 8 * ATTRIBUTED)

    def case(kind: str, n_tokens: int) -> Row:
        settings = {"kind": kind, "n_tokens": n_tokens, "max_steps": max_steps, "seed": seed}
        trained = train_method(frozen, kind, corpus=corpora, **settings, **CODE_SETTINGS)
        codes = {name: Code(name, prompt) for name, prompt in trained.conditionings.items()}
        named = {genre: named_right(frozen, held_out[genre], genre, codes) for genre in genres}
        every = [right for of_genre in named.values() for right in of_genre]
        return {
            "named right": round(fmean(every), 3),
            **{genre: round(fmean(right), 3) for genre, right in named.items()},
            "passages": len(every),
            "seconds": round(trained.seconds),
        }

    return measure(grid(kind=kinds, n_tokens=n_tokens), case, keep)


def named_right(
    model: FrozenModel, passages: list[str], genre: str, codes: dict[str, Code]
) -> list[bool]:
    """For each passage, whether its genre's code makes it the likeliest."""
    cut = [model.decode(model.encode(passage)[:ATTRIBUTED]) for passage in passages]
    return [attribute(model, passage, codes)[0].code == genre for passage in cut]


def strength(
    *,
    data: Corpus,
    model: str = "storyteller",
    genres: list[str] = list(CODES),  # noqa: B006 - read only
    strengths: list[float] = [0, 0.5, 1, 1.5, 2, 3],  # noqa: B006
    texts: Annotated[int, "for each code and strength"] = 12,
    keep: Keep = None,
) -> list[Row]:
    """Texts generated at several strengths: which genre their words are of, and their fluency."""
    frozen = FrozenModel.from_pretrained(model)
    bayes = bayes_of_corpus(data, frozen.tokenizer)
    codes = {name: code for name, code in codes_of(frozen).items() if name in genres}

    def case(strength: float) -> Row:
        right, pairs = [], []
        for (name, code), seed in ((item, n) for item in codes.items() for n in range(texts)):
            opening = OPENINGS[seed % len(OPENINGS)]
            conditioning = [(code.conditioning, strength)]
            settings = {"conditioning": conditioning, "seed": seed, "temperature": 0.8}
            text = generate(frozen, opening, 80, **settings)
            right.append(bayes.name(opening + text) == name)
            pairs.append((frozen.encode(opening), frozen.encode(text, inside=True)))
        return {
            "named right": round(fmean(right), 3),
            "perplexity": round(perplexity(frozen, pairs) or 0.0, 1),
            "distinct-2": round(distinct([written for _, written in pairs]) or 0.0, 3),
            "texts": len(right),
        }

    return measure(grid(strength=strengths), case, keep)


if __name__ == "__main__":
    main(__doc__, learned, strength)
