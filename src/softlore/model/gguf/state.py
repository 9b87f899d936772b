"""llama.cpp's state of one sequence: where in its bytes each layer's keys and values are.

Source of the layout: llama.cpp's `llama_kv_cache::state_write`. Types and row sizes are read and
must fit each other up to the last byte; otherwise the state is rejected.

    magic, sequence                                    u32 each, in some versions
    for each cache (one; or that of full layers, then that of sliding ones):
        streams                                        u32
        for each stream: cells                         u32, and where there are some
            for each cell: position, sequences, …      i32, u32, what this build adds, i32 each
            transposed, layers                         u32 each
            for each layer: type, row size             i32, u64, then keys, a row a cell
            for each layer: type, row size             the same of values; if they are transposed:
                            type, element size, width  i32, u32, u32, then a row a column
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softlore.errors import EngineError

_EXTRAS = (0, 8, 12, 16)  # bytes that a build may add to a cell
_MAX_LAYERS = 1024


@dataclass(frozen=True)
class StateBlock:
    """Keys or values of one layer: `cells` rows of `width` numbers of a ggml type.

    They are `length` bytes from `start` on; transposed, a row is a column.
    """

    start: int
    type: int
    cells: int
    width: int
    length: int
    transposed: bool = False

    def read(self, state: bytes | bytearray) -> np.ndarray[Any, Any]:
        """The numbers `[cells, width]`, float32."""
        quants, kind = _quants(self.type)
        raw = np.frombuffer(state, np.uint8, self.length, self.start)
        rows = self.width if self.transposed else self.cells
        numbers = quants.dequantize(_viewed(raw.reshape(rows, -1), kind), kind)
        array = np.asarray(numbers, np.float32)
        return array.T if self.transposed else array

    def write(self, state: bytearray, numbers: np.ndarray[Any, Any]) -> None:
        """Overwrites the block with `numbers`, `[cells, width]`."""
        quants, kind = _quants(self.type)
        rows = np.ascontiguousarray(numbers.T if self.transposed else numbers, np.float32)
        try:
            raw = np.ascontiguousarray(quants.quantize(rows, kind)).tobytes()
        except NotImplementedError:
            raise EngineError(
                f"a cache of type {kind.name} cannot be written; expected f32, f16, bf16, q8_0, "
                "q5_1, q5_0, q4_1 or q4_0; choose another --cache-type"
            ) from None
        if len(raw) != self.length:
            raise _unknown_layout(f"{len(raw)} bytes where {self.length} are expected")
        state[self.start : self.start + self.length] = raw


@dataclass(frozen=True)
class StateCells:
    """The cells of the sequence in one cache, by their offsets in the state.

    Attributes:
        start, end: the range of this cache, from its number of cells on.
        offsets: where each cell begins, with its position.
        layers: where the cells end.
        keys, values: a block for each layer of this cache, in order.
    """

    start: int
    offsets: tuple[int, ...]
    layers: int
    keys: tuple[StateBlock, ...]
    values: tuple[StateBlock, ...]

    @property
    def end(self) -> int:
        return self.values[-1].start + self.values[-1].length

    def positions(self, state: bytes | bytearray) -> list[int]:
        return [struct.unpack_from("<i", state, offset)[0] for offset in self.offsets]

    def move_last(self, state: bytearray, position: int) -> None:
        """Gives the last cell another position; its key stays rotated for the one it had."""
        struct.pack_into("<i", state, self.offsets[-1], position)


def parse(state: bytes | bytearray) -> list[StateCells]:
    """The caches of a sequence's state that have cells.

    Raises:
        EngineError: the layout is another one.
    """
    for header in (8, 0, 4):
        for extra in _EXTRAS:
            try:
                return _caches(state, header, extra)
            except (struct.error, ValueError):
                continue
    raise _unknown_layout("an unknown layout")


def joined(states: Sequence[bytes], sliding: Sequence[bytes] = ()) -> bytes:
    """One state with the cells of several, in order, at their positions.

    `sliding`: states of the last cache alone, that of sliding layers, whose cells come first there.
    """
    parsed = [parse(state) for state in states]
    parts = [list(zip(states, caches, strict=True)) for caches in zip(*parsed, strict=True)]
    parts[-1] = [*((state, parse(state)[0]) for state in sliding), *parts[-1]]
    first, at, out = states[0], 0, list[bytes | memoryview]()
    for cells, part in zip(parsed[0], parts, strict=True):  # the same cache of each state
        out += [memoryview(first)[at : cells.start], *_join(part)]
        at = cells.end
    return b"".join([*out, first[at:]])


def _join(part: Sequence[tuple[bytes, StateCells]]) -> Iterator[bytes | memoryview]:
    """One cache with the cells of several, in pieces."""
    yield struct.pack("<I", sum(len(cells.offsets) for _, cells in part))
    for state, cells in part:
        yield memoryview(state)[cells.start + 4 : cells.layers]
    first, cells = part[0]
    yield memoryview(first)[cells.layers : cells.layers + 8]
    for blocks in (*zip(*(cells.keys for _, cells in part), strict=True),
                   *zip(*(cells.values for _, cells in part), strict=True)):  # fmt: skip
        yield memoryview(first)[blocks[0].start - 12 : blocks[0].start]
        raw = [
            memoryview(state)[block.start : block.start + block.length]
            for (state, _), block in zip(part, blocks, strict=True)
        ]
        if blocks[0].transposed:  # a row is a column
            columns = [np.frombuffer(piece, np.uint8).reshape(blocks[0].width, -1) for piece in raw]
            raw = [memoryview(np.concatenate(columns, axis=1).tobytes())]
        yield from raw


def _caches(state: bytes | bytearray, at: int, extra: int) -> list[StateCells]:
    caches: list[StateCells] = []
    while at < len(state):
        (streams,) = struct.unpack_from("<I", state, at)
        at += 4
        if not 1 <= streams <= 256:
            raise ValueError(streams)
        for _ in range(streams):
            (cells,) = struct.unpack_from("<I", state, at)
            at += 4
            if cells:
                caches.append(_cells(state, at, cells, extra))
                at = caches[-1].end
    if at != len(state) or not caches:
        raise ValueError(at)
    return caches


def _cells(state: bytes | bytearray, at: int, cells: int, extra: int) -> StateCells:
    start, offsets = at - 4, []
    for _ in range(cells):
        offsets.append(at)
        position, sequences = struct.unpack_from("<iI", state, at)
        if sequences != 1 or position < 0:
            raise ValueError(sequences)
        at += 8 + extra + 4
    end = at
    transposed, layers = struct.unpack_from("<II", state, at)
    at += 8
    if transposed > 1 or not 1 <= layers <= _MAX_LAYERS:
        raise ValueError(layers)
    keys = tuple(_blocks(state, at, cells, layers, False))
    at = keys[-1].start + keys[-1].length
    values = tuple(_blocks(state, at, cells, layers, bool(transposed)))
    return StateCells(start, tuple(offsets), end, keys, values)


def _blocks(
    state: bytes | bytearray, at: int, cells: int, layers: int, transposed: bool
) -> Iterator[StateBlock]:
    for _ in range(layers):
        if transposed:
            kind, size, width = struct.unpack_from("<iII", state, at)
            at += 12
            if _row_bytes(kind, 1) != size:
                raise ValueError(size)
            length = size * width * cells
        else:
            kind, row = struct.unpack_from("<iQ", state, at)
            at += 12
            width = _width(kind, row)
            length = row * cells
        if at + length > len(state):
            raise ValueError(length)
        yield StateBlock(at, kind, cells, width, length, transposed)
        at += length


def _sizes(kind: int) -> tuple[int, int]:
    """Numbers a block of a ggml type, and its bytes."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]  # ValueError: no type
    return int(block), int(size)


def _width(kind: int, row: int) -> int:
    block, size = _sizes(kind)
    if not 0 < row < 2**24 or row % size:
        raise ValueError(row)
    return row // size * block


def _row_bytes(kind: int, width: int) -> int:
    block, size = _sizes(kind)
    return width * size // block


def _quants(kind: int) -> tuple[Any, Any]:
    import gguf

    return gguf.quants, gguf.GGMLQuantizationType(kind)


def _viewed(raw: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    """Bytes as `dequantize` takes them: numbers where numpy has the type."""
    numpy_types = {"F32": np.float32, "F16": np.float16}
    return raw.view(numpy_types[kind.name]) if kind.name in numpy_types else raw


def _unknown_layout(what: str) -> EngineError:
    return EngineError(
        f"llama.cpp's state of a sequence has {what}; expected the layout of llama-cpp-python "
        "0.3.36; install that version"
    )
