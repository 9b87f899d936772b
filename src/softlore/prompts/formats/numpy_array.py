"""google-research's prompt-tuning files: a plain `.npy` of `[n_tokens, width]`."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from softlore.prompts.formats.imported import import_prompt
from softlore.prompts.formats.npy import MAGIC, MAX_NPY_BYTES, read_npy
from softlore.prompts.opening import read_all
from softlore.prompts.soft_prompt import SoftPrompt

NAME = "npy"


def takes(path: Path, head: bytes) -> bool:
    """Whether a file begins with NumPy's mark."""
    return head.startswith(MAGIC)


def parse(file: BinaryIO, size: int, path: Path) -> SoftPrompt:
    """Reads an open file of `size` bytes. Raises PromptFileError."""
    data = read_all(file, size, MAX_NPY_BYTES, "a NumPy array of one soft prompt")
    return import_prompt(read_npy(data), NAME, (path.stem,))
