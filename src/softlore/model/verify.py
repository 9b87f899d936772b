"""Verifies that a loaded model gives its own logits through softlore's forward.

A family's quirks are known by its name (`families.py`), but one setting can change what a family
does, and new families appear every month. So each model is run on a small tree when it is loaded,
and rejected if its logits do not match: no model is silently wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from softlore.errors import ModelError, SoftloreError, UnsupportedModelError
from softlore.model.attention import kernels
from softlore.model.fingerprint import spread
from softlore.model.kv_cache import KVCache

LENGTH = 24  # tokens of trunk and branch; with a short window, enough to leave it
LIMITS = {torch.float32: 1e-3, torch.float64: 1e-3}  # RMS error / standard deviation of the logits
LOOSE_LIMIT = 0.2  # in 16 bits and below: rounding stays under 0.1, a wrong mask is above 1


@contextmanager
def rejecting_unsupported(model_type: str) -> Iterator[None]:
    """Raises errors of running a model as UnsupportedModelError, with a message of one line.

    Running out of memory raises ModelError; a SoftloreError passes through unchanged.
    """
    try:
        yield
    except SoftloreError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"a model of type {model_type!r} does not fit into memory ({first_line(error)}); "
            "expected room for its weights and a little more; use a smaller dtype, or a smaller "
            "model"
        ) from error
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UnsupportedModelError(
            f"model type {model_type!r} cannot be run on embeddings, positions and masks "
            f"({type(error).__name__}: {first_line(error)}); expected a decoder with plain "
            "attention; use another model"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message (two where it ends in a colon), or its type."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


@torch.no_grad()
def verify_forward(model: Any) -> None:
    """Compares logits of transformers' own forward with those of `model.hidden`.

    Both read a trunk with two branches, `[trunk, a]` and `[trunk, b]`. transformers reads them as
    two rows; `hidden` reads them packed into one row, then with the trunk in the cache:

        positions   0 … half-1 | half … n-1 | half … n-1
        tokens        trunk    |  branch a  |  branch b      b does not see a

    Args:
        model: a FrozenModel (which imports this module).

    Raises:
        UnsupportedModelError: the logits do not match.
    """
    window, most = model.family.sliding_window or 0, model.family.context_length or LENGTH
    n = min(window + 16 if 0 < window <= 64 else LENGTH, most)
    half = n // 2
    ids = torch.tensor(spread(model.vocab_size, n), device=model.device)
    branches = torch.stack([ids[half:].flip(0), ids[half:]])
    rows = torch.cat([ids[:half].expand(2, -1), branches], dim=1)  # [2, n]
    with kernels(model.device):
        expected = model.hf(input_ids=rows).logits.float()[:, half:].flatten(0, 1)
    deviation = expected.std().clamp(min=1e-6)
    quantized = getattr(model.hf, "is_quantized", False)
    limit = LOOSE_LIMIT if quantized else LIMITS.get(model.dtype, LOOSE_LIMIT)
    for hidden in _branch_states(model, ids[:half], branches):
        error = (model.logits(hidden) - expected).square().mean().sqrt() / deviation
        if not error < limit:
            raise UnsupportedModelError(
                f"model type {model.family.model_type!r}, as configured, gives other logits "
                f"through softlore's forward than by itself (error {float(error):.2g} of their "
                f"standard deviation, expected below {limit}); use another model"
            )


def _branch_states(model: Any, trunk: Tensor, branches: Tensor) -> Iterator[Tensor]:
    """Hidden states `[2 · (n - half), hidden]` of both branches: packed, then cached."""
    half, n = len(trunk), len(trunk) + branches.shape[1]
    device = trunk.device
    rows = model.embed_ids(torch.cat([trunk, branches.flatten()])[None])
    positions = torch.arange(n, device=device)[None]
    positions = torch.cat([positions, positions[:, half:]], dim=1)
    total = positions.shape[1]
    visible = torch.ones(1, total, total, dtype=torch.bool, device=device).tril()
    visible[:, n:, half:n] = False  # the second branch does not see the first
    packed, _ = model.hidden(rows, positions, visible)
    yield packed[0, half:]

    trunk_only = rows[:, :half], positions[:, :half], visible[:, :half, :half]
    pairs = model.hidden(*trunk_only, keep=True)[1] or []
    all_visible = torch.ones(1, half, dtype=torch.bool, device=device)
    past = KVCache(pairs, positions[:, :half], all_visible)
    cached, _ = model.hidden(rows[:, half:], positions[:, half:], visible[:, half:], past)
    yield cached[0]
