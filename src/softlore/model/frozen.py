"""FrozenModel: a transformers causal LM with frozen weights and one forward, `hidden`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from softlore.errors import ContextError, UnsupportedModelError
from softlore.model import fingerprint as sketches
from softlore.model.attention import kernels, use_for_training
from softlore.model.catalog import DEFAULT_MODEL
from softlore.model.families import family_of
from softlore.model.kv_cache import KeysValues, KVCache, fill_cache, read_cache
from softlore.model.language import LanguageModel
from softlore.model.loading import leading_id, load
from softlore.model.placement import is_split, main_device
from softlore.model.rotary import SHIFT, Rotary, candidate_frequencies, find_rotary
from softlore.model.steering import steered
from softlore.model.verify import rejecting_unsupported, verify_forward
from softlore.settings.arguments import DEVICE, PATHLIKE, expecting


class FrozenModel(LanguageModel):
    """A causal language model of transformers with its tokenizer.

    Attributes:
        hf: the transformers model, in eval mode, all parameters frozen.
        family: what is particular to its model family.
        split: its layers are on several devices; soft prompts and texts go to that of the first.
    """

    def __init__(self, hf: Any, tokenizer: Any, name: str = "model") -> None:
        self.hf = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.bos_id = leading_id(tokenizer)
        with rejecting_unsupported(hf.config.model_type):
            self._set_up(hf)

    def _set_up(self, hf: Any) -> None:
        use_for_training(hf)
        self.family = family_of(hf)
        self._body = hf.get_decoder()
        self._embedding = hf.get_input_embeddings()
        self._head = hf.get_output_embeddings()
        self._device = main_device(hf)
        self.split = is_split(hf)
        self.layers = len(self.family.layer_types)
        self.width = int(self._embedding.weight.shape[1])
        self.vocab_size = int(self._embedding.weight.shape[0])
        self.context_length = self.family.context_length
        kept = self._native_keys_values([0], [0])
        self.kv_heads, self.head_dim = int(kept[0][0].shape[1]), int(kept[0][0].shape[3])
        self.takes_prefix = len({tuple(t.shape) for pair in kept for t in pair}) == 1
        self._verify()

    def _verify(self) -> None:
        verify_forward(self)

    @classmethod
    @expecting(name=PATHLIKE, device=DEVICE.optional)
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = DEFAULT_MODEL,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        quantize: str | None = None,
    ) -> FrozenModel:
        """Loads a model by short name, folder, GGUF file or hub id.

        Args:
            name: such as `"smollm2"` (`softlore models` lists the names); the weights of a GGUF
                file are unpacked to `dtype`. Without a name, the storyteller inside the package,
                whatever `softlore models use` has set, so that a program does the same on every
                machine.
            dtype: such as `"bfloat16"`; default: bfloat16 on a GPU, and on a processor that is
                good at it for all but small models, else float32.
            device: such as `"cuda"`; default: a GPU when there is one. `"auto"` divides the model
                among all GPUs, the processor's memory and the disk.
            quantize: `"nf4"` (4 bits) or `"int8"`, by bitsandbytes; default: neither.

        Raises:
            ModelError: when there is no such model, or it can't be read.
        """
        hf, tokenizer, own_name = load(str(name), dtype, device, quantize=quantize)
        return cls(hf, tokenizer, own_name)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.weight.dtype

    @property
    def control_codes(self) -> Any:
        source = self.tokenizer if self.family.codes_in_tokenizer else self.hf.config
        return getattr(source, "control_codes", None) or {}

    def with_weights(self, what: str) -> FrozenModel:
        return self

    def _configured_eos(self) -> Sequence[int | None]:
        configured = getattr(self.hf.generation_config, "eos_token_id", None)
        return configured if isinstance(configured, list) else [configured]

    # forward -----------------------------------------------------------------------------------

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor,
        visible: Tensor,
        past: KVCache | None = None,
        keep: bool = False,
        steering: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues | None]:
        """Last hidden states of rows at explicit positions, under an explicit mask.

        Args:
            embeds: `[B, T, width]` rows; never changed in place.
            positions: `[B, T]` text positions.
            visible: `[B, T, P + T]` bool, which keys each row may see.
            past: keys and values that come before, `P` long; the rows' own come after them (with
                `KVSlots`, among them).
            keep: also return keys and values of past and rows together.
            steering: `[B, layers, width]`, added to what the layers put out (see `steered`).

        Returns:
            `[B, T, hidden]`, and one (key, value) a layer when `keep`.
        """
        key_positions = positions if past is None else past.key_positions(positions)
        mask = self._mask(positions, key_positions, visible)
        arguments: dict[str, Any] = {"attention_mask": mask}
        if self.family.takes_positions:
            arguments["position_ids"] = positions
        cache = None
        if past is not None or keep or self.family.mask_in_cache:
            cache = fill_cache(past, mask, self.device if self.split else None)
            arguments[self.family.cache_argument] = cache
        with kernels(self.device), steered(self, steering):
            out = self._body(
                inputs_embeds=embeds.clone(),  # CTRL scales its input in place
                use_cache=cache is not None,
                **arguments,
            )
        states = out.last_hidden_state.to(self.device)
        return states, read_cache(cache) if keep and cache is not None else None

    def _mask(self, positions: Tensor, key_positions: Tensor, visible: Tensor) -> Any:
        """Additive mask(s) `[B, 1 or heads, T, P + T]` in the form the family takes."""
        window = self.family.sliding_window
        distance = positions[:, :, None] - key_positions[:, None, :]  # [B, T, P + T]
        bias = self.family.position_bias(distance, key_positions)
        full = self._additive(visible, bias)
        if window is None:
            return full
        return self.family.attention_mask(full, self._additive(visible & (distance < window), bias))

    def _additive(self, visible: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            bias = torch.zeros((), device=visible.device)
        return torch.where(visible[:, None], bias.to(self.dtype), torch.finfo(self.dtype).min)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[R, vocab]`, float32, of flat hidden states `[R, hidden]`."""
        return self.family.finish_logits(self._head(hidden)).float().to(self.device)

    # tensors of soft prompts -------------------------------------------------------------------

    def embed_ids(self, ids: Tensor | list[int]) -> Tensor:
        """Embedding rows of token ids, scaled as the forward takes them: `[..., width]`."""
        rows: Tensor = self._embedding(torch.as_tensor(ids, dtype=torch.long, device=self.device))
        return rows.to(self.device)

    @torch.no_grad()
    def keys_values(self, ids: list[int], n_tokens: int | None = None) -> Tensor:
        """Keys and values of a text read from position 0: `[layers, 2, kv_heads, n, head_dim]`.

        With fewer `n_tokens` than ids, the whole text is read at that many positions, a run of
        tokens at each, and the last token of each run is kept. (Tokens kept at their original
        positions would leave gaps, which impair the text after them; the kept tokens alone would
        not have read the others.)

        Raises:
            UnsupportedModelError: when this model takes no prefix.
        """
        self.check_takes_prefix()
        length, n = len(ids), len(ids) if n_tokens is None else n_tokens
        if not 1 <= n <= length:
            raise ContextError(
                f"n_tokens is {n}, but the text has {length} tokens; expected 1 to {length}; "
                "give a longer text, or fewer n_tokens"
            )
        pairs = self._native_keys_values(ids, [i * n // length for i in range(length)])
        last = [-(-(i + 1) * length // n) - 1 for i in range(n)]
        return torch.stack([torch.stack([k[0], v[0]]) for k, v in pairs])[:, :, :, last].float()

    @torch.no_grad()
    def _native_keys_values(
        self, ids: list[int], at: list[int], visible: Tensor | None = None
    ) -> KeysValues:
        """`visible`: `[n, n]` bool; None: each token sees those before it, and itself."""
        n = len(ids)
        rows = self.embed_ids(ids)[None]
        positions = torch.tensor([at], device=self.device)
        if visible is None:
            visible = torch.ones(n, n, dtype=torch.bool, device=self.device).tril()
        kept = self.hidden(rows, positions, visible[None], keep=True)[1]
        if not kept or len(kept) != self.layers:
            raise UnsupportedModelError(
                f"model type {self.model_type!r} keeps no keys and values for each of its "
                f"{self.layers} layers; expected a decoder with plain attention; use another model"
            )
        return kept

    @cached_property
    def rotary(self) -> Rotary | None:
        """How keys are rotated by position; None where they are not (see `model.rotary`)."""
        ids = list(range(3, min(11, self.vocab_size)))
        # Each token sees itself alone, so that its state does not depend on its position: else
        # rounding in 16 bits grows from layer to layer, and hides the rotation.
        alone = torch.eye(len(ids), dtype=torch.bool, device=self.device)
        near, far = (
            [key[0].float().cpu() for key, _ in self._native_keys_values(ids, [*positions], alone)]
            for positions in (range(len(ids)), range(SHIFT, SHIFT + len(ids)))
        )
        return find_rotary(near, far, candidate_frequencies(self.hf, self.head_dim))

    def _sketched(self, kind: str) -> dict[str, Any]:
        parts = {"embeddings": sketches.embedding_sketch(self._embedding)}
        if kind == "prefix":
            ids = sketches.spread(self.vocab_size, sketches.KEY_IDS)
            keys = self.keys_values(ids)[-1, 0]  # [kv_heads, 16, head_dim]
            parts["keys"] = sketches.sketch(keys.transpose(0, 1).flatten(1))
        return parts


def require_frozen_model(model: LanguageModel, what: str) -> FrozenModel:
    """Returns the model as a transformers model, which softlore can train and measure.

    The weights of a model that llama.cpp runs are loaded from its file the first time.

    Args:
        what: the feature that needs one, such as "training", for the message.

    Raises:
        UnsupportedModelError: it is run by another program, and its weights can't be had.
    """
    frozen = model.with_weights(what)
    assert isinstance(frozen, FrozenModel)
    return frozen
