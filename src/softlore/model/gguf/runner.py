"""A context of llama.cpp: decodes ids and embedding rows of sequences that see prefixes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlore.errors import EngineError
from softlore.model.gguf.cache_types import CACHE_TYPES, CacheTypes, quantized
from softlore.model.gguf.library import llama
from softlore.model.gguf.state import joined, parse
from softlore.model.steering import same_steering

STEP = 512  # tokens that are decoded at once
MAX_STATES = 32  # prefixes whose states are cached
PADDED = 256  # llama.cpp gives every sequence a multiple of so many cells


@dataclass(frozen=True)
class Tokens:
    """A run of ids, or of rows `[n, width]`, of one sequence, from a position on.

    Attributes:
        n_logits: after how many tokens, the last ones, to compute logits.
        steering: the sum of its control vectors `[layers, width]`, or None.
    """

    sequence: int
    start: int
    content: Sequence[int] | Tensor
    n_logits: int = 0
    steering: Tensor | None = None


class LlamaCppContext:
    """A context of llama.cpp with room for sequences.

    Attributes:
        window: how many tokens sliding layers see; 0: there are none.

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
        self._thread = ThreadPoolExecutor(1, "llama.cpp")
        self.window = int(lib.llama_model_n_swa(model.handle))
        self._states: list[tuple[Tensor, bytes]] = []
        self._fillers: dict[int, bytes] = {}  # states of so many ordinary tokens
        self._steering: Tensor | None = None  # what llama.cpp adds now

    def close(self) -> None:
        """Frees its memory."""
        if self._context:
            self._thread.shutdown()
            self._llama.llama_free(self._context)
            self._context = None

    def __del__(self) -> None:
        self.close()

    # decoding ------------------------------------------------------------------------------------

    def decode(self, runs: Sequence[Tokens]) -> Tensor:
        """Runs tokens, all ids or all rows, `STEP` at most.

        llama.cpp adds the same control vectors to all tokens of a call, so runs that are steered
        otherwise take a call each.

        Returns:
            Logits `[n, vocab]` after the tokens that ask for them, in order.
        """
        logits: list[Sequence[Tensor]] = [()] * len(runs)
        waiting = list(range(len(runs)))
        while waiting:
            steering = runs[waiting[0]].steering
            alike = [i for i in waiting if same_steering(runs[i].steering, steering)]
            self._steer(steering)
            rows = self._decode([runs[i] for i in alike])
            for i in alike:
                logits[i], rows = rows[: runs[i].n_logits], rows[runs[i].n_logits :]
            waiting = [i for i in waiting if i not in alike]
        asked = [row for rows in logits for row in rows]
        return torch.stack(asked) if asked else torch.empty(0)

    def _decode(self, runs: Sequence[Tokens]) -> list[Tensor]:
        """Runs tokens in one call; returns the logits that they ask for."""
        lib = self._llama
        rows = [run.content for run in runs if isinstance(run.content, Tensor)]
        count = sum(len(run.content) for run in runs)
        batch = lib.llama_batch_init(count, self.model.width if rows else 0, 1)
        try:
            asked = self._fill(batch, runs)
            batch.n_tokens = count
            if rows:
                given = torch.cat(rows).float() / self.model.row_scale
                packed = np.ascontiguousarray(given.cpu().numpy())
                ctypes.memmove(batch.embd, packed.ctypes.data, packed.nbytes)
            failed = self._in_own_thread(lib.llama_decode, self._context, batch)
        finally:
            lib.llama_batch_free(batch)
        if failed:
            raise EngineError(
                f"llama.cpp could not run {count} tokens (code {failed}); expected room for them; "
                "ask for fewer or shorter texts"
            )
        return [self._logits(at) for at in asked]

    def _steer(self, steering: Tensor | None) -> None:
        """Makes llama.cpp add these control vectors to the tokens that are run from now on."""
        if same_steering(steering, self._steering):
            return
        self._steering = None  # should it fail
        layers, width = self.model.layers, self.model.width
        data, size = None, 0
        if steering is not None:
            # llama.cpp's row for layer 1 is the first; layer 0 has none.
            packed = np.ascontiguousarray(steering[1:].float().cpu().numpy())
            data, size = packed.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), packed.size
        if self._llama.llama_set_adapter_cvec(self._context, data, size, width, 1, layers - 1):
            raise EngineError(
                f"llama.cpp did not take control vectors of {layers} layers × {width}; expected it "
                "to; install llama-cpp-python 0.3.36"
            )
        self._steering = steering

    def _in_own_thread(self, function: Callable[..., int], *arguments: Any) -> int:
        """Calls a function that computes, in the thread that all of them are called in.

        ggml sets a processor's tiles (AMX) once a thread, and torch's products in bfloat16 set
        them otherwise: in one thread, the next llama.cpp run ended in an illegal instruction.
        """
        future = self._thread.submit(function, *arguments)
        try:
            return future.result()
        finally:
            wait([future])  # after Ctrl-C too: it still uses what its caller frees

    def _fill(self, batch: Any, runs: Sequence[Tokens]) -> list[int]:
        """Fills llama.cpp's batch, except for rows; returns the tokens with logits."""
        at, asked = 0, list[int]()
        for run in runs:
            ids = None if isinstance(run.content, Tensor) else run.content
            for i in range(len(run.content)):
                if ids is not None:
                    batch.token[at] = ids[i]
                batch.pos[at] = run.start + i
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = run.sequence
                batch.logits[at] = int(i >= len(run.content) - run.n_logits)
                asked += [at] if batch.logits[at] else []
                at += 1
        return asked

    def _logits(self, at: int) -> Tensor:
        pointer = self._llama.llama_get_logits_ith(self._context, at)
        view = np.ctypeslib.as_array(pointer, shape=(self.model.vocab_size,))
        return torch.from_numpy(view.copy())

    def forget(self, sequence: int, start: int = 0, stop: int = -1) -> None:
        """Removes the keys and values of a sequence at positions `start` to `stop`; -1: its end."""
        if not self._llama.llama_memory_seq_rm(self._memory, sequence, start, stop):
            raise EngineError(
                f"llama.cpp cannot remove positions from {start} on from its cache; expected a "
                "model without recurrent layers; use another model"
            )

    # prefixes ----------------------------------------------------------------------------------

    def put(self, sequence: int, prefixes: Sequence[Tensor], start: int) -> None:
        """Puts prefixes side by side before a sequence's text, in place of those there.

        Tokens that are run from now on see them; the text that was run stays as it is. llama.cpp
        has no call that sets keys and values, but reads and restores the state of a sequence as
        bytes. There the prefixes' cells are added to the text's, in some milliseconds a thousand
        tokens. Sequences do not share the cells of a prefix: that needs one buffer for all
        (`kv_unified`), in which each sequence computes attention over the cells of all others.

        Args:
            prefixes: `[layers, 2, kv_heads, n, head_dim]` each, `n <= start`.
            start: first position of the text.
        """
        prefixes = sorted((p for p in prefixes if p.shape[3]), key=lambda p: p.shape[3])
        self.forget(sequence, 0, start)
        if not prefixes and not self.window:
            return
        text, sliding = self._text_states(sequence)
        states = [self._state_of(sequence, prefix) for prefix in prefixes]
        self.forget(sequence)
        if states or text:
            # Text first: so its cells stay in order when the prefixes leave, and sums over them
            # are the same bits as without.
            state = joined([*text, *states], sliding)
            self.restore(sequence, state if text else self._reaching(state, start))

    def state(self, sequence: int, flags: int = 0) -> bytes:
        """The state of a sequence, as llama.cpp serializes it (see `gguf.state`)."""
        lib = self._llama
        size = lib.llama_state_seq_get_size_ext(self._context, sequence, flags)
        buffer = (ctypes.c_uint8 * size)()
        got = lib.llama_state_seq_get_data_ext(self._context, buffer, size, sequence, flags)
        return bytes(memoryview(buffer)[:got])

    def restore(self, sequence: int, state: bytes) -> None:
        """Sets the state of a sequence to what `state` returned."""
        pointer = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        done = self._llama.llama_state_seq_set_data(self._context, pointer, len(state), sequence)
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

    def _text_states(self, sequence: int) -> tuple[list[bytes], list[bytes]]:
        """The state of a sequence without prefixes, if it has a token, and more of sliding layers.

        llama.cpp leaves out of a state what no next token can see: in sliding layers, all before
        the window. A sequence that is cut needs it again, so it is read window by window, from the
        end on; what was read is removed.
        """
        lib, sliding = self._llama, list[bytes]()
        if lib.llama_memory_seq_pos_max(self._memory, sequence) < 0:
            return [], []
        state = self.state(sequence)
        caches = parse(state)
        if len(caches) > 1:
            first = min(caches[0].positions(state))
            start = min(caches[1].positions(state))
            while start > first:
                self.forget(sequence, start)
                sliding.insert(0, self.state(sequence, lib.LLAMA_STATE_SEQ_FLAGS_SWA_ONLY))
                start = min(parse(sliding[0])[0].positions(sliding[0]))
        return [state], sliding

    def _reaching(self, state: bytes, start: int) -> bytes:
        """A state of prefixes, the longest one last, after which a text can begin at `start`.

        llama.cpp runs a token only at the position after the last one that it holds. So the last
        cell moves there; its key is rotated already, and its position only says what sees it.
        Sliding layers whose window does not reach back to it get no cell: theirs are the positions
        that llama.cpp goes by.
        """
        caches, moved = parse(state), bytearray(state)
        for cells in caches:
            cells.move_last(moved, start - 1)
        last = caches[-1]
        if len(caches) > 1 and start - last.positions(state)[-1] >= self.window:
            moved[last.start : last.end] = bytes(4)
        return bytes(moved)

    def _state_of(self, sequence: int, prefix: Tensor) -> bytes:
        """The state of a sequence of a prefix alone. What the sequence holds may be lost."""
        for cached, state in self._states:
            if cached is prefix:
                return state
        count = int(prefix.shape[3])
        if count not in self._fillers:
            self.forget(sequence)
            for start in range(0, count, STEP):
                part = min(STEP, count - start)
                self.decode([Tokens(sequence, start, [self.model.filler] * part)])
            self._fillers[count] = self.state(sequence)
        changed = bytearray(self._fillers[count])
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
