"""KVCache: keys and values of prefixes, and of text that was already run."""

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
    """Keys and values of a batch of rows, with the position of each key.

    A row holds prefixes side by side, then text; several prefixes share positions, and padding
    may stand anywhere, as it is invisible:

        row 0   prefix a | prefix b  | text ......... | text
        row 1   prefix a | text | (padding) ......... | text

    Attributes:
        keys_values: one pair a layer, each `[B, kv_heads, P, head_dim]`, in the model's dtype.
        positions: `[B, P]` text positions of the keys.
        visible: `[B, P]` bool; False is padding, or a node that this row may not see.
        n_constant: how many of the first keys need no gradient, in every row.
    """

    keys_values: KeysValues
    positions: Tensor
    visible: Tensor
    n_constant: int = 0

    def __len__(self) -> int:
        return int(self.positions.shape[1])

    @property
    def bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self.keys_values)

    def row(self, index: int) -> KVCache:
        """Row `index` as a batch of one; shares memory with this cache."""
        rows = slice(index, index + 1)
        pairs = [(k[rows], v[rows]) for k, v in self.keys_values]
        return KVCache(pairs, self.positions[rows], self.visible[rows])

    def cut(self, stop: int, start: int = 0) -> KVCache:
        """The keys from `start` to `stop`; shares memory with this cache."""
        keys = slice(start, stop)
        pairs = [(k[:, :, keys], v[:, :, keys]) for k, v in self.keys_values]
        return KVCache(pairs, self.positions[:, keys], self.visible[:, keys])

    def compact(self) -> KVCache:
        """The visible keys of a cache of one row, in memory of their own."""
        keys = self.visible[0].nonzero()[:, 0]
        pairs = [(k.index_select(2, keys), v.index_select(2, keys)) for k, v in self.keys_values]
        return KVCache(pairs, self.positions[:, keys], self.visible[:, keys])

    def key_positions(self, new: Tensor) -> Tensor:
        """Positions `[B, P + T]` of all keys once tokens at `new` `[B, T]` are run after it."""
        return torch.cat([self.positions, new], dim=1)

    def layers(self) -> list[DynamicLayer]:
        """Layers of a transformers cache with these keys, without sliding windows of their own."""
        layers = []
        for key, value in self.keys_values:
            layer = MarkedLayer(self.n_constant)
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value
            layers.append(layer)
        return layers


class MarkedLayer(DynamicLayer):
    """A layer of a transformers cache that tells the attention how many keys are constant."""

    def __init__(self, n_constant: int) -> None:
        super().__init__()
        self.n_constant = n_constant

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(*args, **kwargs)
        # Most families hand this very tensor to their attention function. Where one makes another
        # of it, the mark is lost, and gradients of all keys are computed.
        keys.n_constant = self.n_constant
        return keys, values


class GatheredCache(DynamicCache):
    """A cache of a model whose layers are on several devices, with all keys on one of them.

    So prefixes, rows and masks of a batch are handled as those of any other model.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds a layer's keys and values; returns all of them, on that layer's device."""
        own = (key_states.to(self.device), value_states.to(self.device))
        keys, values = super().update(*own, layer_idx, *args, **kwargs)
        return keys.to(key_states.device), values.to(value_states.device)


def fill_cache(
    past: KVCache | None, mask: Any = None, device: torch.device | None = None
) -> DynamicCache:
    """A transformers cache that holds `past`.

    Args:
        mask: attached for families whose attention reads it from the cache (MPT).
        device: of the keys, where the model's layers are on several.
    """
    cache = DynamicCache() if device is None else GatheredCache(device)
    cache.layers.extend(past.layers() if past is not None else [])
    cache.mask = mask
    return cache


def read_cache(cache: DynamicCache) -> KeysValues:
    """Keys and values of each layer of a transformers cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]
