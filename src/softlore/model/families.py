"""What differs by model family, in one place.

softlore drives every transformers model through one door (`FrozenModel.hidden`): embeddings,
explicit positions and an explicit additive attention mask. Three things differ by family:

- **where the mask goes**: one mask for all layers (llama, gpt2, …), one a layer type (gemma2/3,
  qwen2/3: sliding and full layers), or into the attention modules themselves (gpt_neo, mpt);
- **positions**: given as `position_ids`, or as a bias on the keys (ALiBi: bloom, mpt);
- **what happens after the last layer**: scales and soft caps on the logits.

Embedding scales need no entry here: rows are what the model's forward takes as `inputs_embeds`,
and `model.get_input_embeddings()` already applies the scale (Gemma, XGLM); CTRL scales inside its
forward, in place, so the door always hands over a fresh tensor.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from softlore.errors import UnsupportedModelError

# Families whose splice, tree batch, prefix and generation are compared with the plain way in
# tests/test_families.py. Every model, these too, is tried by `prove` when it is loaded.
PROVEN = frozenset(
    "gpt2 gpt_neo gptj gpt_neox opt bloom xglm ctrl llama mistral qwen2 qwen3 gemma gemma2 "
    "gemma3_text phi phi3 falcon stablelm olmo2 granite cohere starcoder2 mpt".split()
)


@dataclass(frozen=True)
class Family:
    """How one loaded model wants to be driven."""

    model_type: str
    layer_types: tuple[str, ...]  # "full_attention" or "sliding_attention", one a layer
    window: int | None  # a sliding layer sees keys fewer than this many positions back
    by_type: bool  # the mask is given as {layer type: mask}
    takes_positions: bool  # forward has `position_ids`
    cache_argument: str  # what forward calls the keys and values that come before
    slopes: Tensor | None  # [heads] ALiBi slopes
    by_distance: bool  # ALiBi counts from the query, which bfloat16 rounds far less (MPT)
    finish: Callable[[Tensor], Tensor]  # raw logits -> logits
    linear: bool  # whether logits are a linear function of hidden states: no soft cap

    @property
    def slides(self) -> bool:
        return self.window is not None

    @property
    def all_layers_slide(self) -> bool:
        """True when nothing, not even a prefix, is seen past the window."""
        return self.slides and "full_attention" not in self.layer_types


def describe(hf: Any) -> Family:
    """Reads a transformers causal LM's config and adapts its attention where it needs it.

    Raises:
        UnsupportedModelError: for a family without plain attention keys and values.
    """
    config = hf.config.get_text_config()
    kind = config.model_type
    layers = int(config.num_hidden_layers)
    layer_types, window, by_type = _windows(kind, config, layers)
    slopes = None
    if kind == "bloom":
        slopes = _bloom_slopes(hf)
    elif kind == "mpt":
        slopes = _mpt_slopes(hf)
    elif kind == "gpt_neo":
        _adapt_gpt_neo(hf)
    elif kind == "falcon" and config.alibi:
        raise UnsupportedModelError(
            "falcon models with ALiBi positions (falcon-rw) can't take an explicit mask; "
            "expected rotary positions (alibi=False); use a falcon with rotary positions"
        )
    body = hf.get_decoder()
    takes_positions = "position_ids" in inspect.signature(body.forward).parameters
    return Family(
        model_type=kind,
        layer_types=layer_types,
        window=window,
        by_type=by_type,
        takes_positions=takes_positions,
        cache_argument=_cache_argument(body),
        slopes=slopes,
        by_distance=kind == "mpt",
        finish=_finisher(kind, config),
        linear=getattr(config, "final_logit_softcapping", None) is None,
    )


def _cache_argument(module: Any) -> str:
    """What a transformers module calls its cache: since transformers 5.24, `cache`."""
    new = "cache" in inspect.signature(type(module).forward).parameters
    return "cache" if new else "past_key_values"


def _windows(kind: str, config: Any, layers: int) -> tuple[tuple[str, ...], int | None, bool]:
    """Layer types, window in tokens, and whether masks are given by layer type."""
    if kind == "gpt_neo":
        names = {"global": "full_attention", "local": "sliding_attention"}
        types = tuple(names[t] for t in config.attention_layers)
        return types, config.window_size if "sliding_attention" in types else None, False
    own_types: list[str] | None = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if own_types is None:
        every = "full_attention" if window is None else "sliding_attention"
        return (every,) * layers, window, False
    strange = set(own_types) - {"full_attention", "sliding_attention"}
    if strange:
        raise UnsupportedModelError(
            f"model type {kind!r} has layers of type {sorted(strange)}; expected full or "
            "sliding attention, whose keys and values a soft prompt can join; use another model"
        )
    sliding = "sliding_attention" in own_types
    return tuple(own_types), window if sliding else None, sliding


def _finisher(kind: str, config: Any) -> Callable[[Tensor], Tensor]:
    """The scale and soft cap that a family's causal-LM head applies to its logits."""
    divide = getattr(config, "logits_scaling", None)  # granite
    multiply = None if kind == "mpt" else getattr(config, "logit_scale", None)  # cohere
    cap = getattr(config, "final_logit_softcapping", None)  # gemma2, gemma3

    def finish(logits: Tensor) -> Tensor:
        if divide is not None:
            logits = logits / divide
        if isinstance(multiply, int | float):
            logits = logits * multiply
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return finish


# gpt_neo ---------------------------------------------------------------------------------------


class LayeredMask(Tensor):
    """A mask for full layers that carries the sliding layers' mask along.

    GPT-Neo hands one mask to all layers and masks local ones by key index, which is wrong for
    packed branches; its attention looks here instead.
    """

    sliding: Tensor


def _adapt_gpt_neo(hf: Any) -> None:
    for block in hf.transformer.h:
        attention = block.attn.attention
        attention._attn = partial(_gpt_neo_attention, attention, attention._attn)


def _gpt_neo_attention(
    attention: Any,
    native: Callable[..., tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention over an explicit mask (GPT-Neo does not scale by sqrt(head_dim))."""
    if not isinstance(attention_mask, LayeredMask):
        return native(query, key, value, attention_mask)
    local = attention.attention_type == "local"
    mask = attention_mask.sliding if local else attention_mask.as_subclass(Tensor)
    out = scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask=mask.float(), scale=1.0
    )
    return out.to(value.dtype), None


# ALiBi -----------------------------------------------------------------------------------------


def _bloom_slopes(hf: Any) -> Tensor:
    """BLOOM adds slope × key position; we add it in the mask, so its own tensor becomes zero."""
    body = hf.get_decoder()
    native = body.build_alibi_tensor

    def build(attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        if attention_mask.dim() != 4:
            return native(attention_mask, num_heads, dtype=dtype)
        rows = attention_mask.shape[0] * num_heads
        return torch.zeros(rows, 1, 1, dtype=dtype, device=attention_mask.device)

    body.build_alibi_tensor = build
    one = torch.ones(1, 2, dtype=torch.long, device=hf.device)
    return native(one, body.num_heads, dtype=torch.float32)[:, 0, 1].clone()


def _mpt_slopes(hf: Any) -> Tensor:
    """MPT adds its bias by key index inside each attention, which then takes ours instead."""
    body = hf.get_decoder()
    for block in body.blocks:
        attention = block.attn
        attention.forward = partial(
            _mpt_attention, attention, attention.forward, _cache_argument(attention)
        )
    bias = body.build_mpt_alibi_tensor(body.num_heads, 2, device=hf.device)  # [heads, 1, 2]
    return (bias[:, 0, 1] - bias[:, 0, 0]).float()


def _mpt_attention(
    attention: Any,
    native: Callable[..., tuple[Tensor, Tensor | None]],
    argument: str,
    hidden_states: Tensor,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    cache = kwargs[argument]
    mask = getattr(cache, "mask", None)
    if mask is None:
        return native(hidden_states, **kwargs)
    batch, length, width = hidden_states.shape
    mixed = attention.Wqkv(hidden_states)
    if attention.clip_qkv:
        mixed = mixed.clamp(min=-attention.clip_qkv, max=attention.clip_qkv)
    query, key, value = (
        t.view(batch, length, attention.n_heads, attention.head_dim).transpose(1, 2)
        for t in mixed.chunk(3, dim=2)
    )
    key, value = cache.update(key, value, attention.layer_idx)
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        scale=attention.softmax_scale or 1 / math.sqrt(key.shape[-1]),
    )
    return attention.out_proj(out.transpose(1, 2).reshape(batch, length, width)), None
