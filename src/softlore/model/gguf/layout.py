"""How a prefix's keys and values stand in llama.cpp's cache."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 64  # columns of the smallest matrix that llama.cpp turns quantized caches by


@dataclass(frozen=True)
class Layout:
    """From transformers' heads to llama.cpp's rows, and back.

    Attributes:
        heads, head_dim: of keys and values.
        neighbours: columns that turn together with position are neighbours here, and a half of
            the head apart in transformers: what converters do to Llama's weights.

    Rows of a quantized cache are turned by a Hadamard matrix besides, so that no column stands out.
    """

    heads: int
    head_dim: int
    neighbours: bool = False

    def rows(self, tensor: Tensor, keys: bool, quantized: bool) -> Tensor:
        """`[heads, n, head_dim]` as `[n, heads * head_dim]`."""
        n = tensor.shape[1]
        if keys and self.neighbours:
            tensor = tensor.reshape(self.heads, n, 2, -1).transpose(2, 3)
        rows = tensor.reshape(self.heads, n, self.head_dim)
        if quantized and (size := self._mixed(keys)):
            rows = _mix(rows, size)
        return rows.transpose(0, 1).reshape(n, -1)

    def tensor(self, rows: Tensor, keys: bool, quantized: bool) -> Tensor:
        """The way back: `[n, heads * head_dim]` as `[heads, n, head_dim]`."""
        n = rows.shape[0]
        tensor = rows.reshape(n, self.heads, self.head_dim).transpose(0, 1)
        if quantized and (size := self._mixed(keys)):
            tensor = _mix(tensor, size)  # its own inverse
        if keys and self.neighbours:
            tensor = tensor.reshape(self.heads, n, -1, 2).transpose(2, 3)
        return tensor.reshape(self.heads, n, self.head_dim)

    def _mixed(self, keys: bool) -> int:
        """Columns that are mixed with each other; 0 for none. Source: llama-kv-cache.cpp."""
        if self.head_dim % _LEAST or os.environ.get("LLAMA_ATTN_ROT_DISABLE", "0") != "0":
            return 0
        size = _LEAST
        while keys and self.head_dim % (2 * size) == 0:
            size *= 2
        return size


def _mix(tensor: Tensor, size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:  # Sylvester's construction
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    matrix = matrix / size**0.5
    return (tensor.float().reshape(*tensor.shape[:-1], -1, size) @ matrix).reshape(tensor.shape)
