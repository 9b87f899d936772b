"""Prefixes for vLLM: files for softlore's KV connector, and the ids that stand for prefixes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import torch
from safetensors.torch import save

from softlore.disk import write_atomically
from softlore.errors import PromptError
from softlore.model import FrozenModel
from softlore.prompts.soft_prompt import SoftPrompt
from softlore.vllm_connector.files import FORMAT
from softlore.vllm_connector.placeholders import of_set, placeholder


def write(prompt: SoftPrompt, model: FrozenModel, path: str | os.PathLike[str]) -> None:
    """Writes a prefix with its placeholder, and the rotation of its keys where there is one.

    Raises PromptError for the embedding kind, StorageError where the disk refuses.
    """
    tensors = {"key_values": prompt.key_values}
    rotary = model.rotary
    if rotary is not None:
        tensors["inv_freq"] = rotary.inv_freq.contiguous()
    told = {
        "format": FORMAT,
        "name": prompt.name,
        "digest": prompt.digest,
        "ids": json.dumps(placeholder_of(prompt, model)),
        "layout": rotary.layout if rotary else "",
    }
    write_atomically(path, save(tensors, told))


def placeholder_of(prompt: SoftPrompt, model: FrozenModel) -> list[int]:
    """The ids that stand for a prefix on vLLM, one a token of it."""
    return placeholder(prompt.digest, len(prompt), model.ordinary_ids)


def company_of(prompts: Sequence[SoftPrompt], model: FrozenModel) -> list[int]:
    """The ids that stand for prefixes side by side.

    Raises:
        PromptError: several, for a model in which they cannot stand so.
    """
    unique = {prompt.digest: prompt for prompt in prompts}
    if len(unique) > 1 and (model.family.has_sliding_layers or model.rotary is None):
        names = ", ".join(repr(prompt.name) for prompt in unique.values())
        raise PromptError(
            f"{names} cannot stand side by side on vLLM with model type "
            f"{model.model_type!r}, as each takes positions of its own there; expected one "
            "prefix, or a model with rotary positions and no sliding layers; train the set as one "
            "prompt, or use --engine local"
        )
    return of_set({digest: placeholder_of(prompt, model) for digest, prompt in unique.items()})


def rows_of(ids: Sequence[int], model: FrozenModel) -> torch.Tensor:
    """Embedding rows `[n, width]` of a placeholder, for contexts that hold soft rows besides."""
    return model.embed_ids(list(ids))
