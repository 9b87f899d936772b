"""A context of llama.cpp: decodes ids and embedding rows of sequences that begin with prefixes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlore.errors import ConfigError, EngineError
from softlore.model.gguf.library import llama
from softlore.model.gguf.state import joined, parse

STEP = 512  # tokens that are decoded at once
MAX_STATES = 32  # prefixes whose states are cached
PADDED = 256  # llama.cpp gives every sequence a multiple of so many cells
# ggml's number of a type, and the bytes a number takes.
CACHE_TYPES = {"f16": (1, 2.0), "f32": (0, 4.0), "bf16": (30, 2.0), "q8_0": (8, 34 / 32),
               "q5_1": (7, 24 / 32), "q5_0": (6, 22 / 32), "q4_1": (3, 20 / 32),
               "q4_0": (2, 18 / 32)}  # fmt: skip


@dataclass(frozen=True)
class CacheTypes:
    """The types of keys and values.

    Attributes:
        keys, values: of `CACHE_TYPES`.
        flash: whether to use flash attention, which quantized values need.
    """

    keys: str = "f16"
    values: str = "f16"
    flash: bool = True

    def __post_init__(self) -> None:
        for name in (self.keys, self.values):
            if name not in CACHE_TYPES:
                raise ConfigError(
                    f"the cache type is {name!r}; expected one of {', '.join(CACHE_TYPES)}; choose "
                    "one"
                )
        if quantized(self.values) and not self.flash:
            raise ConfigError(
                f"values of type {self.values} need flash attention, which is off; expected f16, "
                "f32 or bf16; choose one, or turn it on"
            )

    @property
    def bytes(self) -> float:
        """Bytes of one element of a key and one of a value together."""
        return CACHE_TYPES[self.keys][1] + CACHE_TYPES[self.values][1]


def quantized(kind: str) -> bool:
    """Whether a cache type is quantized in blocks that share a scale."""
    return kind.startswith("q")


@dataclass(frozen=True)
class Tokens:
    """A run of ids, or of rows `[n, width]`, of one sequence, from a position on.

    Attributes:
        last: whether to compute logits after its last token.
    """

    sequence: int
    start: int
    content: Sequence[int] | Tensor
    last: bool = False


class LlamaCppContext:
    """A context of llama.cpp with room for sequences.

    Args:
        model: a GGUFModel, whose file imports this one.
        sequences: how many.
        cells: tokens whose keys and values each of them has room for.
    """

    def __init__(
        self, model: Any, sequences: int, cells: int, cache: CacheTypes | None = None
    ) -> None:
        self._llama = lib = llama()
        self.model = model
        self.cache = cache or CacheTypes()
        self.sequences = sequences
        self.cells = -(-cells // PADDED) * PADDED
        given = lib.llama_context_default_params()
        given.n_ctx = self.cells * sequences
        given.n_batch = given.n_ubatch = STEP
        given.n_seq_max = sequences
        given.n_threads = given.n_threads_batch = torch.get_num_threads()
        given.flash_attn_type = int(self.cache.flash)
        given.type_k = CACHE_TYPES[self.cache.keys][0]
        given.type_v = CACHE_TYPES[self.cache.values][0]
        given.kv_unified = False  # each attends to its own cells only
        given.swa_full = True  # so that a sequence can be cut anywhere
        self._context = lib.llama_init_from_model(model.handle, given)
        if not self._context:
            raise EngineError(
                f"llama.cpp made no context of {sequences} texts of {self.cells} tokens with cache "
                f"types {self.cache.keys} and {self.cache.values}; expected room for it; ask for "
                "fewer or shorter texts (--slots, --context), or another --cache-type"
            )
        self._memory = lib.llama_get_memory(self._context)
        self._states: list[tuple[Tensor, bytes]] = []

    def close(self) -> None:
        """Frees its memory."""
        if self._context:
            self._llama.llama_free(self._context)
            self._context = None

    def __del__(self) -> None:
        self.close()

    # decoding ------------------------------------------------------------------------------------

    def decode(self, runs: Sequence[Tokens]) -> Tensor:
        """Runs tokens, all ids or all rows, `STEP` at most.

        Returns:
            Logits `[n, vocab]` of the n runs with `last`.
        """
        lib = self._llama
        rows = [run.content for run in runs if isinstance(run.content, Tensor)]
        count = sum(len(run.content) for run in runs)
        batch = lib.llama_batch_init(count, self.model.width if rows else 0, 1)
        try:
            last = self._fill(batch, runs)
            batch.n_tokens = count
            if rows:
                given = torch.cat(rows).float() / self.model.row_scale
                packed = np.ascontiguousarray(given.cpu().numpy())
                ctypes.memmove(batch.embd, packed.ctypes.data, packed.nbytes)
            failed = lib.llama_decode(self._context, batch)
        finally:
            lib.llama_batch_free(batch)
        if failed:
            raise EngineError(
                f"llama.cpp could not run {count} tokens (code {failed}); expected room for them; "
                "ask for fewer or shorter texts"
            )
        return torch.stack([self._logits(at) for at in last]) if last else torch.empty(0)

    def _fill(self, batch: Any, runs: Sequence[Tokens]) -> list[int]:
        """Fills llama.cpp's batch, except for rows; returns the tokens with logits."""
        at, last = 0, []
        for run in runs:
            ids = None if isinstance(run.content, Tensor) else run.content
            for i in range(len(run.content)):
                if ids is not None:
                    batch.token[at] = ids[i]
                batch.pos[at] = run.start + i
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = run.sequence
                batch.logits[at] = 0
                at += 1
            if run.last:
                batch.logits[at - 1] = 1
                last.append(at - 1)
        return last

    def _logits(self, at: int) -> Tensor:
        pointer = self._llama.llama_get_logits_ith(self._context, at)
        view = np.ctypeslib.as_array(pointer, shape=(self.model.vocab_size,))
        return torch.from_numpy(view.copy())

    def forget(self, sequence: int, start: int = 0) -> None:
        """Removes the keys and values of a sequence from a position on."""
        if not self._llama.llama_memory_seq_rm(self._memory, sequence, start, -1):
            raise EngineError(
                f"llama.cpp could not cut a sequence at token {start}; expected a plain cache; "
                "use a model with attention in all layers"
            )

    # prefixes ----------------------------------------------------------------------------------

    def put(self, sequence: int, prefixes: Sequence[Tensor]) -> None:
        """Begins a sequence with prefixes `[layers, 2, kv_heads, n, head_dim]`, side by side.

        llama.cpp has no call that sets keys and values. So as many ordinary tokens are run, the
        sequence's state is read as bytes, keys and values are overwritten there, and the state is
        restored.
        """
        states = [self._state_of(sequence, prefix) for prefix in prefixes if prefix.shape[3]]
        self.forget(sequence)
        if states:
            self.restore(sequence, joined(states))

    def state(self, sequence: int) -> bytes:
        """The state of a sequence, as llama.cpp serializes it (see `gguf.state`)."""
        size = self._llama.llama_state_seq_get_size(self._context, sequence)
        buffer = (ctypes.c_uint8 * size)()
        got = self._llama.llama_state_seq_get_data(self._context, buffer, size, sequence)
        return bytes(buffer)[:got]

    def restore(self, sequence: int, state: bytes) -> None:
        """Sets the state of a sequence to what `state` returned."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        done = self._llama.llama_state_seq_set_data(self._context, buffer, len(state), sequence)
        if done != len(state):
            raise EngineError(
                "llama.cpp did not accept a prefix's keys and values; expected it to; install "
                "llama-cpp-python 0.3.36"
            )

    def save(self, sequence: int, ids: Sequence[int], path: str) -> None:
        """Saves a sequence to a file that llama-server restores, with the ids it stands for."""
        tokens = (self._llama.llama_token * len(ids))(*ids)
        self._llama.llama_state_seq_save_file(
            self._context, path.encode(), sequence, tokens, len(ids)
        )

    def last_keys(self, sequence: int) -> Tensor:
        """The last layer's keys of a sequence in llama.cpp's layout, `[n, width]`."""
        state = self.state(sequence)
        cells, index = self.model.layer_places(parse(state))[-1]
        return torch.from_numpy(cells.keys[index].read(state).copy())

    def _state_of(self, sequence: int, prefix: Tensor) -> bytes:
        """The state of a sequence of a prefix alone."""
        for cached, state in self._states:
            if cached is prefix:
                return state
        self.forget(sequence)
        count = int(prefix.shape[3])
        for start in range(0, count, STEP):
            part = min(STEP, count - start)
            self.decode([Tokens(sequence, start, [self.model.filler] * part)])
        changed = bytearray(self.state(sequence))
        self._overwrite(changed, prefix.float().cpu())
        self._states = [*self._states[1 - MAX_STATES :], (prefix, bytes(changed))]
        return bytes(changed)

    def _overwrite(self, state: bytearray, prefix: Tensor) -> None:
        for layer, (cells, index) in enumerate(self.model.layer_places(parse(state))):
            at = cells.positions(state)  # a sliding layer has those within its window
            for keys, block in ((True, cells.keys[index]), (False, cells.values[index])):
                rotated = quantized(self.cache.keys if keys else self.cache.values)
                tensor = prefix[layer, 0 if keys else 1][:, at]
                block.write(state, self.model.layout.rows(tensor, keys, rotated).numpy())
