"""Windows of tokens for training storyteller: drawn by genre, and resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

CODES = ("Adventure", "Detective", "Fairytale", "Horror", "Humor", "Romance", "SciFi")
QUEST = "Quest"  # the eighth code, of texts by quests.py
END = "<|endoftext|>"
# How often a window is of each code: the genres evenly, quests half as often.
SHARES = {**dict.fromkeys(CODES, 2 / 15), QUEST: 1 / 15}
# How a window opens, and how often: the code; end-of-text and the code; end-of-text; neither.
OPENINGS = {"code": 0.60, "end, code": 0.25, "end": 0.10, "bare": 0.05}


class Windows:
    """An endless, seeded stream of windows; its state is a few numbers, kept in checkpoints."""

    def __init__(self, data: Path, tokenizer: PreTrainedTokenizerFast, seed: int):
        self.seed = seed
        self.tokens = {c: np.memmap(data / f"train-{c}.bin", np.uint16, "r") for c in SHARES}
        self.end = tokenizer.convert_tokens_to_ids(END)
        self.code = {c: tokenizer.convert_tokens_to_ids(f"<|{c}|>") for c in SHARES}
        self.newline = tokenizer.encode("\n")[0]
        self.rng = np.random.default_rng(seed)
        # A genre's cursor: which pass over it, and how many windows of that pass are used up.
        self.cursors = {c: [0, 0] for c in SHARES}

    def state(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state, "cursors": self.cursors}

    def load(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.cursors = {c: list(cursor) for c, cursor in state["cursors"].items()}

    def text(self, code: str, length: int) -> np.ndarray:
        """The next ``length`` tokens of a genre, from a paragraph where one is near."""
        tokens = self.tokens[code]
        passes, used = self.cursors[code]
        count = max(1, (len(tokens) - 2 * length) // length)
        if used >= count:
            passes, used = passes + 1, 0
        self.cursors[code] = [passes, used + 1]
        shuffle = np.random.default_rng([self.seed, list(SHARES).index(code), passes])
        start = int(shuffle.integers(length)) + int(shuffle.permutation(count)[used]) * length
        lines = np.flatnonzero(tokens[start : start + length] == self.newline)
        if len(lines):
            start = min(start + int(lines[0]) + 1, len(tokens) - length)
        return np.asarray(tokens[start : start + length])

    def window(self, length: int) -> np.ndarray:
        """One window with its opening: ``length`` tokens."""
        code = str(self.rng.choice(list(SHARES), p=list(SHARES.values())))
        opening = self.rng.choice(list(OPENINGS), p=list(OPENINGS.values()))
        head = [self.end] * ("end" in opening) + [self.code[code]] * ("code" in opening)
        return np.concatenate([head, self.text(code, length)])[:length]

    def contrast(self, passages: int, length: int, codes: int = 3) -> Tensor:
        """Passages that begin at a paragraph, each after its own code and after others.

        Returns (passages, codes, length): the code stands first, the right one in row 0.
        """
        names = list(SHARES)
        rows = []
        for _ in range(passages):
            right = int(self.rng.choice(len(names), p=list(SHARES.values())))
            wrong = self.rng.permutation([i for i in range(len(names)) if i != right])
            tokens = self.tokens[names[right]]
            start = int(self.rng.integers(max(1, len(tokens) - 3 * length)))
            lines = np.flatnonzero(tokens[start : start + 2 * length] == self.newline)
            start += int(lines[0]) + 1 if len(lines) else 0
            text = np.asarray(tokens[start : start + length - 1], dtype=np.int64)
            heads = [self.code[names[i]] for i in (right, *wrong[: codes - 1])]
            rows.append([np.concatenate([[head], text]) for head in heads])
        return torch.from_numpy(np.asarray(rows))

    def batch(self, tokens: int, length: int) -> Tensor:
        rows = [self.window(length) for _ in range(max(1, tokens // length))]
        return torch.from_numpy(np.stack(rows).astype(np.int64))  # (rows, length)
