"""Proof, when a model is loaded, that it gives its own logits through softlore's door.

Families are told apart by name, but one setting can change what a family does, and families
nobody thought of come every month. So every model is tried on a tree before anything is built
on it: none is silently wrong, and what cannot be driven is refused in one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softlore.errors import ModelError, SoftloreError, UnsupportedModelError
from softlore.model.fingerprint import spread
from softlore.model.kv_cache import KVCache

if TYPE_CHECKING:
    from softlore.model.frozen import FrozenModel

LENGTH = 24  # tokens of trunk and branch; more where a short window would not show
LIMITS = {torch.float32: 1e-3, torch.float64: 1e-3}  # error, in spreads of the logits
LOOSE = 0.2  # in 16 bits and below: rounding stays under 0.1, a wrong mask is above 1


@contextmanager
def refusing(model_type: str) -> Iterator[None]:
    """Turns whatever a strange model raises into one clear refusal."""
    try:
        yield
    except SoftloreError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"a model of type {model_type!r} does not fit the memory ({first_line(error)}); "
            "expected room for its weights and a little more; load it with a smaller dtype, or a "
            "smaller model"
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
            f"model type {model_type!r} cannot be driven by embeddings, positions and masks "
            f"({type(error).__name__}: {first_line(error)}); expected a decoder with plain "
            "attention; use another model"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message (with the next if it announces that), or its type."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


@torch.no_grad()
def verify_forward(model: FrozenModel) -> None:
    """Compares the model's logits with those through the door, on a trunk with two branches.

    Once packed in one row, and once with the trunk's keys and values handed on.

    Raises:
        UnsupportedModelError: when they differ.
    """
    window = model.family.sliding_window or 0
    n = min(window + 16 if 0 < window <= 64 else LENGTH, model.context_length or LENGTH)
    half = n // 2
    ids = torch.tensor(spread(model.vocab_size, n), device=model.device)
    branches = torch.stack([ids[half:].flip(0), ids[half:]])
    rows = torch.cat([ids[:half].expand(2, -1), branches], dim=1)  # [2, n]
    expected = model.hf(input_ids=rows).logits.float()[:, half:].flatten(0, 1)
    spread_of_logits = expected.std().clamp(min=1e-6)
    limit = LIMITS.get(model.dtype, LOOSE)
    for hidden in _through_the_door(model, ids[:half], branches):
        error = (model.logits(hidden) - expected).square().mean().sqrt() / spread_of_logits
        if not error < limit:
            raise UnsupportedModelError(
                f"model type {model.family.model_type!r}, as configured, gives other logits "
                f"through softlore's splice than by itself (error {float(error):.2g} of their "
                f"spread, expected below {limit}); use another model"
            )


def _through_the_door(model: FrozenModel, trunk: Tensor, branches: Tensor) -> Iterator[Tensor]:
    """Hidden states of both branches in a row, first packed, then under the trunk's cache."""
    half, n = len(trunk), len(trunk) + branches.shape[1]
    device = model.device
    rows = model.embed_ids(torch.cat([trunk, branches.flatten()])[None])
    places = torch.arange(n, device=device)[None]
    places = torch.cat([places, places[:, half:]], dim=1)
    total = places.shape[1]
    seen = torch.ones(1, total, total, dtype=torch.bool, device=device).tril()
    seen[:, n:, half:n] = False  # the second branch does not see the first
    packed, _ = model.hidden(rows, places, seen)
    yield packed[0, half:]
    head = rows[:, :half], places[:, :half], seen[:, :half, :half]
    kept = model.hidden(*head, keep=True)[1] or []
    past = KVCache(kept, places[:, :half], torch.ones(1, half, dtype=torch.bool, device=device))
    tail, _ = model.hidden(rows[:, half:], places[:, half:], seen[:, half:], past)
    yield tail[0]
