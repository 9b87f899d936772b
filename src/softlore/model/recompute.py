"""Gradient checkpointing: layers keep their input alone, and are run again for the backward pass.

(Chen et al. 2016, arXiv 1604.06174.) transformers' own switch turns caches off, and prefixes are
caches. Here each layer is run on a copy of the cache that has the keys and values from before that
layer, so that running it a second time finds the same and appends nothing twice:

    forward    hidden, K, V before ─▶ layer ─▶ hidden, K, V after      kept: hidden and K, V
    backward   hidden, K, V before ─▶ layer ─▶ what autograd needs     then dropped again

The gradient is that of a pass without, to the last bit wherever the layer's kernels are
deterministic; the forward pass is made twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache, DynamicLayer

from softlore.model.steering import decoder_layers

if TYPE_CHECKING:
    from softlore.model.frozen import FrozenModel


@contextmanager
def gradient_checkpointing(model: FrozenModel, on: bool = True) -> Iterator[None]:
    """Within the block, passes with a gradient keep only what goes into each layer.

    Args:
        on: False leaves the model as it is.

    Raises:
        UnsupportedModelError: its layers can't be told apart.
    """
    if not on:
        yield
        return
    layers = decoder_layers(
        model, "gradient checkpointing; train without it (--no-gradient-checkpointing)"
    )
    plain = [layer.forward for layer in layers]
    own = ["forward" in vars(layer) for layer in layers]  # such as accelerate's, on the instance
    for index, layer in enumerate(layers):
        layer.forward = _recomputing(plain[index], index)
    try:
        yield
    finally:
        for layer, forward, on_instance in zip(layers, plain, own, strict=True):
            if on_instance:
                layer.forward = forward
            else:
                del layer.forward


def _recomputing(forward: Callable[..., Any], index: int) -> Callable[..., Any]:
    """The forward of layer `index`, which is run again in the backward pass."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, Cache)), None)
        if cache is None:
            return checkpoint(
                forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
            )
        before = _pair(cache, index)

        def on_copy(*args: Any, **kwargs: Any) -> Any:
            own = _copy(cache, index, before)
            args = tuple(own if value is cache else value for value in args)
            kwargs = {key: own if value is cache else value for key, value in kwargs.items()}
            return forward(*args, **kwargs), _pair(own, index)

        out, pair = checkpoint(
            on_copy, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )
        cache.layers[index : index + 1] = [_layer(pair)]
        return out

    return run


def _pair(cache: Cache, index: int) -> tuple[Tensor, Tensor] | None:
    """Keys and values of a layer of a cache; None where it has none yet."""
    if index >= len(cache.layers) or not cache.layers[index].is_initialized:
        return None
    layer = cache.layers[index]
    return layer.keys, layer.values


def _copy(cache: Cache, index: int, pair: tuple[Tensor, Tensor] | None) -> Cache:
    """A copy of a cache whose layer `index` holds `pair`; the tensors are shared."""
    own = copy.copy(cache)
    own.layers = list(cache.layers)
    own.layers += [DynamicLayer() for _ in range(index + 1 - len(own.layers))]
    own.layers[index] = _layer(pair)
    return own


def _layer(pair: tuple[Tensor, Tensor] | None) -> DynamicLayer:
    layer = DynamicLayer()
    if pair is not None:
        layer.lazy_initialization(*pair)
        layer.keys, layer.values = pair
    return layer
