"""Models and tokenizers under mkultra's names, on top of transformers' classes."""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

import torch
from torch import Tensor

from softlore.mkultra.registry import vocabulary_of
from softlore.model import FrozenModel
from softlore.model.catalog import KNOWN_MODELS
from softlore.model.finding import locate


class MkultraModel:
    """The base of all models under mkultra's names; mixed into the transformers class on loading.

    Attributes:
        frozen: the same model as softlore's FrozenModel; its weights never change.
    """

    frozen: FrozenModel

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Any:
        """Loads any causal language model, by hub id, folder or `"storyteller"`.

        On the CPU and in float32, as in mkultra; `.half()` and `.to("cuda")` work as there.

        Args:
            options: as for transformers' `from_pretrained`.

        Raises:
            ModelError: when there is no such model, or softlore can't run it.
        """
        dtype = options.pop("dtype", options.pop("torch_dtype", torch.float32))
        if options:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            path = _place(str(name), options)
            hf = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options)
            frozen = FrozenModel(hf, AutoTokenizer.from_pretrained(path), str(name))
        else:
            frozen = FrozenModel.from_pretrained(name, dtype=dtype, device="cpu")
        model = frozen.hf
        model.__class__ = _joined(cls, type(model))  # type: ignore[arg-type]
        model.frozen = frozen
        model._on_load()
        return model

    def _on_load(self) -> None:
        """Called once a model is loaded."""


def _place(name: str, options: dict[str, Any], weights: bool = True) -> str:
    """The folder of a model; a hub id as it is where there are options, such as a revision."""
    return name if options and name not in KNOWN_MODELS else locate(name, weights)


@functools.cache
def _joined(mixin: type, architecture: type) -> type:
    """A subclass of both, with the architecture's name, by which pipelines and files know it.

    Its forward has the architecture's signature, which transformers' `generate` inspects.
    """

    @functools.wraps(architecture.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **options: Any) -> Any:
        return mixin.forward(self, *args, **options)  # type: ignore[attr-defined]

    return type(architecture.__name__, (mixin, architecture), {"forward": forward})


def by_name(model: Any, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a forward by name, positional ones too."""
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | options


def without_ids(logits: Tensor, ids: set[int]) -> Tensor:
    """Logits with -inf at `ids`, widened until they have a column for each.

    So placeholders are never generated, and processors that look up ids of the text (a repetition
    penalty) find a column for them, though the model's weights have none.
    """
    if not ids:
        return logits
    missing = max(ids) + 1 - logits.shape[-1]
    wide = torch.nn.functional.pad(logits, (0, max(0, missing)))
    wide[..., sorted(ids)] = float("-inf")
    return wide


class GPT2TokenizerFast:
    """A tokenizer without tags, as mkultra's notebooks use for tuning."""

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Any:
        """Loads the tokenizer of any model, by hub id, folder or `"storyteller"`."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(_place(str(name), options, False), **options)


class GPT2SPTokenizerFast(GPT2TokenizerFast):
    """A tokenizer in which every soft prompt's tag has as many tokens as the prompt."""

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Any:
        """Loads the tokenizer of any model; it knows all soft prompts, present and future."""
        tokenizer = super().from_pretrained(name, **options)
        vocabulary_of(tokenizer).join(tokenizer)
        return tokenizer


GPT2SPTokenizer = GPT2SPTokenizerFast
