"""The layout of keys and values in llama.cpp's cache, beside that of transformers."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

_MIN_SIZE = 64  # columns of the smallest matrix that llama.cpp rotates quantized caches by


@dataclass(frozen=True)
class Layout:
    """Converts keys and values from transformers' heads to llama.cpp's rows, and back.

    Rotary embeddings rotate pairs of columns. Transformers pairs column i with i + head_dim / 2,
    llama.cpp, for some families, with its neighbour:

        transformers  a0 a1 a2 a3 | b0 b1 b2 b3
        neighbours    a0 b0 a1 b1   a2 b2 a3 b3

    Attributes:
        heads, head_dim: of keys and values.
        neighbours: whether pairs are neighbours, as in Llama's converted weights.

    Rows of a quantized cache are also multiplied by a Hadamard matrix, which spreads outliers over
    all columns.
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
        if quantized and (size := self._hadamard_size(keys)):
            rows = _multiply_hadamard(rows, size)
        return rows.transpose(0, 1).reshape(n, -1)

    def tensor(self, rows: Tensor, keys: bool, quantized: bool) -> Tensor:
        """The inverse of `rows`: `[n, heads * head_dim]` as `[heads, n, head_dim]`."""
        n = rows.shape[0]
        tensor = rows.reshape(n, self.heads, self.head_dim).transpose(0, 1)
        if quantized and (size := self._hadamard_size(keys)):
            tensor = _multiply_hadamard(tensor, size)  # its own inverse
        if keys and self.neighbours:
            tensor = tensor.reshape(self.heads, n, -1, 2).transpose(2, 3)
        return tensor.reshape(self.heads, n, self.head_dim)

    def _hadamard_size(self, keys: bool) -> int:
        """Columns that are multiplied together; 0: none. Source: llama-kv-cache.cpp."""
        if self.head_dim % _MIN_SIZE or os.environ.get("LLAMA_ATTN_ROT_DISABLE", "0") != "0":
            return 0
        size = _MIN_SIZE
        while keys and self.head_dim % (2 * size) == 0:
            size *= 2
        return size


def _multiply_hadamard(tensor: Tensor, size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:  # Sylvester's construction
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    matrix = matrix / size**0.5
    return (tensor.float().reshape(*tensor.shape[:-1], -1, size) @ matrix).reshape(tensor.shape)
