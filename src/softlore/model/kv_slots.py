"""Keys and values of texts that are written side by side: a row each, joining, growing and leaving.

`Past.extend` makes a new tensor at every token, which for many long texts is most of the work.
Here a token's keys and values are written where they belong, in a tensor that has room to spare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from softlore.model.kv_cache import KeysValues, KVCache

if TYPE_CHECKING:
    from softlore.model.frozen import FrozenModel

STEP = 64  # tokens; the room of a row grows by as much at least


class KVSlots:
    """Rows of keys and values, one a text, from 0 on without gaps.

    Attributes:
        lengths: how many keys each row holds.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._next: list[int] = []  # the position of each row's next token
        self._layers: KeysValues = []  # each `[rows, kv_heads, room, head_dim]`, zeros where free
        self._positions = torch.zeros(0, 0, dtype=torch.long)
        self._seen = torch.zeros(0, 0, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def bytes(self) -> int:
        """What the rows take in memory, free room and all."""
        return sum(k.nbytes + v.nbytes for k, v in self._layers)

    def put(self, past: KVCache, position: int) -> int:
        """Takes in a text that was read, a past of one row, whose next token is at `position`.

        Returns:
            Its row.
        """
        row, length = len(self), len(past)
        self._make_room(past, row + 1, length + 1)
        for (keys, values), (k, v) in zip(self._layers, past.keys_values, strict=True):
            keys[row, :, :length] = k[0]
            values[row, :, :length] = v[0]
        self._positions[row, :length] = past.positions[0]
        self._seen[row] = False
        self._seen[row, :length] = past.visible[0]
        self.lengths.append(length)
        self._next.append(position)
        return row

    def drop(self, row: int) -> int:
        """Lets a row go; the last one takes its place. Returns the row that is free now."""
        last = len(self) - 1
        if row != last:
            for tensors in (*self._layers, (self._positions, self._seen)):
                for tensor in tensors:
                    tensor[row] = tensor[last]
            self.lengths[row], self._next[row] = self.lengths[last], self._next[last]
        del self.lengths[last], self._next[last]
        if not self.lengths:
            self._layers = []
        return last

    def past(self, row: int) -> KVCache:
        """A copy of what a row holds, as a past of one row."""
        length = self.lengths[row]
        pairs = [(k[row, None, :, :length], v[row, None, :, :length]) for k, v in self._layers]
        return KVCache(
            [(k.clone(), v.clone()) for k, v in pairs],
            self._positions[row, None, :length].clone(),
            self._seen[row, None, :length].clone(),
        )

    @torch.no_grad()
    def run(self, model: FrozenModel, ids: Sequence[int]) -> Tensor:
        """Reads one more token in every row: its last hidden states `[rows, hidden]`."""
        count, room = len(self), max(self.lengths) + 1
        self._grow(count, room)
        rows = torch.arange(count, device=model.device)
        at = torch.tensor(self.lengths, device=model.device)
        positions = torch.tensor(self._next, device=model.device)
        self._positions[rows, at] = positions
        self._seen[rows, at] = True
        views = [(k[:count, :, :room], v[:count, :, :room]) for k, v in self._layers]
        seen = self._seen[:count, :room]
        past = _InPlace(views, self._positions[:count, :room], seen, rows, at)
        embeds = model.embed_ids(list(ids))[:, None]
        hidden, _ = model.hidden(embeds, positions[:, None], seen[:, None], past)
        self.lengths = [length + 1 for length in self.lengths]
        self._next = [place + 1 for place in self._next]
        return hidden[:, 0]

    def _make_room(self, past: KVCache, rows: int, room: int) -> None:
        if not self._layers:
            device = past.positions.device
            self._layers = [(k[:0, :, :0], v[:0, :, :0]) for k, v in past.keys_values]
            self._positions = torch.zeros(0, 0, dtype=torch.long, device=device)
            self._seen = torch.zeros(0, 0, dtype=torch.bool, device=device)
        self._grow(rows, room)

    def _grow(self, rows: int, room: int) -> None:
        """Makes the tensors larger where they must be, with some to spare."""
        had_rows, had_room = self._seen.shape
        if rows <= had_rows and room <= had_room:
            return
        if rows > had_rows:
            rows = max(rows, 2 * had_rows)
        if room > had_room:
            room = -(-max(room, had_room + had_room // 4) // STEP) * STEP
        shape = max(rows, had_rows), max(room, had_room)

        def larger(tensor: Tensor) -> Tensor:  # [rows, (kv_heads,) room, …]
            sizes = list(tensor.shape)
            sizes[0], sizes[1 if tensor.dim() == 2 else 2] = shape
            new = tensor.new_zeros(sizes)
            if tensor.dim() == 2:
                new[:had_rows, :had_room] = tensor
            else:
                new[:had_rows, :, :had_room] = tensor
            return new

        self._layers = [(larger(k), larger(v)) for k, v in self._layers]
        self._positions, self._seen = larger(self._positions), larger(self._seen)


class _InPlace(KVCache):
    """Views of the rows up to the longest, with a place in each for the token to be run."""

    def __init__(
        self, views: KeysValues, positions: Tensor, visible: Tensor, rows: Tensor, at: Tensor
    ) -> None:
        super().__init__(views, positions, visible)
        self._rows, self._at = rows, at

    def key_positions(self, new: Tensor) -> Tensor:
        return self.positions  # the new ones stand there already

    def layers(self) -> list[DynamicLayer]:
        return [_InPlaceLayer(k, v, self._rows, self._at) for k, v in self.keys_values]


class _InPlaceLayer(DynamicLayer):
    """A layer of a transformers cache that writes a token's keys and values into its row."""

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, at: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._rows, self._at = rows, at

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys[self._rows, :, self._at] = key_states[:, :, 0]
        self.values[self._rows, :, self._at] = value_states[:, :, 0]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return int(self.keys.shape[-2]) - 1  # less the token that is run
