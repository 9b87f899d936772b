"""Control vectors in a forward pass: a direction for each layer, added to what the layer puts out.

(Turner et al. 2023, arXiv 2308.10248; Zou et al. 2023, arXiv 2310.01405.) Each row of a batch has a
sum of vectors of its own, `[layers, width]`; for all of its tokens, prompt and new text alike:

    embeddings ─▶ layer 0 ─(+ row 0)─▶ layer 1 ─(+ row 1)─▶ … ─▶ last layer ─(+ last row)─▶ norm

llama.cpp does the same from layer 1 on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from softlore.errors import UnsupportedModelError

if TYPE_CHECKING:
    from softlore.model.language import LanguageModel

# What a layer puts out: `[B, T, width]`. Called with the layer's number; None leaves it as it is.
Change = Callable[[int, Tensor], Tensor | None]

# Of the forwards that a thread runs, the innermost first: another thread's are not changed.
_changes: ContextVar[tuple[Change, ...]] = ContextVar("changes", default=())

_hooking = Lock()


def decoder_layers(model: LanguageModel, purpose: str) -> list[nn.Module]:
    """The model's layers, in order.

    Raises:
        UnsupportedModelError: they can't be told apart; `purpose` says what they are needed for,
            and what to do without.
    """
    hf: Any = getattr(model, "hf")  # noqa: B009 - only models of transformers have it
    for module in hf.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.layers:
            return list(module)
    raise UnsupportedModelError(
        f"model type {model.model_type!r} has no list of its {model.layers} layers; expected one, "
        f"for {purpose}"
    )


@contextmanager
def steered(model: LanguageModel, vectors: Tensor | None) -> Iterator[None]:
    """Adds vectors `[B, layers, width]` to the outputs of layers, a row of the batch each.

    Without vectors nothing is done, and costs nothing.
    """
    if vectors is None:
        yield
        return

    def add(layer: int, hidden: Tensor) -> Tensor:
        return hidden + vectors[:, layer, None].to(hidden)

    with changed(model, add):
        yield


def stack_steering(rows: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    """Control vectors `[B, layers, width]` of rows, zeros for those without; None for none."""
    like = next((row for row in rows if row is not None), None)
    if like is None:
        return None
    none = torch.zeros_like(like)
    return torch.stack([none if row is None else row for row in rows]).to(device)


def same_steering(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two sums of control vectors are equal, or neither is any."""
    return a is b or (a is not None and b is not None and torch.equal(a, b))


@contextmanager
def changed(model: LanguageModel, change: Change) -> Iterator[None]:
    """Changes, or only records, the outputs of layers in the forwards of this thread.

    Raises:
        UnsupportedModelError: the layers can't be told apart.
    """
    with _hooking:  # two threads would hook the layers twice
        model.once(_hook_layers)
    token = _changes.set((change, *_changes.get()))
    try:
        yield
    finally:
        _changes.reset(token)


def _hook_layers(model: LanguageModel) -> bool:
    """Hooks every layer, once for a model: the hook does nothing outside of `changed`."""
    layers = decoder_layers(model, "control vectors; use another model")
    for number, layer in enumerate(layers):
        layer.register_forward_hook(partial(_hook, number))
    return True


def _hook(number: int, layer: nn.Module, inputs: Any, output: Any) -> Any:
    """Torch's forward hook; some families put out a tuple, of which the hidden states are first."""
    changes = _changes.get()
    if not changes:
        return None
    hidden = output[0] if isinstance(output, tuple) else output
    for change in changes:
        new = change(number, hidden)
        hidden = hidden if new is None else new
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
