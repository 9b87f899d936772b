"""A numeric sketch of a model, by which a prompt recognizes the model it was made for.

The weights themselves identify a model; a name, a config or a checksum does not, as the same model
comes renamed, quantized or converted. So a prompt file stores a few numbers of the model and
compares them within a tolerance:

- `embeddings`: `ROWS` × `COLUMNS` values of the input embeddings, at rows and columns evenly spread
  over the table, as the forward takes them (scaled, where the family scales them);
- `keys` (prefix kind only): the keys of the last layer for `KEY_IDS` fixed ids, read as one text:
  they depend on all layers, so fine-tuned models with the same embeddings differ here.

In a file a sketch is `{"rows", "columns", "values"}`: the sizes of the table and base64 of float32,
little-endian, row by row. Two sketches are compared by their relative error `‖a − b‖ / ‖a‖`.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlore.errors import PromptMismatchError

ROWS, COLUMNS, KEY_IDS = 64, 16, 16
TOLERANCE = 0.15  # relative error: 4-bit quantization stays near 0.1, another model is above 1


def spread(total: int, count: int) -> list[int]:
    """`count` indices evenly spread over `range(total)`."""
    return [i * total // count for i in range(count)]


def sketch(table: Tensor) -> dict[str, Any]:
    """The sketch of a table `[rows, columns]`, as JSON."""
    rows = spread(table.shape[0], min(ROWS, table.shape[0]))
    columns = spread(table.shape[1], min(COLUMNS, table.shape[1]))
    values = table[rows][:, columns].detach().float().cpu().numpy().astype("<f4")
    return {
        "rows": int(table.shape[0]),
        "columns": int(table.shape[1]),
        "values": base64.b64encode(values.tobytes()).decode("ascii"),
    }


def embedding_sketch(embedding: torch.nn.Module) -> dict[str, Any]:
    """The sketch of an input embedding, which is only called for the rows that it needs."""
    weight: Tensor = embedding.weight  # type: ignore[assignment]
    device = "cpu" if weight.device.type == "meta" else weight.device  # accelerate moves it on
    rows = torch.tensor(spread(weight.shape[0], ROWS), device=device)
    with torch.no_grad():
        return sketch(embedding(rows)) | {"rows": int(weight.shape[0])}


def difference(sketched: dict[str, Any], other: dict[str, Any]) -> float:
    """The relative error between two sketches; infinite where their shapes differ.

    `other` may come from a file, with anything in it.
    """
    if (sketched["rows"], sketched["columns"]) != (other.get("rows"), other.get("columns")):
        return float("inf")
    a = np.frombuffer(base64.b64decode(sketched["values"]), dtype="<f4")
    try:
        b = np.frombuffer(base64.b64decode(other["values"], validate=True), dtype="<f4")
    except (KeyError, TypeError, ValueError):
        return float("inf")
    if a.shape != b.shape or not np.isfinite(b).all():
        return float("inf")
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-12))


def check(
    expected: dict[str, Any], stored: dict[str, Any], prompt: str, model: str, made_for: str = ""
) -> None:
    """Raises PromptMismatchError unless a prompt's fingerprint is that of a model.

    Args:
        expected: the model's fingerprint, a sketch for each part.
        stored: the prompt's.
        prompt, model, made_for: names for the message; the last is of the prompt's own model.
    """
    other = "another model" if made_for in ("", model) else f"another model, {made_for!r}"
    for part, sketched in expected.items():
        if not isinstance(stored.get(part), dict):
            raise PromptMismatchError(
                f"prompt {prompt!r} carries no sketch of its model's {part}, as prompts of other "
                f"programs; expected one to compare with {model!r}; if it was made for that model, "
                "declare it: prompt.made_for(model) (softlore convert FILE --model NAME), or pass "
                "check=False (--any-model)"
            )
        if difference(sketched, stored[part]) > TOLERANCE:
            raise PromptMismatchError(
                f"prompt {prompt!r} was made for {other} (its {part} differ, width "
                f"{stored[part].get('columns')}); expected {model!r} (width "
                f"{sketched['columns']}); load the model it was made for, or pass check=False "
                "(--any-model) to use it anyway"
            )
