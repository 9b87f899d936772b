"""Measures control vectors: whether the tone shows, and what else they change.

    python tools/measure_vectors.py smollm2 --out runs/vectors.jsonl

For each of six tones a control vector is trained on a text that describes it, against those that
describe the other five. Then texts are written after the same openings: after nothing, after the
tone's text, and with the vector at several strengths. Each is named, one of six, by naive Bayes
over the words of other texts that the model wrote after the tones' texts, and by attribution: the
tone whose text, put before it, makes it the likeliest. Perplexity is the bare model's, of the
texts; drift is the KL on unrelated text. Recall is that of prefixes which have the effect of the
demo's lore texts, alone and beside the vector.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Annotated, Any

import torch

from measuring import Keep, LatestModel, main, measure
from naive_bayes import NaiveBayes
from real_tables import print_means
from softlore import FrozenModel, Lorebook, SoftPrompt, demo
from softlore.compare.harness import Row, grid
from softlore.context import Tree
from softlore.control.vectors import contrast_of_contexts, train_vector
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
TOKENS = 48
READ_BY_BAYES = 48  # texts of each tone that naive Bayes learns from
FIGURES = ["bayes", "attribution", "perplexity", "distinct", "drift", "recall", "seconds"]


def vectors(
    models: Annotated[list[str], "short names, folders, hub ids or GGUF files"],
    /,
    *,
    seeds: int = 3,
    strengths: list[float] = [0.5, 1.0, 2.0],  # noqa: B006 - read only
    texts: Annotated[int, "of each tone and way"] = 16,
    method: str = "mean",
    dtype: Annotated[str | None, "such as bfloat16"] = None,
    out: Keep = None,
) -> None:
    """A table for each model: nothing, the tone's text, and its vector by strength."""
    load = LatestModel(dtype)

    def case(model: str, seed: int, method: str) -> Iterator[Row]:
        bench = _Bench(load(model), seed, texts)
        yield from bench.rows("nothing", {})
        yield from bench.rows("text", {tone: {"text": text} for tone, text in TONES.items()})
        steering, seconds = bench.train(method)
        for strength in strengths:
            ways = {tone: {"steering": strength * steering[tone]} for tone in TONES}
            for row in bench.rows(f"vector, {strength:g}", ways):
                yield row | {"seconds": seconds}

    rows = measure(grid(model=models, seed=range(seeds), method=[method]), case, out)
    print_means(rows, FIGURES)


class _Bench:
    """Writes and names texts of one model with one seed."""

    def __init__(self, model: FrozenModel, seed: int, texts: int) -> None:
        self.model, self.seed, self.texts = model, seed, texts
        self.openings = [OPENERS[i % len(OPENERS)] for i in range(texts)]
        learned = {tone: self.write(_tree(model, text), 1) for tone, text in TONES.items()}
        self.bayes = NaiveBayes(
            {tone: "\n".join(map(model.decode, ids)) for tone, ids in learned.items()}
        )
        self.material = gather(model, 0, seed)
        self.first = first_comparable(model)
        self.bare = self.states(_tree(model))
        book = Lorebook.load(demo.lorebook_path())
        self.lore = [
            (SoftPrompt.from_text(plain_text(e), model, name=e.name, kind="prefix"), e.blocks)
            for e in list(book)[:3]
        ]

    def train(self, method: str) -> tuple[dict[str, torch.Tensor], float]:
        """The vector of each tone, `[layers, width]`, and the seconds that one took."""
        start, trained = time.monotonic(), {}
        for tone, text in TONES.items():
            others = [other for other in TONES.values() if other != text]
            pairs = [text] * len(others), others
            contrast = contrast_of_contexts(self.model, *pairs, seed=self.seed)
            vector = train_vector(self.model, tone, contrast, method=method)
            trained[tone] = sum_vectors(self.model, [(vector, 1.0)])
        return trained, (time.monotonic() - start) / len(TONES)

    def rows(self, label: str, ways: dict[str, dict[str, Any]]) -> Iterator[Row]:
        """The figures of the texts that are written in each tone's way."""
        for tone in TONES:
            way = ways.get(tone, {})
            tree = _tree(self.model, **way)
            written = self.write(tree, 0)
            decoded = [self.model.decode(ids) for ids in written]
            openings = [self.model.encode(opening) for opening in self.openings]
            named = self.attributed(written)
            new = [(o, ids[len(o) :]) for o, ids in zip(openings, written, strict=True)]
            yield {
                "label": label,
                "tone": tone,
                "bayes": fmean(self.bayes.name(text) == tone for text in decoded),
                "attribution": fmean(name == tone for name in named),
                "perplexity": perplexity(self.model, new),
                "distinct": distinct(written),
                "drift": mean_kl(self.model, self.bare, self.states(tree)),
                "recall": self.recall(way.get("steering")),
                "seconds": None,
                "first": decoded[0],
            }

    def write(self, tree: Tree, part: int) -> list[list[int]]:
        """Texts after a tree, openings included; `part` 1: those that naive Bayes learns from."""
        openings = self.openings
        if part:
            openings = [OPENERS[i % len(OPENERS)] for i in range(READ_BY_BAYES)]
        starts = [self.model.encode(opening) for opening in openings]
        params = SamplingParams(temperature=0.8, top_k=40)
        seed = 1000 * self.seed + part
        new = sample_ids(self.model, [(tree, ids) for ids in starts], params, TOKENS, seed)
        return [[*a, *b] for a, b in zip(starts, new, strict=True)]

    def attributed(self, written: Sequence[Sequence[int]]) -> list[str]:
        """The tone whose text, put before it, makes each text likelier than the others do."""
        pairs = [(ids[:1], ids[1:]) for ids in written]
        losses = {
            tone: [
                float(loss.mean())
                for loss in token_losses(self.model, _tree(self.model, text), pairs)
            ]
            for tone, text in TONES.items()
        }
        return [min(TONES, key=lambda tone: losses[tone][i]) for i in range(len(written))]

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
    main(__doc__, vectors)
