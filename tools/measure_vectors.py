"""Measures control vectors: whether the tone or genre shows, and what else they change.

    python tools/measure_vectors.py tones smollm2 --out runs/vectors.jsonl
    python tools/measure_vectors.py genres storyteller --data runs/corpus

`tones`: for each of six a control vector is trained on a text that describes it, against those that
describe the other five. `genres`: for each of seven, on passages of its books against those of the
others (`--data` is what ``tools/corpus.py`` wrote). Then texts are written after the same openings:
after nothing, after the text, after the model's own control code where it has one, and with the
vector at several strengths. Each is named by naive Bayes, over the words of the genres' books or of
other texts that the model wrote after the tones' texts, and by attribution: the text (or the
model's code) that makes it the likeliest when it is put before it. Perplexity is the bare model's,
of the texts; drift is the KL on unrelated text. Recall is that of prefixes which have the effect of
the demo's lore texts, alone and beside the vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
from transformers import AutoTokenizer

from evaluate_storyteller import bayes_of_corpus
from measure_codes import OPENINGS
from measuring import Corpus, Keep, LatestModel, main, measure
from naive_bayes import NaiveBayes
from real_tables import print_means
from softlore import FrozenModel, Lorebook, SoftPrompt, demo
from softlore.compare.harness import Row, grid
from softlore.context import Tree
from softlore.control import (
    Contrast,
    codes_of,
    contrast_of_contexts,
    contrast_of_texts,
    train_vector,
)
from softlore.control.vectors import DISTILLED, PASSAGES
from softlore.decode import SamplingParams, sample_ids
from softlore.lore.study import OPENERS
from softlore.measure import distinct, perplexity
from softlore.measure.evaluate import plain_text
from softlore.measure.losses import mean_kl
from softlore.measure.material import gather
from softlore.measure.score import (
    first_comparable,
    hidden_states_after,
    response_losses_after,
    token_losses,
    trunk,
)
from softlore.prompts.control_vector import sum_vectors

TONES = {
    "dark": "This is a dark, cruel and frightening story, full of dread, blood and death.",
    "funny": "This is a silly and funny story, full of jokes, laughter and absurd accidents.",
    "romantic": "This is a tender love story, full of longing, kisses and beating hearts.",
    "noir": "This is a hard-boiled detective story, full of crime, guns, rain and cigarettes.",
    "fairy tale": "This is a fairy tale, with a princess, magic spells and talking animals.",
    "science": "This is a science fiction story, with starships, robots and distant planets.",
}
GENRES = {
    "Adventure": "This is a story of adventure, with ships, treasure, danger and far countries.",
    "Detective": "This is a detective story, with a crime, clues, suspects and an inspector.",
    "Fairytale": TONES["fairy tale"],
    "Horror": "This is a tale of horror, with ghosts, graves, terror and the dead.",
    "Humor": TONES["funny"],
    "Romance": TONES["romantic"],
    "SciFi": TONES["science"],
}
TOKENS = 48
EXCERPTS, EXCERPT = 48, 128  # of a genre's books that its vector is trained on, and their tokens
READ_BY_BAYES = 48  # texts of each tone that naive Bayes learns from
Models = Annotated[list[str], "short names, folders, hub ids or GGUF files"]
Strengths = Annotated[list[float], "of the vectors"]
Texts = Annotated[int, "of each tone and way"]
Methods = Annotated[list[str], "of training: distil, mean, pca, pca_diff"]
Dtype = Annotated[str | None, "such as bfloat16"]
MakeContrast = Callable[[str, str], Contrast]  # of a tone or genre, for a method
FIGURES = ["bayes", "attribution", "perplexity", "distinct", "drift", "recall", "seconds"]


def tones(
    models: Models,
    /,
    *,
    seeds: int = 3,
    strengths: Strengths = [0.5, 1.0, 2.0],  # noqa: B006 - read only
    texts: Texts = 16,
    methods: Methods = ["distil", "mean"],  # noqa: B006
    dtype: Dtype = None,
    out: Keep = None,
) -> None:
    """A table for each model: nothing, the tone's text, and its vector by strength."""

    def prepare(model: FrozenModel, seed: int) -> tuple[_Bench, MakeContrast]:
        bench = _Bench(model, seed, TONES, OPENERS, texts)
        bench.learn_words()

        def contrast(tone: str, method: str) -> Contrast:
            others = [text for other, text in TONES.items() if other != tone]
            distil = method == "distil"
            return contrast_of_contexts(
                model,
                [TONES[tone]] * len(others),
                others,
                passages=DISTILLED if distil else PASSAGES,
                after_positive=distil,
                seed=seed,
            )

        return bench, contrast

    _measure(grid(model=models, seed=range(seeds), method=methods), prepare, strengths, dtype, out)


def genres(
    models: Models,
    /,
    *,
    data: Corpus,
    seeds: int = 3,
    strengths: Strengths = [0.5, 1.0, 2.0],  # noqa: B006
    texts: Texts = 16,
    methods: Methods = ["distil", "mean"],  # noqa: B006
    dtype: Dtype = None,
    out: Keep = None,
) -> None:
    """The same for seven genres, whose vectors are trained on passages of their books."""
    tokenizer = AutoTokenizer.from_pretrained("src/softlore/storyteller")
    bayes = bayes_of_corpus(data, tokenizer)

    def prepare(model: FrozenModel, seed: int) -> tuple[_Bench, MakeContrast]:
        bench = _Bench(model, seed, GENRES, OPENINGS, texts)
        bench.bayes = bayes
        excerpts = {genre: _excerpts(data, genre, tokenizer, seed) for genre in GENRES}

        def contrast(genre: str, method: str) -> Contrast:
            others = [excerpts[other] for other in GENRES if other != genre]
            mixed = [text for row in zip(*others, strict=True) for text in row]
            return contrast_of_texts(model, excerpts[genre], mixed[:EXCERPTS])

        return bench, contrast

    _measure(grid(model=models, seed=range(seeds), method=methods), prepare, strengths, dtype, out)


def _excerpts(data: Path, genre: str, tokenizer: Any, seed: int) -> list[str]:
    """Passages of a genre's training books, spread over all of them."""
    ids = np.memmap(data / f"train-{genre}.bin", np.uint16, "r")
    step = len(ids) // EXCERPTS
    first = int(np.random.default_rng(seed).integers(step - EXCERPT))
    return [
        tokenizer.decode(ids[at : at + EXCERPT].tolist(), skip_special_tokens=True)
        for at in range(first, first + EXCERPTS * step, step)
    ]


def _measure(
    cases: Sequence[Row],
    prepare: Callable[[FrozenModel, int], tuple[_Bench, MakeContrast]],
    strengths: Sequence[float],
    dtype: str | None,
    out: Path | None,
) -> None:
    """Measures and shows each model, seed and method; `prepare`: from a model and a seed."""
    load, first = LatestModel(dtype), cases[0]["method"]

    def case(model: str, seed: int, method: str) -> Iterator[Row]:
        bench, contrast = prepare(load(model), seed)
        if method == first:
            yield from bench.without_vectors()
        yield from bench.table(method, contrast, strengths)

    print_means(measure(cases, case, out), FIGURES)


class _Bench:
    """Writes and names texts of one model with one seed.

    Attributes:
        bayes: names a text by its words.
    """

    bayes: NaiveBayes

    def __init__(
        self,
        model: FrozenModel,
        seed: int,
        described: dict[str, str],
        openings: Sequence[str],
        texts: int,
    ) -> None:
        self.model, self.seed, self.described = model, seed, described
        self.all_openings = openings
        self.openings = [openings[i % len(openings)] for i in range(texts)]
        codes = codes_of(model)
        self.codes = {
            name: trunk(model, codes[name].conditioning) for name in described if name in codes
        }
        self.references = self.codes or {
            name: _tree(model, text) for name, text in described.items()
        }
        self.material = gather(model, 0, seed)
        self.first = first_comparable(model)
        self.bare = self.states(_tree(model))
        book = Lorebook.load(demo.lorebook_path())
        self.lore = [
            (SoftPrompt.from_text(plain_text(e), model, name=e.name, kind="prefix"), e.blocks)
            for e in list(book)[:3]
        ]

    def learn_words(self) -> None:
        """Naive Bayes learns from texts that the model writes after the descriptions."""
        learned = {
            name: self.write(_tree(self.model, text), 1) for name, text in self.described.items()
        }
        self.bayes = NaiveBayes(
            {name: "\n".join(map(self.model.decode, ids)) for name, ids in learned.items()}
        )

    def without_vectors(self) -> Iterator[Row]:
        """The figures of nothing, of the texts, and of the model's own control codes."""
        yield from self.rows("nothing", {})
        texts = {name: _tree(self.model, text) for name, text in self.described.items()}
        yield from self.rows("its text", texts)
        if self.codes:
            yield from self.rows("its control code", self.codes)

    def table(
        self, method: str, contrast: MakeContrast, strengths: Sequence[float]
    ) -> Iterator[Row]:
        """The figures of vectors that a method trains, by strength."""
        start = time.monotonic()
        trained = {
            name: train_vector(
                self.model, name, contrast(name, method), method=method, seed=self.seed
            )
            for name in self.described
        }
        seconds = (time.monotonic() - start) / len(trained)
        for strength in strengths:
            trees = {
                name: _tree(self.model, steering=sum_vectors(self.model, [(vector, strength)]))
                for name, vector in trained.items()
            }
            for row in self.rows(f"vector, {method}, {strength:g}", trees):
                yield row | {"seconds": seconds}

    def rows(self, label: str, trees: dict[str, Tree]) -> Iterator[Row]:
        """The figures of the texts that are written after each tree, or after nothing."""
        for name in self.described:
            tree = trees.get(name) or _tree(self.model)
            written = self.write(tree, 0)
            decoded = [self.model.decode(ids) for ids in written]
            openings = [self.model.encode(opening) for opening in self.openings]
            new = [(o, ids[len(o) :]) for o, ids in zip(openings, written, strict=True)]
            yield {
                "label": label,
                "tone": name,
                "bayes": fmean(self.bayes.name(text) == name for text in decoded),
                "attribution": fmean(each == name for each in self.attributed(written)),
                "perplexity": perplexity(self.model, new),
                "distinct": distinct(written),
                "drift": mean_kl(self.model, self.bare, self.states(tree)),
                "recall": self.recall(tree.steering),
                "seconds": None,
                "first": decoded[0],
            }

    def write(self, tree: Tree, part: int) -> list[list[int]]:
        """Texts after a tree, openings included; `part` 1: those that naive Bayes learns from."""
        openings = self.openings
        if part:
            count = len(self.all_openings)
            openings = [self.all_openings[i % count] for i in range(READ_BY_BAYES)]
        starts = [self.model.encode(opening) for opening in openings]
        params = SamplingParams(temperature=0.8, top_k=40)
        seed = 1000 * self.seed + part
        new = sample_ids(self.model, [(tree, ids) for ids in starts], params, TOKENS, seed)
        return [[*a, *b] for a, b in zip(starts, new, strict=True)]

    def attributed(self, written: Sequence[Sequence[int]]) -> list[str]:
        """Whose reference, put before it, makes each text likelier than the others do."""
        pairs = [(ids[:1], ids[1:]) for ids in written]
        losses = {
            name: [float(loss.mean()) for loss in token_losses(self.model, tree, pairs)]
            for name, tree in self.references.items()
        }
        return [min(losses, key=lambda name: losses[name][i]) for i in range(len(written))]

    def states(self, tree: Tree) -> list[torch.Tensor]:
        return hidden_states_after(self.model, tree, self.material.unrelated, self.first)

    def recall(self, steering: torch.Tensor | None) -> float:
        """NLL of the demo's responses after a prefix of each entry's text, nats a token."""
        losses = []
        for prompt, blocks in self.lore:
            tree = replace(trunk(self.model, prompt), steering=steering)
            losses += response_losses_after(self.model, tree, blocks)
        return fmean(losses)


def _tree(model: FrozenModel, text: str = "", steering: torch.Tensor | None = None) -> Tree:
    """What stands before a text: a tone's text as a line, or its control vector."""
    return replace(trunk(model, text + "\n" if text else ""), steering=steering)


if __name__ == "__main__":
    main(__doc__, tones, genres)
