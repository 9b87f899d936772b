"""The keys and values that come before a text: prefixes, or a trunk that was already run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

# One (key, value) a layer, each `[B, kv_heads, P, head_dim]`.
KeysValues = list[tuple[Tensor, Tensor]]


@dataclass
class KVCache:
    """Keys and values that queries may look back on, and where they stand.

    Attributes:
        keys_values: one pair a layer, each `[B, kv_heads, P, head_dim]`, in the model's dtype.
        positions: `[B, P]` text positions of the keys (several prefixes share positions).
        visible: `[B, P]` bool; False is padding, or a node that this row may not see.
    """

    keys_values: KeysValues
    positions: Tensor
    visible: Tensor

    def __len__(self) -> int:
        return int(self.positions.shape[1])

    def rows(self, index: Tensor, visible: Tensor) -> KVCache:
        """Past of a new batch whose row i is row `index[i]` of this one, seeing `visible[i]`."""
        pairs = [(k.index_select(0, index), v.index_select(0, index)) for k, v in self.keys_values]
        return KVCache(pairs, self.positions.index_select(0, index), visible)

    def cut(self, length: int) -> KVCache:
        """The first `length` of this past."""
        pairs = [(k[:, :, :length], v[:, :, :length]) for k, v in self.keys_values]
        return KVCache(pairs, self.positions[:, :length], self.visible[:, :length])

    def key_positions(self, new: Tensor) -> Tensor:
        """Positions `[B, P + T]` of all keys once tokens at `new` `[B, T]` are run after it."""
        return torch.cat([self.positions, new], dim=1)

    def layers(self) -> list[DynamicLayer]:
        """The layers of a transformers cache that holds it, each whole: none slides by itself."""
        found = []
        for key, value in self.keys_values:
            layer = DynamicLayer()
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value
            found.append(layer)
        return found

    def extend(self, keys_values: KeysValues, positions: Tensor, visible: Tensor) -> KVCache:
        """This past followed by tokens that were just run (`keys_values` holds both)."""
        return KVCache(
            keys_values,
            torch.cat([self.positions, positions], dim=1),
            torch.cat([self.visible, visible], dim=1),
        )


def fill_cache(past: KVCache | None, mask: Any = None) -> DynamicCache:
    """A transformers cache that holds `past`.

    `mask` rides along for families whose attention takes it from there (MPT).
    """
    cache = DynamicCache()
    cache.layers.extend(past.layers() if past is not None else [])
    cache.mask = mask
    return cache


def read_cache(cache: DynamicCache) -> KeysValues:
    """Keys and values of each layer of a cache, as they lie there."""
    return [(layer.keys, layer.values) for layer in cache.layers]
