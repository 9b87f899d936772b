"""Models under mkultra's names: transformers' own, with the methods that mkultra gave them."""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

import torch
from torch import Tensor

from softlore.model import FrozenModel
from softlore.model.loading import locate


class Named:
    """What a model has under any of mkultra's names.

    Attributes:
        frozen: the same model as softlore drives it; none of its weights ever changes.
    """

    frozen: FrozenModel

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Any:
        """Loads any causal language model, by hub id, folder or `"storyteller"`.

        On the CPU and in float32, as in mkultra; `.half()` and `.to("cuda")` work as there.

        Args:
            options: as for transformers' `from_pretrained`.

        Raises:
            ModelError: when there is no such model, or softlore can't drive it.
        """
        dtype = options.pop("dtype", options.pop("torch_dtype", torch.float32))
        if options:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            where = locate(str(name))
            hf = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **options)
            frozen = FrozenModel(hf, AutoTokenizer.from_pretrained(where), str(name))
        else:
            frozen = FrozenModel.from_pretrained(name, dtype=dtype, device="cpu")
        model = frozen.hf
        model.__class__ = _joined(cls, type(model))  # type: ignore[arg-type]
        model.frozen = frozen
        model._begin()
        return model

    def _begin(self) -> None:
        """What is to be done once a model is loaded."""


@functools.cache
def _joined(named: type, architecture: type) -> type:
    """A class that is both; its forward shows the architecture's signature, which `generate` reads.

    It keeps the architecture's name, by which pipelines and saved models know it.
    """

    @functools.wraps(architecture.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **options: Any) -> Any:
        return named.forward(self, *args, **options)  # type: ignore[attr-defined]

    return type(architecture.__name__, (named, architecture), {"forward": forward})


def by_name(model: Any, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """A forward's arguments, those given by place too, by their names."""
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | options


def banned(logits: Tensor, ids: set[int]) -> Tensor:
    """Logits with minus infinity at `ids`, widened until they have a column for each.

    So placeholders are never written, and processors that look up what stands in the text (a
    repetition penalty) find a column for them, though the model's weights have none.
    """
    if not ids:
        return logits
    missing = max(ids) + 1 - logits.shape[-1]
    wide = torch.nn.functional.pad(logits, (0, max(0, missing)))
    wide[..., sorted(ids)] = float("-inf")
    return wide
