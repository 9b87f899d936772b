"""PrefixFile: a prefix for vLLM: tensor, placeholder ids, rotation of its keys."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT = "softlore-vllm-prefix-1"
SUFFIX = ".safetensors"
MAX_BYTES = 2**32  # of a file
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrefixFile:
    """The header of a file that `softlore convert --to vllm` wrote.

    Attributes:
        name: the soft prompt's.
        digest: SHA-256 of the tensor, in hex.
        ids: placeholder ids, one a token.
        layout: which columns of a key are rotated together: "halves", "neighbours", or "" where
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
        """`[layers, pairs]`: radians by which a position rotates each pair of columns."""
        return self._tensor("inv_freq")

    def shifted(self, by: int) -> Tensor:
        """`key_values` with the keys rotated forward by `by` positions."""
        key_values = self.key_values
        if by == 0:
            return key_values
        if not self.layout:
            raise ValueError(
                f"prompt {self.name!r} is for a model without rotary positions, so that its keys "
                "can't be moved; expected one prompt at a time; train the set as one"
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
    """Keys `[layers, kv_heads, n, head_dim]` rotated by `[layers, pairs]` radians.

    The first 2·pairs columns are: column j with j + pairs ("halves", as in Llama and GPT-NeoX) or
    2j with 2j + 1 ("neighbours", as in GPT-J). The others stay (Su et al. 2021).
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


def side_by_side(files: Sequence[PrefixFile]) -> Tensor:
    """A set of prefixes, `[layers, 2, kv_heads, N, head_dim]`, for a text that starts at N.

    In softlore prefixes share the positions before a text, which starts after the longest of them.
    On vLLM each takes positions of its own, so the text starts later; all keys are rotated by the
    difference, which keeps their distances to the text:

        softlore  positions 0 1 2 | text from 3       A: 0 1 2   B: 0 1
        vLLM      positions 0 … 4 | text from 5       A: 2 3 4   B: 2 3  (by rotation; slots 0 … 4)
    """
    lengths = [len(file.ids) for file in files]
    by = sum(lengths) - max(lengths)
    return torch.cat([file.shifted(by) for file in sorted(files, key=lambda f: f.digest)], dim=3)


def read(path: Path) -> PrefixFile:
    """The header of a file. Raises ValueError where it is not one for the connector."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            shape = file.get_slice("key_values").get_shape()
            ids = json.loads(metadata["ids"])
        integers = isinstance(ids, list) and all(type(i) is int for i in ids)
        if not integers or len(shape) != 5 or len(ids) != shape[3]:
            raise ValueError("its placeholder does not fit its keys and values")
        return PrefixFile(
            path, metadata["name"], metadata["digest"], ids, metadata["layout"], tuple(shape)
        )
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} is not a prefix file for the connector ({error}); expected a file that "
            "`softlore convert --to vllm` wrote; take it out of the folder"
        ) from error


def read_folder(folder: str | os.PathLike[str]) -> list[PrefixFile]:
    """The prefixes in a folder. Raises ValueError as `read` does."""
    return [read(path) for path in sorted(Path(folder).glob("*" + SUFFIX))]


class PrefixFolder:
    """The prefixes in a folder, by name and by placeholder; listed again when the folder changes.

    Raises:
        ValueError: a file that is no prefix, when it is opened; later such a file is logged.
    """

    def __init__(self, path: str, block_size: int) -> None:
        self.path = path
        self._block_size = block_size
        self._modified = 0
        self._headers: dict[Path, tuple[tuple[int, ...], PrefixFile]] = {}
        self._files: dict[str, PrefixFile] = {}
        self._by_first_block: dict[tuple[int, ...], list[PrefixFile]] = {}
        for file in read_folder(path):
            self._check(file)

    def files(self) -> dict[str, PrefixFile]:
        """The files by the names of their prompts."""
        modified = os.stat(self.path).st_mtime_ns
        if modified != self._modified:
            self._files = {file.name: file for file in self._valid_files()}
            self._by_first_block = {}
            for file in self._files.values():
                self._by_first_block.setdefault(self._first_block(file.ids), []).append(file)
            self._modified = modified
        return self._files

    def named(self, names: Sequence[str]) -> list[PrefixFile]:
        """The files of these names that exist, each tensor once, as softlore counts them."""
        files = self.files()
        return list({files[name].digest: files[name] for name in names if name in files}.values())

    def starting(self, ids: Sequence[int]) -> PrefixFile | None:
        """The prompt whose placeholder a request's ids begin with."""
        self.files()
        for file in self._by_first_block.get(self._first_block(ids), ()):
            if list(ids[: len(file.ids)]) == file.ids:
                return file
        return None

    def _first_block(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids[: self._block_size])

    def _valid_files(self) -> Iterator[PrefixFile]:
        """All files; only new and changed ones are read, as vLLM's scheduler waits for it."""
        known, self._headers = self._headers, {}
        for path in sorted(Path(self.path).glob("*" + SUFFIX)):
            try:
                stat = path.stat()
                stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                before = known.get(path)
                file = before[1] if before is not None and before[0] == stamp else read(path)
                self._check(file)
            except (ValueError, OSError) as error:
                logger.error("softlore: %s", error)
            else:
                self._headers[path] = (stamp, file)
                yield file

    def _check(self, file: PrefixFile) -> None:
        if not file.ids or len(file.ids) % self._block_size:
            raise ValueError(
                f"prompt {file.name!r} has {len(file.ids)} tokens; expected a multiple of vLLM's "
                f"block size, {self._block_size}; train it with as many, or start vLLM with "
                "another --block-size"
            )
