"""Attention patches for model families whose modules take no explicit mask.

Each `patch_…` function is an entry of `families.FAMILIES`: it changes the modules of one loaded
model and returns its ALiBi slopes `[heads]`, or None. The patched modules behave as before
wherever no explicit mask is passed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from softlore.errors import UnsupportedModelError


def cache_argument(module: Any) -> str:
    """What a transformers module calls its cache: since transformers 5.24, `cache`."""
    new = "cache" in inspect.signature(type(module).forward).parameters
    return "cache" if new else "past_key_values"


class LayeredMask(Tensor):
    """The full layers' mask, with the sliding layers' mask as an attribute.

    GPT-Neo passes one mask to all layers and masks local ones by key index, which is wrong for
    packed branches; the patched attention of local layers takes `sliding` instead.
    """

    sliding: Tensor


def patch_gpt_neo(hf: Any) -> None:
    """Makes local layers of GPT-Neo take the sliding mask of a `LayeredMask`."""
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


def patch_bloom(hf: Any) -> Tensor:
    """The slopes of BLOOM, whose own bias becomes zero: `Family.position_bias` adds it instead."""
    body = hf.get_decoder()
    native = body.build_alibi_tensor

    def build(attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        if attention_mask.dim() != 4:
            return native(attention_mask, num_heads, dtype=dtype)
        rows = attention_mask.shape[0] * num_heads
        return torch.zeros(rows, 1, 1, dtype=dtype, device=attention_mask.device)

    body.build_alibi_tensor = build
    two_keys = torch.ones(1, 2, dtype=torch.long, device=hf.device)
    return native(two_keys, body.num_heads, dtype=torch.float32)[:, 0, 1].clone()


def patch_mpt(hf: Any) -> Tensor:
    """The slopes of MPT, whose attention adds a bias by key index: patched to take the mask."""
    body = hf.get_decoder()
    for block in body.blocks:
        attention = block.attn
        attention.forward = partial(
            _mpt_attention, attention, attention.forward, cache_argument(attention)
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
    """MPT's attention over the mask that `fill_cache` put on the cache object."""
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


def check_falcon(hf: Any) -> None:
    """Rejects Falcon models with ALiBi, whose modules build their own mask."""
    if hf.config.get_text_config().alibi:
        raise UnsupportedModelError(
            "falcon models with ALiBi positions (falcon-rw) can't take an explicit mask; "
            "expected rotary positions (alibi=False); use a falcon with rotary positions"
        )
