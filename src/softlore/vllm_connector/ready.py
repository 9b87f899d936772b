"""Prefixes as vLLM's kernels take them, ready in memory, and where in its cache they go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from softlore.vllm_connector.files import PrefixFile, side_by_side

MOST_BYTES = 2**30  # of prompts and sets that a worker keeps ready, in the machine's memory

Key = tuple[str, ...]  # digests in order


def key_of(files: Sequence[PrefixFile]) -> Key:
    """What a set is known by."""
    return tuple(sorted(file.digest for file in files))


class Ready:
    """Keeps the share of one worker of prompts and sets, and drops what was longest not used.

    Args:
        layers: how many the model has at least.
        heads: how many heads of keys and values the worker has, of `head_dim` each.
        rank, ranks: which of the workers that split (or share) the heads it is.
        dtype: what the kernel takes.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        rank: int = 0,
        ranks: int = 1,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._layers, self._heads, self._head_dim, self._dtype = layers, heads, head_dim, dtype
        self._rank, self._ranks = rank, ranks
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[Key, Tensor] = OrderedDict()

    def kept(self, key: Key) -> Tensor | None:
        """What `prepare` made of a set with these digests, where it is still here."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def prepare(self, files: Sequence[PrefixFile]) -> Tensor:
        """`[layers, 2, N, heads, head_dim]` of a set.

        Raises:
            ValueError: a file has gone bad, is another model's, or can't stand beside others.
        """
        for file in files:
            self._check(file)
        whole = side_by_side(files)  # [layers, 2, kv_heads, N, head_dim]
        first = self._rank * whole.shape[2] // self._ranks  # ranks beyond the heads share them
        own = whole[:, :, first : first + self._heads].transpose(2, 3)
        rows = torch.empty(own.shape, dtype=self._dtype).copy_(own)  # without the others' heads
        self._kept[key_of(files)] = rows
        self._bytes += rows.nbytes
        while self._bytes > self._most_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return rows

    def _check(self, file: PrefixFile) -> None:
        layers, _, heads, _, head_dim = file.shape
        fit = heads == self._heads * self._ranks or (self._heads == 1 and heads < self._ranks)
        if layers < self._layers or not fit or head_dim != self._head_dim:
            raise ValueError(
                f"prompt {file.name!r} is for another model, of {layers} layers with {heads} heads "
                f"of {head_dim}; expected {self._layers} layers with {self._heads} heads of "
                f"{self._head_dim} on each of {self._ranks} ranks; convert it for this model"
            )


def slots(blocks: Sequence[int], start: int, end: int, block_size: int) -> Tensor:
    """Places in the cache of the tokens `start:end` of a request that has these blocks."""
    places = torch.arange(start, end)
    return torch.tensor(blocks)[places // block_size] * block_size + places % block_size
