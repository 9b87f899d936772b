"""The shape of a soft prompt's tensor, by kind, and how large it may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from softlore.errors import PromptError

Kind = Literal["embedding", "prefix"]
KINDS: tuple[str, ...] = get_args(Kind)

MAX_TOKENS = 2047
MAX_TENSOR_BYTES = 2 * 1024**3

# The largest size of each axis, in order, and its name. Generous: ten times today's models.
AXES: dict[str, tuple[tuple[str, int], ...]] = {
    "embedding": (("n_tokens", MAX_TOKENS), ("width", 262_144)),
    "prefix": (
        ("layers", 1024),
        ("key and value", 2),
        ("kv_heads", 1024),
        ("n_tokens", MAX_TOKENS),
        ("head_dim", 8192),
    ),
}


def describe_axes(kind: Kind) -> str:
    """The axes of a kind as messages show them: `[n_tokens, width]`."""
    return "[" + ", ".join("2" if axis == "key and value" else axis for axis, _ in AXES[kind]) + "]"


def check_kind(kind: object) -> Kind:
    """Returns `kind`, or raises PromptError unless it is one of the two."""
    if kind not in KINDS:
        raise PromptError(f"prompt kind {kind!r:.80} is unknown; expected 'embedding' or 'prefix'")
    return kind  # type: ignore[return-value]


def check_shape(kind: Kind, shape: Sequence[int]) -> None:
    """Raises PromptError unless `shape` is one that `kind` can have, within the limits."""
    axes, found = AXES[kind], list(shape)
    if len(found) != len(axes):
        raise PromptError(
            f"the tensor's shape {found} has {len(found)} axes; expected {len(axes)} for the "
            f"{kind} kind: {describe_axes(kind)}"
        )
    for size, (axis, most) in zip(found, axes, strict=True):
        least = 2 if axis == "key and value" else 1
        if not least <= size <= most:
            raise PromptError(
                f"the tensor's shape {found} has {size} for {axis}; expected {least} to {most} in "
                f"{describe_axes(kind)}"
            )
    size = 4 * math.prod(found)
    if size > MAX_TENSOR_BYTES:
        raise PromptError(
            f"the tensor's shape {found} takes {size:,} bytes in float32; expected at most "
            f"{MAX_TENSOR_BYTES:,}; use fewer tokens"
        )


def tokens_of(kind: Kind, shape: Sequence[int]) -> int:
    """How many tokens a tensor of this shape stands for."""
    return int(shape[0] if kind == "embedding" else shape[3])
