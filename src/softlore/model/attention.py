"""Attention on a processor, kernels on a GPU, and a record of what attention is given.

On a processor torch's `scaled_dot_product_attention` works on all pairs of tokens, however many a
mask hides, and in bfloat16 its backward pass takes about five times its forward pass. A packed tree
of branches (see `softlore.context.tree_batch`) hides most pairs. Here

- queries are taken some rows at a time, with the keys that any of these rows sees;
- the backward pass computes the probabilities again, by plain matrix products, a few heads at a
  time, so that they stay in the cache;
- keys and values are in their groups there, where torch repeats them for each head;
- keys of text that was read before training get no gradient.

             trunk      own
    rows 0  ########   ##                the keys of the first rows of queries: those of the trunk,
    rows 1  ########     ##              and of the branches that these rows are of
    rows 2  ########       ##
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "softlore_sdpa"  # among transformers' attention implementations
# Called with query, key, value, mask and scale of each layer of this thread's forward.
Recorder = Callable[[Tensor, Tensor, Tensor, Tensor, float], None]
_recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)
CHUNK = 2**20  # bytes of probabilities at once; half of the second-level cache of a server's core
FOR_ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
ROWS = 128  # of queries at once: some branches; fewer see fewer keys, more are faster products


def use_for_training(hf: Any) -> None:
    """Makes a model use this attention where it gains: on a processor, with SDPA."""
    weight = hf.get_input_embeddings().weight
    if weight.dtype not in (torch.bfloat16, torch.float32) or weight.device.type != "cpu":
        return
    if can_record(hf):
        hf.set_attn_implementation(NAME)


def kernels(device: torch.device) -> AbstractContextManager[None]:
    """Within the block, attention on a GPU uses kernels that take any shape at once.

    Torch prefers cuDNN's on some cards (Hopper, Blackwell). That builds a plan for each shape it
    has not seen, for a tenth of a second to a half, and here almost every pass has a new shape.
    """
    return sdpa_kernel(FOR_ANY_SHAPE) if device.type == "cuda" else nullcontext()


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
    gains = query.device.type == "cpu" and (trained or query.shape[2] > ROWS)
    if not gains or not additive or dropout or kwargs.get("position_bias") is not None:
        given = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    n_constant = getattr(key, "n_constant", 0)
    out: Tensor = _Attention.apply(query, key, value, attention_mask, scale, n_constant)
    return out.transpose(1, 2).contiguous(), None


@dataclass(frozen=True)
class _Block:
    """Rows of queries with the keys that they see.

    Attributes:
        batch: rows of the batch.
        rows: of the queries.
        keys: indices in ascending order; None: all.
        bias: the mask `[batch, 1 or heads, rows, keys]`.
    """

    batch: slice
    rows: slice
    keys: Tensor | None
    bias: Tensor

    def of_keys(self, tensor: Tensor) -> Tensor:
        """The block's part of `[B, kv_heads, S, head_dim]`."""
        part = tensor[self.batch]
        return part if self.keys is None else part.index_select(2, self.keys)


def visible(mask: Tensor) -> Tensor:
    """What an additive mask does not hide: bool, of its shape."""
    return mask > torch.finfo(mask.dtype).min / 2


def _blocks(mask: Tensor) -> list[_Block]:
    """The blocks of a mask `[B, 1 or heads, T, S]`, kept with it: all layers have the same one."""
    blocks: list[_Block] | None = getattr(mask, "blocks", None)
    if blocks is None:
        blocks = mask.blocks = _divide(mask)  # type: ignore[attr-defined]
    return blocks


def _divide(mask: Tensor) -> list[_Block]:
    batch, heads, rows, _ = mask.shape
    if heads > 1 or rows <= ROWS or isinstance(mask, FakeTensor):  # of a forecast: no numbers
        return [_Block(slice(0, batch), slice(0, rows), None, mask)]
    blocks = []
    for row in range(batch):
        for start in range(0, rows, ROWS):
            part = mask[row : row + 1, :, start : start + ROWS]
            keys = visible(part[0, 0]).any(dim=0).nonzero()[:, 0]
            bias = part.index_select(3, keys)
            blocks.append(
                _Block(slice(row, row + 1), slice(start, start + part.shape[2]), keys, bias)
            )
    return blocks


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
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.n_constant, ctx.blocks = scale, n_constant, _blocks(mask)
        groups = query.shape[1] // key.shape[1]
        out = torch.empty_like(query)
        for block in ctx.blocks:
            keys, values = (block.of_keys(t).repeat_interleave(groups, dim=1) for t in (key, value))
            out[block.batch, :, block.rows] = scaled_dot_product_attention(
                query[block.batch, :, block.rows], keys, values, attn_mask=block.bias, scale=scale
            )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        # Of the keys of several blocks, gradients are added up in float32.
        exact = torch.float32 if len(ctx.blocks) > 1 and key.dtype == torch.bfloat16 else key.dtype
        grad_key, grad_value = (torch.zeros_like(t, dtype=exact) for t in (key, value))
        for block in ctx.blocks:
            n = ctx.n_constant
            if block.keys is not None:
                n = int(torch.searchsorted(block.keys, n))
            grad_query[block.batch, :, block.rows], *grad_keys = _backward(
                query[block.batch, :, block.rows],
                block.of_keys(key),
                block.of_keys(value),
                block.bias,
                gradients[0][block.batch, :, block.rows],
                ctx.scale,
                n,
            )
            for whole, part in zip((grad_key, grad_value), grad_keys, strict=True):
                if block.keys is None:
                    whole[block.batch, :, n:] += part
                else:
                    whole[block.batch].index_add_(2, block.keys[n:], part.to(exact))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    gradient: Tensor,
    scale: float,
    n_constant: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a block's queries, and of its keys and values from `n_constant` on."""
    (batch, heads, rows, width), (_, kv_heads, length, _) = query.shape, key.shape
    groups = heads // kv_heads
    if bias.shape[1] == 1:
        bias = bias[:, :, None].expand(-1, kv_heads, -1, -1, -1)
    else:
        bias = bias.view(batch, kv_heads, groups, rows, length)
    # Heads of all rows in one dimension: torch copies what it transposes in four.
    q = (query * scale).reshape(-1, groups * rows, width)
    k, v = key.flatten(0, 1), value.flatten(0, 1)
    gradient = gradient.reshape(*q.shape[:2], -1)
    grad_query = torch.empty_like(q)
    grad_key, grad_value = torch.empty_like(k[:, n_constant:]), torch.empty_like(v[:, n_constant:])
    size = groups * rows * length * q.element_size()
    for part, masked in _parts(batch, kv_heads, size):
        scores, added = torch.bmm(q[part], k[part].transpose(1, 2)), bias[masked]
        scores.view(-1, added.shape[1], groups, rows, length).add_(added)
        weights = scores.softmax(dim=-1)
        grad_weights = torch.bmm(gradient[part], v[part].transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        torch.bmm(grad_scores, k[part], out=grad_query[part])
        # Made contiguous first: torch is slow to copy a part of a matrix that is transposed.
        grad_scores, weights = (t[..., n_constant:].contiguous() for t in (grad_scores, weights))
        grad_key[part] = torch.bmm(grad_scores.transpose(1, 2), q[part])
        grad_value[part] = torch.bmm(weights.transpose(1, 2), gradient[part])
    grad_query = grad_query.view(query.shape).mul_(scale)
    return (
        grad_query,
        grad_key.unflatten(0, (batch, kv_heads)),
        grad_value.unflatten(0, (batch, kv_heads)),
    )


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
