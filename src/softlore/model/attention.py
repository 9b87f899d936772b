"""Attention for training in bfloat16 on a processor, and a record of what attention is given.

In bfloat16 on a processor the backward pass of torch's `scaled_dot_product_attention` takes about
five times its forward pass. Here the forward pass is torch's, and the backward pass computes the
probabilities again, by plain matrix products, which processors with AMX or AVX-512 BF16 do fast:

- a few heads at a time, so that their probabilities stay in the processor's cache;
- with keys and values in their groups, where torch repeats them for each head;
- without the gradients of keys that need none: of text that was read before training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "softlore_sdpa"  # among transformers' attention implementations
# Called with query, key, value, mask and scale of each layer of this thread's forward.
Recorder = Callable[[Tensor, Tensor, Tensor, Tensor, float], None]
_recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)
CHUNK = 2**20  # bytes of probabilities at once; half of the second-level cache of a server's core


def use_for_training(hf: Any) -> None:
    """Makes a model use this attention where it gains: in bfloat16, on a processor, with SDPA."""
    weight = hf.get_input_embeddings().weight
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return
    if can_record(hf):
        hf.set_attn_implementation(NAME)


def can_record(hf: Any) -> bool:
    """Whether a model takes this attention in place of torch's, and with it `recorded_by`.

    Models whose layers compute attention themselves do not.
    """
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    settable = getattr(hf, "_can_set_attn_implementation", lambda: False)
    return getattr(hf.config, "_attn_implementation", None) in ("sdpa", NAME) and settable()


@contextmanager
def recorded_by(hf: Any, recorder: Recorder) -> Iterator[None]:
    """Calls a function for every layer of the forwards that this thread runs inside.

    See `can_record` for which models this works with.

    Args:
        recorder: is given the layer's query `[B, heads, T, head_dim]`, keys and values
            `[B, kv_heads, S, head_dim]` (rotated), the additive mask `[B, 1 or heads, T, S]`, and
            the scale of the logits.
    """
    assert can_record(hf)
    before = getattr(hf.config, "_attn_implementation", None)
    token = _recorder.set(recorder)
    if before != NAME:
        hf.set_attn_implementation(NAME)  # to other threads, the same attention
    try:
        yield
    finally:
        if before != NAME:
            hf.set_attn_implementation(before)
        _recorder.reset(token)


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
        key, value: `[B, kv_heads, S, head_dim]`. The first `key.n_constant` keys and values, where
            it has that attribute (see `KVCache.layers`), need no gradient.
        attention_mask: additive, `[B, 1 or heads, T, S]`.

    Returns:
        `[B, T, heads, head_dim]`, and no weights.
    """
    recorder = _recorder.get()
    if recorder is not None and attention_mask is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        recorder(query, key, value, attention_mask, scale)
    trained = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    additive = attention_mask is not None and attention_mask.is_floating_point()
    if not trained or not additive or dropout or kwargs.get("position_bias") is not None:
        given = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    n_constant = getattr(key, "n_constant", 0)
    out: Tensor = _Attention.apply(query, key, value, attention_mask, scale, n_constant)
    return out.transpose(1, 2).contiguous(), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        scale: float,
        n_constant: int,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale, ctx.n_constant = scale, n_constant
        groups = query.shape[1] // key.shape[1]
        keys, values = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        n, scale = ctx.n_constant, ctx.scale
        (batch, heads, rows, width), (_, kv_heads, length, _) = query.shape, key.shape
        groups = heads // kv_heads
        if mask.shape[1] == 1:
            mask = mask[:, :, None].expand(-1, kv_heads, -1, -1, -1)
        else:
            mask = mask.view(batch, kv_heads, groups, rows, length)
        # Heads of all rows in one dimension: torch copies what it transposes in four.
        q = (query * scale).reshape(-1, groups * rows, width)
        k, v = key.flatten(0, 1), value.flatten(0, 1)
        gradient = gradients[0].reshape(*q.shape[:2], -1)
        of_query, of_key, of_value = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        size = groups * rows * length * q.element_size()
        for part, masked in _parts(batch, kv_heads, size):
            scores, bias = torch.bmm(q[part], k[part].transpose(1, 2)), mask[masked]
            scores.view(-1, bias.shape[1], groups, rows, length).add_(bias)
            weights = scores.softmax(dim=-1)
            of_weights = torch.bmm(gradient[part], v[part].transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            torch.bmm(of_scores, k[part], out=of_query[part])
            of_key[part, n:] = torch.bmm(of_scores[..., n:].transpose(1, 2), q[part])
            of_value[part, n:] = torch.bmm(weights[..., n:].transpose(1, 2), gradient[part])
        of_query = of_query.view(query.shape).mul_(scale)
        return of_query, of_key.view(key.shape), of_value.view(value.shape), None, None, None


def _parts(batch: int, heads: int, size: int) -> Iterator[tuple[slice, tuple[slice, slice]]]:
    """Parts of `CHUNK` bytes at most, or of one head: as heads of all rows, and as rows and heads.

    `size`: bytes of one head in one row of the batch.
    """
    rows, at_once = max(1, CHUNK // (heads * size)), max(1, min(heads, CHUNK // size))
    for row in range(0, batch, rows):
        stop = min(row + rows, batch)
        for head in range(0, heads, at_once):
            last = min(head + at_once, heads)
            part = slice(row * heads + head, (stop - 1) * heads + last)
            yield part, (slice(row, stop), slice(head, last))
