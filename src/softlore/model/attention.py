"""Attention for training in bfloat16 on a processor.

There the backward pass of torch's `scaled_dot_product_attention` takes about five times its forward
pass. Here the forward pass is torch's, and the backward pass computes the probabilities again, by
plain matrix products, which processors with AMX or AVX-512 BF16 are fast at. It also leaves keys
and values in their groups, where torch repeats them for each head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "softlore_sdpa"  # among transformers' attention implementations


def use_for_training(hf: Any) -> None:
    """Makes a model use this attention where it gains: in bfloat16, on a processor, with SDPA."""
    weight = hf.get_input_embeddings().weight
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return
    settable = getattr(hf, "_can_set_attn_implementation", lambda: False)
    if getattr(hf.config, "_attn_implementation", None) != "sdpa" or not settable():
        return
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    hf.set_attn_implementation(NAME)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers; see `sdpa_attention_forward` there.

    Args:
        query: `[B, heads, T, head_dim]`.
        key, value: `[B, kv_heads, S, head_dim]`.
        attention_mask: additive, `[B, 1 or heads, T, S]`.

    Returns:
        `[B, T, heads, head_dim]`, and no weights.
    """
    trained = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    additive = attention_mask is not None and attention_mask.is_floating_point()
    if not trained or not additive or dropout or kwargs.get("position_bias") is not None:
        given = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: Tensor = _Attention.apply(query, key, value, attention_mask, scale)
    return out.transpose(1, 2).contiguous(), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale = scale
        groups = query.shape[1] // key.shape[1]
        keys, values = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        (gradient,) = gradients
        batch, heads, rows, width = query.shape
        kv_heads, length = key.shape[1], key.shape[2]
        grouped = (batch, kv_heads, heads // kv_heads * rows)
        q = (query * ctx.scale).reshape(*grouped, width)
        scores = (q @ key.transpose(2, 3)).view(batch, kv_heads, -1, rows, length)
        scores += mask[:, :, None] if mask.shape[1] == 1 else mask.view_as(scores)
        weights = scores.softmax(dim=-1).view(*grouped, length)
        gradient = gradient.reshape(*grouped, value.shape[3])
        of_weights = gradient @ value.transpose(2, 3)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_query = (of_scores @ key).view(query.shape) * ctx.scale
        of_key = of_scores.transpose(2, 3) @ q if ctx.needs_input_grad[1] else None
        of_value = weights.transpose(2, 3) @ gradient if ctx.needs_input_grad[2] else None
        return of_query, of_key, of_value, None, None
