"""Measure storyteller on held-out books, beside another model on the same passages.

Bits a character, lower is better, on passages of at most 700 characters that open at a paragraph:
with the genre's code, with ``<|endoftext|>`` alone, and for the other model after its own
beginning-of-text token. Then: how often a passage's code makes it the likeliest (attribution of
passages of 128 tokens, by ``softlore.control``), beside a naive Bayes classifier over the words of
the same training books; the gain of longer context; and samples.

Example:
    python tools/evaluate_storyteller.py src/softlore/storyteller --data runs/corpus \\
        --other path/to/tinytalk-3m --json runs/evaluation.json > runs/evaluation.md
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from naive_bayes import NaiveBayes
from softlore import FrozenModel, generate
from softlore.control import attribute, codes_of
from windows import CODES, END, SHARES

PASSAGE = 700  # characters: within 256 tokens of every model compared
LONG = 3200  # characters: within 1024 tokens of storyteller
ATTRIBUTED = 128  # tokens of a passage that is attributed


class Scorer:
    """Computes the bits of texts under a model."""

    def __init__(self, folder: str):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def bits(self, openings: list[list[int]], text: str) -> list[float]:
        """Bits of ``text`` after each of ``openings``, token ids of equal length."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        limit = self.model.config.max_position_embeddings
        length = len(openings[0]) + len(ids)
        if length > limit:
            raise ValueError(f"{length} tokens, but the context is {limit}")
        rows = torch.tensor([opening + ids for opening in openings])  # (openings, length)
        logits = self.model(rows, use_cache=False).logits[:, len(openings[0]) - 1 : -1]
        chosen = logits.log_softmax(-1)[:, range(len(ids)), ids]  # (openings, len(ids))
        return (-chosen.sum(-1) / math.log(2)).tolist()


def passages(text: str, count: int, size: int) -> list[str]:
    """``count`` passages of at most ``size`` characters, spread evenly, each from a paragraph."""
    pieces = []
    for i in range(count):
        start = text.find("\n", int(len(text) * (i + 0.5) / count)) + 1
        piece = text[start : start + size]
        if start and len(piece) == size:
            pieces.append(piece[: piece.rfind(" ")])
    return pieces


def read_passages(data: Path, count: int, size: int) -> dict[str, list[str]]:
    """The held-out passages of every genre, ``count`` of them divided among its books."""
    books: dict[str, list[str]] = {code: [] for code in CODES}
    for line in (data / "held-out.jsonl").read_text("utf-8").splitlines():
        book = json.loads(line)
        books[book["code"]].append(book["text"])
    return {
        code: [p for text in texts for p in passages(text, math.ceil(count / len(texts)), size)]
        for code, texts in books.items()
    }


def compare(scorer: Scorer, other: Scorer | None, data: Path, count: int) -> list[dict[str, Any]]:
    """Bits a character, a row a genre."""
    code_id = {c: scorer.tokenizer.convert_tokens_to_ids(f"<|{c}|>") for c in CODES}
    end = scorer.tokenizer.convert_tokens_to_ids(END)
    rows = []
    for code, texts in read_passages(data, count, PASSAGE).items():
        characters = sum(map(len, texts))
        bits = [scorer.bits([[code_id[code]], [end]], text) for text in texts]
        row: dict[str, Any] = {"code": code, "passages": len(texts)}
        row["with code"] = sum(one[0] for one in bits) / characters
        row["without"] = sum(one[1] for one in bits) / characters
        if other:
            start = [[other.model.config.bos_token_id]]
            row["other"] = sum(other.bits(start, text)[0] for text in texts) / characters
        rows.append(row)
    return [*rows, {"code": "mean", **means(rows)}]


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {k: sum(row[k] for row in rows) / len(rows) for k in rows[0] if k != "code"}


def bayes_of_corpus(data: Path, tokenizer: Any) -> NaiveBayes:
    """Naive Bayes that has counted the words of the training books."""
    texts = {}
    for code in SHARES:
        ids = np.fromfile(data / f"train-{code}.bin", np.uint16).tolist()
        texts[code] = tokenizer.decode(ids, skip_special_tokens=True)
    return NaiveBayes(texts)


def attribution(folder: str, data: Path, count: int) -> list[dict[str, Any]]:
    """Share of passages attributed right by the model and by naive Bayes, a row for each genre."""
    model = FrozenModel.from_pretrained(folder, dtype="float32")
    codes = codes_of(model)
    bayes = bayes_of_corpus(data, model.tokenizer)
    rows = []
    for code, texts in read_passages(data, count, 8 * ATTRIBUTED).items():
        cut = [model.decode(model.encode(text)[:ATTRIBUTED]) for text in texts]
        named = [attribute(model, text, codes)[0].code for text in cut]
        row: dict[str, Any] = {"code": code, "passages": len(cut)}
        row["named right"] = named.count(code) / len(cut)
        row["naive Bayes"] = [bayes.name(text) for text in cut].count(code) / len(cut)
        mistaken = collections.Counter(name for name in named if name != code)
        row["mistaken for"] = ", ".join(f"{c} {n}" for c, n in mistaken.most_common(2))
        rows.append(row)
    count = sum(row["passages"] for row in rows)
    over_all: dict[str, Any] = {"code": "all", "passages": count}
    for column in ("named right", "naive Bayes"):
        over_all[column] = sum(row[column] * row["passages"] for row in rows) / count
    return [*rows, {**over_all, "mistaken for": ""}]


def context_gain(scorer: Scorer, data: Path) -> dict[int, float]:
    """Bits a character of a passage's last 700 characters, by the number of characters before."""
    result = {}
    for before in (0, 500, 1200, 2500):
        bits = characters = 0.0
        for code, texts in read_passages(data, 14, LONG).items():
            for text in texts:
                context, last = text[-PASSAGE - before : -PASSAGE], text[-PASSAGE:]
                conditioning = scorer.tokenizer.encode(f"<|{code}|>{context}")
                bits += scorer.bits([conditioning], last)[0]
                characters += len(last)
        result[before] = bits / characters
    return result


def speed(folder: str, tokens: int = 200) -> dict[str, float]:
    """Seconds to load (imports done), and tokens a second that `generate` writes."""
    start = time.perf_counter()
    model = FrozenModel.from_pretrained(folder, dtype="float32", device="cpu")
    loaded = time.perf_counter() - start
    generate(model, "The", 8, seed=0)
    start = time.perf_counter()
    written = generate(model, "The old house", tokens, seed=0, stream=True)
    count = sum(1 for _ in written)
    seconds = time.perf_counter() - start
    return {"seconds to load": round(loaded, 2), "pieces a second": round(count / seconds, 1)}


def samples(scorer: Scorer, code: str, count: int = 3, tokens: int = 150) -> list[str]:
    """``count`` texts generated after the code alone, with seeds from 0 up."""
    texts = []
    for seed in range(count):
        torch.manual_seed(seed)
        ids = scorer.model.generate(
            **scorer.tokenizer(f"<|{code}|>", return_tensors="pt"),
            max_new_tokens=tokens,
            do_sample=True,
            temperature=0.8,
            top_k=40,
        )
        texts.append(scorer.tokenizer.decode(ids[0, 1:]))
    return texts


def table(rows: list[dict[str, Any]], percent: bool) -> list[str]:
    """Rows as Markdown; numbers as shares, or with three places."""
    columns = [k for k in rows[0] if k not in ("code", "passages")]
    lines = ["", f"| genre | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        form = "{:.0%}" if percent else "{:.3f}"
        cells = [row[k] if isinstance(row[k], str) else form.format(row[k]) for k in columns]
        lines.append(f"| {row['code']} | {' | '.join(cells)} |")
    return lines


def markdown(result: dict[str, Any]) -> str:
    """The tables and samples as Markdown, for the model card."""
    lines = table(result["genres"], percent=False)
    lines += table(result["attribution"], percent=True)
    lines += ["", "| characters before | bits a character |", "|---|---|"]
    lines += [f"| {before} | {bits:.3f} |" for before, bits in result["context"].items()]
    lines += ["", ", ".join(f"{name}: {value}" for name, value in result["speed"].items())]
    for code, texts in result["samples"].items():
        lines += ["", f"**`<|{code}|>`**"]
        for seed, text in enumerate(texts):
            quoted = text.strip().replace("\n>", "\n\\>").replace("\n", "\n> <br>")
            lines += ["", f"> ({seed}) {quoted}"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of storyteller")
    parser.add_argument("--data", type=Path, required=True, help="folder that corpus.py wrote")
    parser.add_argument("--other", help="a model to compare with, by folder")
    parser.add_argument("--passages", type=int, default=60, help="a genre")
    parser.add_argument("--attributed", type=int, default=100, help="passages a genre, attribution")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    scorer = Scorer(args.model)
    other = Scorer(args.other) if args.other else None
    result = {
        "genres": compare(scorer, other, args.data, args.passages),
        "attribution": attribution(args.model, args.data, args.attributed),
        "context": context_gain(scorer, args.data),
        "speed": speed(args.model),
        "samples": {code: samples(scorer, code) for code in SHARES},
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False))
    sys.stdout.write(markdown(result) + "\n")


if __name__ == "__main__":
    main()
