"""Measure storyteller on books that it never saw, beside another model on the same passages.

Bits a character, lower is better, on passages of at most 700 characters that open at a paragraph:
with the genre's code, with ``<|endoftext|>`` alone, and for the other model after its own
beginning-of-text token. Then: how often the passage's own code is the most likely of the seven
(attribution); what longer context is worth; and samples, unpicked.

Example:
    python tools/evaluate_storyteller.py src/softlore/storyteller --data runs/corpus \\
        --other path/to/tinytalk-3m --json runs/evaluation.json > runs/evaluation.md
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from windows import CODES, END

PASSAGE = 700  # characters: within 256 tokens of every model compared
LONG = 3200  # characters: within 1024 tokens of storyteller


class Scorer:
    """A model and its tokenizer; gives the bits of a text after an opening."""

    def __init__(self, folder: str):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def bits(self, openings: list[list[int]], text: str) -> list[float]:
        """Bits that ``text`` costs after each of ``openings``, which are equally long."""
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
    found = []
    for i in range(count):
        start = text.find("\n", int(len(text) * (i + 0.5) / count)) + 1
        piece = text[start : start + size]
        if start and len(piece) == size:
            found.append(piece[: piece.rfind(" ")])
    return found


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
    """Bits a character and attribution, a row a genre."""
    code_id = {c: scorer.tokenizer.convert_tokens_to_ids(f"<|{c}|>") for c in CODES}
    end = scorer.tokenizer.convert_tokens_to_ids(END)
    rows = []
    for code, texts in read_passages(data, count, PASSAGE).items():
        characters = sum(map(len, texts))
        openings = [*([code_id[c]] for c in CODES), [end]]
        by_code = [
            dict(zip((*CODES, END), scorer.bits(openings, text), strict=True)) for text in texts
        ]
        row: dict[str, Any] = {"code": code, "passages": len(texts)}
        row["with code"] = sum(bits[code] for bits in by_code) / characters
        row["without"] = sum(bits.pop(END) for bits in by_code) / characters
        if other:
            start = [[other.model.config.bos_token_id]]
            row["other"] = sum(other.bits(start, text)[0] for text in texts) / characters
        row["named right"] = sum(min(b, key=b.__getitem__) == code for b in by_code) / len(texts)
        rows.append(row)
    mean = {k: sum(r[k] for r in rows) / len(rows) for k in rows[0] if k != "code"}
    return [*rows, {"code": "mean", **mean}]


def worth_of_context(scorer: Scorer, data: Path) -> dict[int, float]:
    """Bits a character of the last 700 characters of a passage, by how much stands before them."""
    result = {}
    for before in (0, 500, 1200, 2500):
        bits = characters = 0.0
        for code, texts in read_passages(data, 14, LONG).items():
            for text in texts:
                context, last = text[-PASSAGE - before : -PASSAGE], text[-PASSAGE:]
                head = scorer.tokenizer.encode(f"<|{code}|>{context}")
                bits += scorer.bits([head], last)[0]
                characters += len(last)
        result[before] = bits / characters
    return result


def samples(scorer: Scorer, code: str, count: int = 3, tokens: int = 100) -> list[str]:
    """``count`` texts written after the code alone: seeds 0, 1, ..; none left out."""
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


def markdown(result: dict[str, Any]) -> str:
    """The tables and samples, as they stand in the card."""
    columns = [k for k in result["genres"][0] if k not in ("code", "passages")]
    lines = [f"| genre | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in result["genres"]:
        cells = [f"{row[k]:.0%}" if k == "named right" else f"{row[k]:.3f}" for k in columns]
        lines.append(f"| {row['code']} | {' | '.join(cells)} |")
    lines += ["", "| characters before | bits a character |", "|---|---|"]
    lines += [f"| {before} | {bits:.3f} |" for before, bits in result["context"].items()]
    for code, texts in result["samples"].items():
        lines += ["", f"**`<|{code}|>`**"]
        for seed, text in enumerate(texts):
            quoted = text.strip().replace("\n", "\n> <br>")
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
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    scorer = Scorer(args.model)
    other = Scorer(args.other) if args.other else None
    result = {
        "genres": compare(scorer, other, args.data, args.passages),
        "context": worth_of_context(scorer, args.data),
        "samples": {code: samples(scorer, code) for code in CODES},
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False))
    sys.stdout.write(markdown(result) + "\n")


if __name__ == "__main__":
    main()
