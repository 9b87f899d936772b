"""A numeric sketch of a model, so that a prompt knows the model it was made for.

Sixty-four rows × sixteen columns of the input embeddings, at fixed places; for a prefix also
sixteen columns of the last layer's keys of sixteen fixed ids. Compared within a tolerance: a
quantized copy of the same model passes, another model does not.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlore.errors import PromptMismatchError

ROWS, COLUMNS, KEY_IDS = 64, 16, 16
TOLERANCE = 0.15  # relative error; 4-bit quantization stays near 0.1, another model is above 1


def spread(total: int, count: int) -> list[int]:
    """`count` indices evenly spread over `range(total)`, fixed for a given size."""
    return [i * total // count for i in range(count)]


def sketch(table: Tensor) -> dict[str, Any]:
    """Picks evenly spread rows and columns of a `[rows, columns]` table, as JSON."""
    rows = spread(table.shape[0], min(ROWS, table.shape[0]))
    columns = spread(table.shape[1], min(COLUMNS, table.shape[1]))
    picked = table[rows][:, columns].detach().float().cpu().numpy().astype("<f4")
    return {
        "rows": int(table.shape[0]),
        "columns": int(table.shape[1]),
        "values": base64.b64encode(picked.tobytes()).decode("ascii"),
    }


def embedding_sketch(embedding: torch.nn.Module) -> dict[str, Any]:
    """Sketches the rows that the model's input embedding gives, scaled as it scales them."""
    weight: Tensor = embedding.weight  # type: ignore[assignment]
    rows = torch.tensor(spread(weight.shape[0], ROWS), device=weight.device)
    with torch.no_grad():
        return sketch(embedding(rows)) | {"rows": int(weight.shape[0])}


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Relative error between two sketches; infinite where their shapes differ."""
    if (ours["rows"], ours["columns"]) != (theirs.get("rows"), theirs.get("columns")):
        return float("inf")
    a = np.frombuffer(base64.b64decode(ours["values"]), dtype="<f4")
    try:
        b = np.frombuffer(base64.b64decode(theirs["values"], validate=True), dtype="<f4")
    except (KeyError, TypeError, ValueError):
        return float("inf")
    if a.shape != b.shape or not np.isfinite(b).all():
        return float("inf")
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-12))


def check(ours: dict[str, Any], theirs: dict[str, Any], prompt: str, model: str) -> None:
    """Raises PromptMismatchError when `theirs` (a prompt's fingerprint) is of another model."""
    for part, sketched in ours.items():
        if not isinstance(theirs.get(part), dict):
            raise PromptMismatchError(
                f"prompt {prompt!r} carries no sketch of its model's {part}, as one of another "
                f"program; expected one to compare with {model!r}; if it was made for that model, "
                "say so: prompt.made_for(model) (softlore convert FILE --model NAME), or pass "
                "check=False (--any-model)"
            )
        error = difference(sketched, theirs[part])
        if error > TOLERANCE:
            size = theirs[part].get("columns")
            raise PromptMismatchError(
                f"prompt {prompt!r} was made for another model (its {part} differ, width "
                f"{size}); expected {model!r} (width {sketched['columns']}); load the model "
                "it was made for, or pass check=False (--any-model) to use it all the same"
            )
