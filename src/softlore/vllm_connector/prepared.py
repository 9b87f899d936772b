"""PreparedPrefixes: prefixes in memory, in the layout of vLLM's kernels; their cache slots."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from softlore.vllm_connector.files import PrefixFile, side_by_side

MAX_BYTES = 2**30  # of a worker's prepared prefixes, in the machine's memory

SetKey = tuple[str, ...]  # sorted digests of a set of prefixes


def set_key(files: Sequence[PrefixFile]) -> SetKey:
    """The key of a set of prefixes."""
    return tuple(sorted(file.digest for file in files))


class PreparedPrefixes:
    """Caches one worker's share of prefixes and sets; the least recently used are dropped.

    Args:
        layers: how many the model has at least.
        heads, head_dim: the worker's heads of keys and values, and their size.
        dtype: what the kernel takes.
        rank, ranks: the worker among those that split, or share, the model's heads.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        rank: int = 0,
        ranks: int = 1,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._layers, self._heads, self._head_dim, self._dtype = layers, heads, head_dim, dtype
        self._rank, self._ranks = rank, ranks
        self._max_bytes = max_bytes
        self._bytes = 0
        self._cached: OrderedDict[SetKey, Tensor] = OrderedDict()

    def get(self, key: SetKey) -> Tensor | None:
        """The tensor of a set, where it is cached."""
        if key in self._cached:
            self._cached.move_to_end(key)
        return self._cached.get(key)

    def prepare(self, files: Sequence[PrefixFile]) -> Tensor:
        """Reads the tensor of a set, `[layers, 2, N, heads, head_dim]`, and caches it.

        Raises:
            ValueError: a file was changed, is another model's, or can't be combined with others.
        """
        for file in files:
            self._check(file)
        key_values = side_by_side(files)  # [layers, 2, kv_heads, N, head_dim]
        first = self._rank * key_values.shape[2] // self._ranks  # several ranks may share a head
        share = key_values[:, :, first : first + self._heads].transpose(2, 3)
        tensor = torch.empty(share.shape, dtype=self._dtype).copy_(share)  # frees the other heads
        self._cached[set_key(files)] = tensor
        self._bytes += tensor.nbytes
        while self._bytes > self._max_bytes and len(self._cached) > 1:
            self._bytes -= self._cached.popitem(last=False)[1].nbytes
        return tensor

    def _check(self, file: PrefixFile) -> None:
        layers, _, heads, _, head_dim = file.shape
        fit = heads == self._heads * self._ranks or (self._heads == 1 and heads < self._ranks)
        if layers < self._layers or not fit or head_dim != self._head_dim:
            raise ValueError(
                f"prompt {file.name!r} is for another model, of {layers} layers with {heads} heads "
                f"of {head_dim}; expected {self._layers} layers with {self._heads} heads of "
                f"{self._head_dim} on each of {self._ranks} ranks; convert it for this model"
            )


def slot_mapping(blocks: Sequence[int], start: int, end: int, block_size: int) -> Tensor:
    """Slots of vLLM's cache for tokens `start:end` of a request that has these blocks."""
    places = torch.arange(start, end)
    return torch.tensor(blocks)[places // block_size] * block_size + places % block_size
