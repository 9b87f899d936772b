"""llama.cpp's layouts, without llama.cpp: states are written here by its own rules."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import engine_matrix
from softlore.cli.gguf import TYPES
from softlore.errors import EngineError
from softlore.model.gguf.layout import Layout
from softlore.model.gguf.runner import CACHE_TYPES
from softlore.model.gguf.state import joined, parse

gguf = pytest.importorskip("gguf")
F32, F16, Q8_0, Q4_0 = 0, 1, 8, 2
HEADS, HEAD_DIM = 2, 64
WIDTH = HEADS * HEAD_DIM


def packed(numbers, kind):
    return np.ascontiguousarray(gguf.quants.quantize(numbers, gguf.GGMLQuantizationType(kind)))


def cache_of(positions, keys, values, kinds, transposed, streams, extra):
    """One cache as `llama_kv_cache::state_write` has it."""
    told = struct.pack("<I", streams) + struct.pack("<I", 0) * (streams - 1)
    told += struct.pack("<I", len(positions))
    for position in positions:
        told += struct.pack("<iI", position, 1) + bytes(extra) + struct.pack("<i", 0)
    told += struct.pack("<II", transposed, len(keys))
    for layer in keys:
        raw = packed(layer, kinds[0]).tobytes()
        told += struct.pack("<iQ", kinds[0], len(raw) // len(positions)) + raw
    for layer in values:
        if transposed:
            raw = packed(np.ascontiguousarray(layer.T), kinds[1]).tobytes()
            size = len(raw) // layer.size
            told += struct.pack("<iII", kinds[1], size, WIDTH) + raw
        else:
            raw = packed(layer, kinds[1]).tobytes()
            told += struct.pack("<iQ", kinds[1], len(raw) // len(positions)) + raw
    return told


def state_of(cells, layers, kinds, transposed=False, streams=1, extra=0, seed=0, caches=1):
    draw = np.random.default_rng(seed)
    told, numbers = struct.pack("<Ii", 0xAF143CD8, streams - 1), []
    for _ in range(caches):
        keys, values = draw.standard_normal((2, layers, cells, WIDTH)).astype(np.float32)
        told += cache_of(range(cells), keys, values, kinds, transposed, streams, extra)
        numbers.append((keys, values))
    return told, numbers


SHAPES = st.fixed_dictionaries(
    {
        "cells": st.integers(1, 9),
        "layers": st.integers(1, 4),
        "streams": st.integers(1, 4),
        "extra": st.sampled_from([0, 12]),
        "caches": st.integers(1, 2),
        "seed": st.integers(0, 99),
    }
)
KINDS = st.sampled_from([((F32, F32), False), ((F16, F16), True), ((F16, F32), False),
                         ((Q8_0, Q8_0), False), ((Q4_0, F16), True)])  # fmt: skip


@given(SHAPES, KINDS)
@settings(max_examples=60, deadline=None)
def test_every_block_is_found_and_written_over(shape, kind):
    kinds, transposed = kind
    state, numbers = state_of(kinds=kinds, transposed=transposed, **shape)
    other, wanted = state_of(kinds=kinds, transposed=transposed, **shape | {"seed": 1000})
    found = parse(state)
    assert len(found) == shape["caches"]
    changed = bytearray(state)
    for held, (keys, values), (new_keys, new_values) in zip(found, numbers, wanted, strict=True):
        assert held.positions(state) == list(range(shape["cells"]))
        for blocks, tensors, new in (
            (held.keys, keys, new_keys),
            (held.values, values, new_values),
        ):
            for block, tensor, layer in zip(blocks, tensors, new, strict=True):
                near = 0.5 if block.type == Q4_0 else 0.05
                assert np.abs(block.read(state) - tensor).max() < near
                block.write(changed, layer)
    assert bytes(changed) == other


@given(SHAPES, KINDS, st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_states_are_joined_cell_by_cell(shape, kind, more):
    kinds, transposed = kind
    one, _ = state_of(kinds=kinds, transposed=transposed, **shape)
    two, _ = state_of(kinds=kinds, transposed=transposed, **shape | {"cells": more, "seed": 7})
    both = joined([one, two])
    assert joined([one]) == one
    for held, first, second in zip(parse(both), parse(one), parse(two), strict=True):
        assert held.positions(both) == [*range(shape["cells"]), *range(more)]
        blocks = zip((*held.keys, *held.values), (*first.keys, *first.values),
                     (*second.keys, *second.values), strict=True)  # fmt: skip
        for block, ours, theirs in blocks:
            want = np.concatenate([ours.read(one), theirs.read(two)])
            assert np.array_equal(block.read(both), want)


@given(st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_state_is_refused_or_read_within_its_bounds(cut, byte):
    state, _ = state_of(4, 2, (F16, F16))
    damaged = bytearray(state[: len(state) - cut])
    damaged[cut % len(damaged)] = byte
    try:
        found = parse(bytes(damaged))
    except EngineError:
        return
    for held in found:
        for block in (*held.keys, *held.values):
            assert 0 <= block.start <= block.start + block.length <= len(damaged)


def test_a_type_that_nothing_writes_is_refused():
    state, _ = state_of(4, 1, (F16, F16))
    block = parse(state)[0].keys[0]
    strange = type(block)(block.start, 16, block.cells, 256, block.length)  # IQ2_XXS
    with pytest.raises(EngineError, match="cannot be written"):
        strange.write(bytearray(state), np.zeros((4, 256), np.float32))


@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("head_dim", [64, 128, 192, 80])
def test_rows_and_heads_are_each_others_way_back(neighbours, quantized, head_dim):
    layout = Layout(HEADS, head_dim, neighbours)
    tensor = torch.randn(HEADS, 5, head_dim, generator=torch.Generator().manual_seed(0))
    for keys in (True, False):
        rows = layout.rows(tensor, keys, quantized)
        assert rows.shape == (5, HEADS * head_dim)
        torch.testing.assert_close(layout.tensor(rows, keys, quantized), tensor)
        torch.testing.assert_close(rows.square().sum(), tensor.square().sum())


def test_keys_stand_as_llamas_converted_weights_make_them():
    """The converter's permutation of a weight's rows: `[2, d/2]` of each head as `[d/2, 2]`."""
    draw = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(WIDTH, 8, generator=draw), torch.randn(5, 8, generator=draw)
    permuted = weight.reshape(HEADS, 2, HEAD_DIM // 2, 8).swapaxes(1, 2).reshape(WIDTH, 8)
    keys = (hidden @ weight.T).reshape(5, HEADS, HEAD_DIM).transpose(0, 1)
    rows = Layout(HEADS, HEAD_DIM, neighbours=True).rows(keys, True, False)
    torch.testing.assert_close(rows, hidden @ permuted.T)


def test_a_quantized_caches_rows_are_turned_by_a_hadamard_matrix():
    ones = torch.zeros(1, 1, 64)
    ones[0, 0, 0] = 1.0
    rows = Layout(1, 64).rows(ones, True, True)
    torch.testing.assert_close(rows, torch.full((1, 64), 1 / 8))
    third = torch.zeros(1, 1, 64)
    third[0, 0, 3] = 1.0
    signs = [(-1) ** bin(3 & i).count("1") for i in range(64)]
    torch.testing.assert_close(
        Layout(1, 64).rows(third, True, True)[0] * 8, torch.tensor(signs) * 1.0
    )


def test_the_commands_take_every_type_of_cache():
    assert list(TYPES) == list(CACHE_TYPES)
    for number, size in CACHE_TYPES.values():
        block, length = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
        assert size == length / block


def test_the_matrix_of_engines_is_current():
    page = engine_matrix.PAGE.read_text(encoding="utf-8")
    assert engine_matrix.table() in page, "run tools/engine_matrix.py"
