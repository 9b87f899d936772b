"""GGUFModel: the tokenizer, sizes and fingerprint of a model in a GGUF file."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softlore.errors import ModelError, PromptMismatchError, UnsupportedModelError
from softlore.model import fingerprint as sketches
from softlore.model.families import family_named
from softlore.model.finding import display_name, locate
from softlore.model.frozen import FrozenModel
from softlore.model.gguf.header import is_gguf, read_header
from softlore.model.gguf.layout import Layout
from softlore.model.gguf.library import llama
from softlore.model.gguf.runner import LlamaCppContext, Tokens
from softlore.model.gguf.state import StateCells
from softlore.model.gguf.weights import control_codes, load_gguf_tokenizer, tensor_rows
from softlore.model.language import LanguageModel
from softlore.model.loading import leading_id, load, load_tokenizer

CONTEXT = 8192  # tokens at most by default, as memory for them is allocated at once
# Families whose graph scales embedding rows, as softlore's rows are already scaled.
_SCALES_ROWS = ("gemma", "gemma2")
_SCALED = ("gemma",)  # prefixes of the names of families that scale embeddings
# Of llama.cpp's families that mix sliding and full layers without saying which: every n-th is full.
_PATTERNS = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "olmo2": 4}


class GGUFModel(LanguageModel):
    """A model that llama.cpp runs; `with_weights` gives one to train and measure with.

    Attributes:
        path, header: of its file.
        handle: llama.cpp's model.
        row_scale: what softlore's rows are divided by before llama.cpp reads them.
        layout: of prefixes in its cache; determined by the first prefix that is checked.
        filler: an id of ordinary text.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tokenizer: str | None = None,
        context_length: int | None = None,
    ) -> None:
        """Loads a file.

        Args:
            tokenizer: hub id or folder of the transformers model that it was made from, for its
                tokenizer and control codes; without one the file's own are used.
            context_length: None: what it was trained for, `CONTEXT` at most.

        Raises:
            ModelError: it can't be read, or has another tokenizer.
            UnsupportedModelError: it has no plain keys and values.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError(
                f"there is no GGUF file {str(path)!r}; expected a model that llama.cpp runs; fix "
                "--gguf"
            )
        self.header = read_header(self.path)
        self.name = display_name(tokenizer) if tokenizer else self.header.name
        self._weights: FrozenModel | None = None
        self._loading = threading.Lock()
        self._lib = llama()
        given = self._lib.llama_model_default_params()
        self.handle = self._lib.llama_model_load_from_file(str(self.path).encode(), given)
        if not self.handle:
            raise ModelError(
                f"llama.cpp cannot load {str(path)!r}; expected a GGUF file of a family that it "
                "knows; check that it is complete, and made for this version"
            )
        self._read_sizes(context_length)
        self._named = tokenizer
        self.tokenizer = (
            load_gguf_tokenizer(self.path) if tokenizer is None else load_tokenizer(tokenizer)
        )
        self.bos_id = leading_id(self.tokenizer)
        self._check_tokenizer()

    def _read_sizes(self, context_length: int | None) -> None:
        lib, handle = self._lib, self.handle
        self.family = family_named(self._meta("general.architecture") or "unknown")
        if lib.llama_model_is_recurrent(handle) or lib.llama_model_is_hybrid(handle):
            raise UnsupportedModelError(
                f"{self.name!r} ({self.model_type}) does not have keys and values in all layers; "
                "expected a decoder with plain attention; use another model"
            )
        self.width = int(lib.llama_model_n_embd(handle))
        self.layers = int(lib.llama_model_n_layer(handle))
        self.kv_heads = int(lib.llama_model_n_head_kv(handle))
        heads = int(lib.llama_model_n_head(handle))
        attention = self.model_type + ".attention."
        self.head_dim = int(self._meta(attention + "key_length") or self.width // heads)
        self.takes_prefix = (
            int(self._meta(attention + "value_length") or self.head_dim) == self.head_dim
        )
        self.vocab_size = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(handle)))
        trained = int(lib.llama_model_n_ctx_train(handle))
        self.context_length = min(trained, context_length or CONTEXT)
        self.row_scale = self.width**0.5 if self.model_type in _SCALES_ROWS else 1.0
        neighbours = int(lib.llama_model_rope_type(handle)) == lib.LLAMA_ROPE_TYPE_NORM
        self.layout = Layout(self.kv_heads, self.head_dim, neighbours)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def with_weights(self, what: str) -> FrozenModel:
        """The same file's weights in torch, loaded once, when they are first needed.

        They take memory of their own: two bytes a parameter in bfloat16, four in float32.
        """
        with self._loading:
            if self._weights is None:
                self._weights = self._load_weights(what)
            return self._weights

    def _load_weights(self, what: str) -> FrozenModel:
        try:
            hf, tokenizer, _ = load(str(self.path), None, None, self.tokenizer)
            return FrozenModel(hf, tokenizer, self.name)
        except ModelError as error:
            raise UnsupportedModelError(
                f"{what} needs weights that softlore can run itself, and those of "
                f"{str(self.path)!r}, which llama.cpp runs, can't be had: {error}"
            ) from error

    @cached_property
    def control_codes(self) -> Any:
        if self._named is not None:
            from transformers import AutoConfig

            where = locate(self._named, weights=False)
            if is_gguf(where):
                return control_codes(read_header(where))
            config = AutoConfig.from_pretrained(where)
            return getattr(config, "control_codes", None) or {}
        return control_codes(self.header)

    @cached_property
    def filler(self) -> int:
        return self.ordinary_ids[0]

    def check_steered(self, layers: Sequence[int]) -> None:
        """`LanguageModel.check_steered`: llama.cpp adds nothing to layer 0."""
        if 0 in layers:
            raise UnsupportedModelError(
                "a control vector changes layer 0, to which llama.cpp adds nothing; expected "
                "layers from 1 on; train it with --layers, or load the model with --model in place "
                "of --gguf"
            )

    def check_prompt(self, prompt: Any, any_model: bool = False) -> None:
        """`LanguageModel.check_prompt`; a prefix also determines the layout of rotary pairs."""
        if prompt.kind == "embedding" or any_model:
            return super().check_prompt(prompt, any_model)
        try:
            return super().check_prompt(prompt)
        except PromptMismatchError:
            declared, other = (
                self.layout,
                replace(self.layout, neighbours=not self.layout.neighbours),
            )
            super().check_prompt(prompt, any_model=True)
            self.layout = other
            self._fingerprints.pop("prefix", None)
            try:
                super().check_prompt(prompt)
            except PromptMismatchError:
                self.layout = declared
                self._fingerprints.pop("prefix", None)
                raise

    def layer_places(self, caches: Sequence[StateCells]) -> list[tuple[StateCells, int]]:
        """For each layer the cache that it is in, and its index there.

        Raises:
            UnsupportedModelError: which layers slide is not known.
        """
        if len(caches) == 1 and len(caches[0].keys) == self.layers:
            return [(caches[0], layer) for layer in range(self.layers)]
        slides = self._sliding()
        counts = [slides.count(False), slides.count(True)]
        if len(caches) != 2 or [len(cells.keys) for cells in caches] != counts:
            raise UnsupportedModelError(
                f"which layers of {self.name!r} ({self.model_type}) slide is not known; expected a "
                "family without sliding layers, or one of "
                f"{', '.join(_PATTERNS)}; use embedding prompts"
            )
        counts, places = [0, 0], []
        for slide in slides:
            places.append((caches[slide], counts[slide]))
            counts[slide] += 1
        return places

    def _sliding(self) -> list[bool]:
        every = _PATTERNS.get(self.model_type, 0)
        if not every:
            return [False] * self.layers
        return [layer % every < every - 1 for layer in range(self.layers)]

    # reading the file ----------------------------------------------------------------------------

    def _meta(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(65536)
        size = self._lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, 65536)
        return buffer.value.decode("utf-8", "replace") if size >= 0 else None

    def _configured_eos(self) -> Sequence[int | None]:
        vocab = self._lib.llama_model_get_vocab(self.handle)
        ids = (self._lib.llama_vocab_eos(vocab), self._lib.llama_vocab_eot(vocab))
        return [int(i) for i in ids if i >= 0]

    def _check_tokenizer(self) -> None:
        """Compares the tokenizer with llama.cpp's own on a text of many kinds.

        Raises:
            ModelError: they differ.
        """
        text = "The dog's 12 bones — “yes”, she said:\n\n  Émile ran (home).\tIt was 1999."
        if self.encode(text) != self._tokenize(text):
            whose = "the file" if self._named is None else repr(self._named)
            raise ModelError(
                f"the tokenizer of {whose} encodes a text to other ids than llama.cpp does with "
                f"{str(self.path)!r}; expected the same; name the model that it was made from with "
                "--model"
            )

    def _tokenize(self, text: str) -> list[int]:
        lib, raw = self._lib, text.encode()
        ids = (lib.llama_token * (len(raw) + 8))()
        vocab = lib.llama_model_get_vocab(self.handle)
        count = lib.llama_tokenize(vocab, raw, len(raw), ids, len(ids), False, False)
        return [int(i) for i in ids[: max(count, 0)]]

    def _sketched(self, kind: str) -> dict[str, Any]:
        parts = {"embeddings": self._rows_sketch}
        if kind == "prefix":
            keys = self.layout.tensor(self._last_rows, True, False)
            parts["keys"] = sketches.sketch(keys.transpose(0, 1).flatten(1))
        return parts

    @cached_property
    def _rows_sketch(self) -> dict[str, Any]:
        """A sketch of rows of the embedding table, scaled as in transformers."""
        at = sketches.spread(self.vocab_size, sketches.ROWS)
        rows = tensor_rows(self.header, "token_embd.weight", at)
        scale = self.width**0.5 if self.model_type.startswith(_SCALED) else 1.0
        sketched = sketches.sketch(rows * scale)
        return sketched | {"rows": self.vocab_size}

    @cached_property
    def _last_rows(self) -> Tensor:
        """The last layer's keys of 16 token ids, in llama.cpp's layout: `[16, width]`."""
        ids = sketches.spread(self.vocab_size, sketches.KEY_IDS)
        runner = LlamaCppContext(self, 1, len(ids))
        runner.decode([Tokens(0, 0, ids)])
        rows = runner.last_keys(0)
        runner.close()
        return rows
