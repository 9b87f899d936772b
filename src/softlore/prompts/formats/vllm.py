"""Soft prompts for vLLM: requests with rows, and prefix files for its connector.

Embedding kind: `prompt_embeds` of `POST /v1/completions` is base64 of what torch.save makes of
`[tokens, width]`. The server has to be started with `--enable-prompt-embeds`, and casts the rows to
its own dtype. A request holds rows only: where rows and token ids are mixed, vLLM's prefix cache
can take one context for another (its issue 56655), so the whole context is sent as rows.

Prefix kind: a file for softlore's KV connector (`vllm_connector`) with placeholder ids, one per
token of the prefix; a request that begins with them has the prefix in its cache.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from softlore.disk import write_atomically
from softlore.errors import PromptError
from softlore.model.catalog import hub_name
from softlore.prompts.formats.rows import check_embedding_kind
from softlore.prompts.soft_prompt import SoftPrompt
from softlore.vllm_connector.files import FORMAT
from softlore.vllm_connector.placeholders import of_set, placeholder

if TYPE_CHECKING:
    from softlore.model import FrozenModel


def request_body(rows: Tensor, model: str = "") -> dict[str, Any]:
    """A request to continue `rows`, `[tokens, width]` as the model's forward takes them.

    `softlore.embed(model, context)` makes the rows of a context. `model` is the name by which the
    server knows its model; without one it uses the model it has. Settings such as `max_tokens` and
    `temperature` are for the caller to add.
    """
    packed = io.BytesIO()
    torch.save(rows.detach().cpu().clone(), packed)  # a view would bring all of its storage
    body = {"prompt_embeds": base64.b64encode(packed.getvalue()).decode("ascii")}
    return {"model": model, **body} if model else body


def write(prompt: SoftPrompt, path: str | os.PathLike[str]) -> None:
    """Writes a request with the prompt as its whole context, in float32.

    Raises PromptError for the prefix kind, StorageError where the disk refuses.
    """
    check_rows(prompt)
    write_body(request_body(prompt.embeddings, hub_name(prompt.base_model)), path)


def check_rows(prompt: SoftPrompt) -> None:
    """Raises PromptError for a prefix, which has no rows to send."""
    check_embedding_kind(
        prompt, "a vLLM request", "write a file for its connector: softlore convert --to vllm"
    )


def write_body(body: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a request body as JSON, atomically. Raises StorageError."""
    write_atomically(path, (json.dumps(body, ensure_ascii=False) + "\n").encode())


def write_prefix(prompt: SoftPrompt, model: FrozenModel, path: str | os.PathLike[str]) -> None:
    """Writes a prefix with its placeholder ids, and the rotation of its keys where there is one.

    Raises PromptError for the embedding kind, StorageError where the disk refuses.
    """
    tensors = {"key_values": prompt.key_values}
    rotary = model.rotary
    if rotary is not None:
        tensors["inv_freq"] = rotary.inv_freq.contiguous()
    metadata = {
        "format": FORMAT,
        "name": prompt.name,
        "digest": prompt.digest,
        "ids": json.dumps(prefix_ids(prompt, model)),
        "layout": rotary.layout if rotary else "",
    }
    write_atomically(path, save(tensors, metadata))


def prefix_ids(prompt: SoftPrompt, model: FrozenModel) -> list[int]:
    """The placeholder ids of a prefix on vLLM, one per token."""
    return placeholder(prompt.digest, len(prompt), model.ordinary_ids)


def prefix_set_ids(prompts: Sequence[SoftPrompt], model: FrozenModel) -> list[int]:
    """The placeholder ids of several prefixes side by side.

    Raises:
        PromptError: several prefixes, for a model that cannot have them side by side.
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
    return of_set({digest: prefix_ids(prompt, model) for digest, prompt in unique.items()})
