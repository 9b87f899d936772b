"""vLLM's completion request with rows in place of text: the body of `POST /v1/completions`.

`prompt_embeds` is base64 of what torch.save makes of `[tokens, width]`. The server has to be
started with `--enable-prompt-embeds`, and casts the rows to its own dtype. A body holds rows
only: where rows and token ids are mixed, vLLM's prefix cache can take one context for another
(its issue 56655), so the whole context goes as rows.
"""

from __future__ import annotations

import base64
import io
import json
import os
from typing import Any

import torch
from torch import Tensor

from softlore.disk import write_atomically
from softlore.errors import PromptError
from softlore.prompts.soft_prompt import SoftPrompt


def request_body(rows: Tensor, model: str = "") -> dict[str, Any]:
    """A request that goes on from `rows`, `[tokens, width]` as the model's forward takes them.

    `softlore.embed(model, context)` makes them of a context. `model` is the name that the server
    knows its model by; without one it takes the model it has. Settings such as `max_tokens` and
    `temperature` are the caller's to add.
    """
    packed = io.BytesIO()
    torch.save(rows.detach().cpu().clone(), packed)  # a clone: a view would bring all its storage
    body = {"prompt_embeds": base64.b64encode(packed.getvalue()).decode("ascii")}
    return {"model": model, **body} if model else body


def write(prompt: SoftPrompt, path: str | os.PathLike[str]) -> None:
    """Writes a request whose whole context is the prompt, in float32.

    Raises PromptError for the prefix kind, StorageError where the disk refuses.
    """
    check_rows(prompt)
    write_body(request_body(prompt.embeddings, prompt.base_model), path)


def check_rows(prompt: SoftPrompt) -> None:
    """Raises PromptError for a prefix, which has no rows to send."""
    if prompt.kind != "embedding":
        raise PromptError(
            f"prompt {prompt.name!r} is of the {prompt.kind} kind, which no request can carry: "
            "keys and values reach vLLM through a KV connector, which a later softlore brings; "
            "expected the embedding kind; train it again with kind='embedding' (--kind embedding)"
        )


def write_body(body: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a request body as JSON, whole or not at all. Raises StorageError."""
    write_atomically(path, (json.dumps(body, ensure_ascii=False) + "\n").encode())
