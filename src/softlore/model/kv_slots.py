"""Preallocated keys and values of sequences that are generated side by side, a row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from softlore.model.kv_cache import KeysValues, KVCache
from softlore.model.steering import stack_steering

if TYPE_CHECKING:
    from softlore.model.frozen import FrozenModel

STEP = 64  # keys; the room of a row grows by at least this many
VIEW_STEP = 32  # keys; what a step attends to is rounded up to a multiple of this


class KVSlots:
    """Rows of keys and values, one a sequence, that grow by a key at each step.

    A KVCache that grows makes new tensors at every token, which for many long texts is most of the
    work. Here a new token's keys and values are written into tensors with room to spare:

                 0                    length      room
        row 0    prefix | text .......... | new | free |
        row 1    prefix | text | new | free .......... |
        (free)   ..................................... |

    Each layer's tensors are `[capacity, kv_heads, room, head_dim]`. Rows 0 to n - 1 are in use,
    without gaps: the last row moves into the place of one that is removed. A row may hold padding,
    which is invisible.

    Attributes:
        lengths: how many keys, padding included, each row holds.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._next: list[int] = []  # the position of each row's next token
        self._steering: list[Tensor | None] = []  # each row's control vectors
        self._layers: KeysValues = []
        self._positions = torch.zeros(0, 0, dtype=torch.long)  # [capacity, room]
        self._visible = torch.zeros(0, 0, dtype=torch.bool)  # [capacity, room]
        self._last_view: _SlotsView | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def bytes(self) -> int:
        """Memory of all rows, free room included."""
        return sum(k.nbytes + v.nbytes for k, v in self._layers)

    def insert(
        self,
        caches: Sequence[KVCache],
        positions: Sequence[int],
        steering: Sequence[Tensor | None] | None = None,
    ) -> range:
        """Copies caches of one row each into new rows.

        Args:
            positions: of each row's next token.
            steering: each row's control vectors `[layers, width]`, or None.

        Returns:
            The new rows.
        """
        rows = range(len(self), len(self) + len(caches))
        self._make_room(caches[0], rows.stop, max(map(len, caches)) + 1)
        for row, cache in zip(rows, caches, strict=True):
            length = len(cache)
            for (keys, values), (k, v) in zip(self._layers, cache.keys_values, strict=True):
                keys[row, :, :length] = k[0]
                values[row, :, :length] = v[0]
            self._positions[row, :length] = cache.positions[0]
            self._visible[row] = False
            self._visible[row, :length] = cache.visible[0]
            self.lengths.append(length)
        self._next.extend(positions)
        self._steering.extend(steering or [None] * len(caches))
        self._last_view = None
        return rows

    def remove(self, row: int) -> int:
        """Frees a row; the last row takes its place. Returns the last row's old number."""
        last = len(self) - 1
        if row != last:
            for tensors in (*self._layers, (self._positions, self._visible)):
                for tensor in tensors:
                    tensor[row] = tensor[last]
            self.lengths[row], self._next[row] = self.lengths[last], self._next[last]
            self._steering[row] = self._steering[last]
        del self.lengths[last], self._next[last], self._steering[last]
        self._last_view = None
        if not self.lengths:
            self._layers = []
        return last

    def read(self, row: int, start: int = 0) -> KVCache:
        """A copy of what a row holds from key `start` on, without padding."""
        keys = slice(start, self.lengths[row])
        pairs = [(k[row, None, :, keys], v[row, None, :, keys]) for k, v in self._layers]
        positions, visible = (t[row, None, keys] for t in (self._positions, self._visible))
        return KVCache(pairs, positions, visible).compact()

    @torch.no_grad()
    def forward(self, model: FrozenModel, ids: Sequence[int | None]) -> Tensor:
        """Runs one more token in every row; rows whose id is None stay as they are.

        Returns:
            Last hidden states `[rows, hidden]`; those of rows that stay are undefined.
        """
        past = self._view(max(self.lengths) + 1)
        positions = torch.tensor(self._next, device=model.device)
        past.move_to(self.lengths, positions)
        embeds = model.embed_ids([i or 0 for i in ids])
        hidden, _ = model.hidden(
            embeds[:, None],
            positions[:, None],
            past.visible[:, None],
            past,
            steering=past.steering,
        )
        for row, i in enumerate(ids):
            if i is None:
                self._visible[row, self.lengths[row]] = False
            else:
                self.lengths[row] += 1
                self._next[row] += 1
        return hidden[:, 0]

    def _view(self, keys: int) -> _SlotsView:
        """The first `keys` of the rows in use, or some more, so that a view serves many steps."""
        view = self._last_view
        if view is None or len(view) < keys:
            self._grow(len(self), keys)
            length = min(-(-keys // VIEW_STEP) * VIEW_STEP, self._visible.shape[1])
            view = _SlotsView(
                self._layers, self._positions, self._visible, self._steering, len(self), length
            )
            self._last_view = view
        return view

    def _make_room(self, like: KVCache, rows: int, room: int) -> None:
        """Makes the tensors large enough; the first ones have the device and shape of `like`."""
        if not self._layers:
            device = like.positions.device
            self._layers = [(k[:0, :, :0], v[:0, :, :0]) for k, v in like.keys_values]
            self._positions = torch.zeros(0, 0, dtype=torch.long, device=device)
            self._visible = torch.zeros(0, 0, dtype=torch.bool, device=device)
        self._grow(rows, room)

    def _grow(self, rows: int, room: int) -> None:
        """Moves everything to larger tensors, with some room to spare, where it must."""
        old_rows, old_room = self._visible.shape
        if rows <= old_rows and room <= old_room:
            return
        if rows > old_rows:
            rows = max(rows, 2 * old_rows)
        if room > old_room:
            room = -(-max(room, old_room + old_room // 4) // STEP) * STEP
        rows, room = max(rows, old_rows), max(room, old_room)

        def larger(tensor: Tensor) -> Tensor:  # [rows, room], or [rows, kv_heads, room, head_dim]
            axis = 1 if tensor.dim() == 2 else 2
            new = tensor.new_zeros(rows, *tensor.shape[1:axis], room, *tensor.shape[axis + 1 :])
            new[:old_rows].narrow(axis, 0, old_room).copy_(tensor)
            return new

        self._layers = [(larger(k), larger(v)) for k, v in self._layers]
        self._positions, self._visible = larger(self._positions), larger(self._visible)


class _SlotsView(KVCache):
    """The rows in use with a place in each for the token that is run next.

    `update` of a layer is called by the model's attention. Keys of shape `[capacity, kv_heads,
    room, head_dim]` are written as rows of a matrix `[capacity * kv_heads * room, head_dim]`, for
    all rows and heads in one call, as advanced indexing takes several times as long.
    """

    def __init__(
        self,
        layers: KeysValues,
        positions: Tensor,
        visible: Tensor,
        steering: Sequence[Tensor | None],
        rows: int,
        length: int,
    ) -> None:
        super().__init__(
            [(k[:rows, :, :length], v[:rows, :, :length]) for k, v in layers],
            positions[:rows, :length],
            visible[:rows, :length],
        )
        self.steering = stack_steering(steering, positions.device)
        self._all_positions, self._all_visible = positions.view(-1), visible.view(-1)
        # By the number of heads: where the next keys go. The layers have it rather than the view:
        # in a circle the tensors would outlive their text until Python's collector runs, which
        # does not count how large they are.
        self._places: dict[int, Tensor] = {}
        self._layers = [
            _SlotsLayer(self._places, *tensors, *views)
            for tensors, views in zip(layers, self.keys_values, strict=True)
        ]
        room, device = visible.shape[1], visible.device
        heads = {int(tensor.shape[1]) for pair in layers for tensor in pair} | {1}
        self._offsets = {
            n: torch.arange(rows * n, device=device).view(rows, n) * room for n in heads
        }

    def move_to(self, lengths: Sequence[int], positions: Tensor) -> None:
        """Makes the key after the first `lengths` of each row the one that is written next."""
        places = torch.tensor(lengths, device=positions.device)[:, None]
        for n, first in self._offsets.items():
            self._places[n] = (first + places).view(-1)
        self._all_positions.index_copy_(0, self._places[1], positions)
        self._all_visible.index_fill_(0, self._places[1], True)

    def key_positions(self, new: Tensor) -> Tensor:
        return self.positions  # the new ones are already there

    def layers(self) -> list[DynamicLayer]:
        return [*self._layers]


class _SlotsLayer(DynamicLayer):
    """A layer of a transformers cache that writes a token's keys and values into its rows."""

    def __init__(
        self,
        places: dict[int, Tensor],
        all_keys: Tensor,
        all_values: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        super().__init__()
        self.is_initialized, self.device = True, keys.device
        self.keys, self.values = keys, values
        self._places, self._heads = places, int(keys.shape[1])
        self._all_keys, self._all_values = (t.view(-1, t.shape[3]) for t in (all_keys, all_values))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        places = self._places[self._heads]
        for tensor, new in ((self._all_keys, key_states), (self._all_values, value_states)):
            tensor.index_copy_(0, places, new.reshape(-1, new.shape[3]))
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return int(self.keys.shape[-2]) - 1  # less the token that is run
