"""The files that the connector reads: a prefix, its placeholder, and how its keys were rotated."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT = "softlore-vllm-prefix-1"
SUFFIX = ".safetensors"
MOST_BYTES = 2**32  # of a file


@dataclass(frozen=True)
class PrefixFile:
    """A prefix as `softlore convert --to vllm` writes it.

    Attributes:
        name: the soft prompt's.
        digest: SHA-256 of the tensor, in hex.
        ids: its placeholder.
        layout: which columns of a key rotate together: "halves", "neighbours", or "" where the
            positions are not rotary.
        shape: of the tensor, `[layers, 2, kv_heads, n, head_dim]`.
    """

    path: Path
    name: str
    digest: str
    ids: list[int]
    layout: str
    shape: tuple[int, ...]

    @property
    def key_values(self) -> Tensor:
        """`[layers, 2, kv_heads, n, head_dim]`, float32, read each time."""
        return self._tensor("key_values")

    @property
    def inv_freq(self) -> Tensor:
        """`[layers, pairs]`: radians a position that each pair of columns turns."""
        return self._tensor("inv_freq")

    def shifted(self, by: int) -> Tensor:
        """`key_values` as they would be `by` positions further on."""
        key_values = self.key_values
        if by == 0:
            return key_values
        if not self.layout:
            raise ValueError(
                f"prompt {self.name!r} is for a model without rotary positions, so that it can't "
                "stand beside others here; expected one prompt; train the set as one"
            )
        moved = key_values.clone()
        moved[:, 0] = rotated(moved[:, 0], self.inv_freq * by, self.layout)
        return moved

    def _tensor(self, name: str) -> Tensor:
        try:
            with safe_open(self.path, framework="pt") as file:
                if (file.metadata() or {}).get("digest") != self.digest:
                    raise OSError("it is another version now")
                return file.get_tensor(name).float()
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{str(self.path)!r} can't be read any more ({error}); expected the prompt "
                f"{self.name!r}; convert it again"
            ) from error


def rotated(keys: Tensor, angles: Tensor, layout: str) -> Tensor:
    """Keys `[layers, kv_heads, n, head_dim]` turned by `[layers, pairs]` radians.

    The first 2·pairs columns turn: column j with j + pairs ("halves", as in Llama and GPT-NeoX) or
    2j with 2j + 1 ("neighbours", as in GPT-J); the rest stay (Su et al. 2021).
    """
    pairs = angles.shape[1]
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    turning, rest = keys[..., : 2 * pairs], keys[..., 2 * pairs :]
    if layout == "halves":
        a, b = turning[..., :pairs], turning[..., pairs:]
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        a, b = turning[..., ::2], turning[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=-1)


def read(path: Path) -> PrefixFile:
    """A file's header. Raises ValueError where it is none of the connector's."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        with safe_open(path, framework="pt") as file:
            told: dict[str, Any] = file.metadata() or {}
            if told.get("format") != FORMAT:
                raise ValueError(f"its format is {told.get('format')!r}, not {FORMAT!r}")
            shape = file.get_slice("key_values").get_shape()
            ids = json.loads(told["ids"])
        whole = isinstance(ids, list) and all(type(i) is int for i in ids)
        if not whole or len(shape) != 5 or len(ids) != shape[3]:
            raise ValueError("its placeholder does not fit its keys and values")
        return PrefixFile(path, told["name"], told["digest"], ids, told["layout"], tuple(shape))
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} is no prefix for the connector ({error}); expected a file that "
            "`softlore convert --to vllm` wrote; take it out of the folder"
        ) from error


def read_folder(folder: str | os.PathLike[str]) -> list[PrefixFile]:
    """The prefixes in a folder. Raises ValueError, as `read` does."""
    return [read(path) for path in sorted(Path(folder).glob("*" + SUFFIX))]


def side_by_side(files: Sequence[PrefixFile]) -> Tensor:
    """Prefixes in company, `[layers, 2, kv_heads, N, head_dim]`, for a text that starts at N.

    In softlore they share the positions before a text that starts after the longest; here each
    takes its own, so that all keys are turned by the difference.
    """
    lengths = [len(file.ids) for file in files]
    by = sum(lengths) - max(lengths)
    return torch.cat([file.shifted(by) for file in sorted(files, key=lambda f: f.digest)], dim=3)
