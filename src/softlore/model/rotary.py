"""Finds how a model rotates its keys by position: columns and frequencies.

Several prefixes side by side take positions of their own on other engines, so their keys have to
be rotated to those positions (see `vllm_connector.files`). transformers has no common interface to
a model's rotation, so it is found by trial: the same ids are read from position 0 and from position
`SHIFT`. With relative positions all hidden states are the same both times, and the keys differ by
the rotation alone:

    far[layer] == rotate(near[layer], inv_freq × SHIFT, layout)      [kv_heads, n, head_dim]

For each layout, every layer takes the first of the candidate frequencies (see
`candidate_frequencies`) for which that holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softlore.vllm_connector.files import rotated

SHIFT = 7  # positions between the two readings
TOLERANCE = 0.02  # of the largest key: bfloat16 rounds to some hundredths
LAYOUTS = ("halves", "neighbours")  # which columns rotate together, see `rotated`


@dataclass(frozen=True)
class Rotary:
    """The rotation of every layer.

    Attributes:
        layout: one of `LAYOUTS`.
        inv_freq: `[layers, pairs]`, radians per position.
    """

    layout: str
    inv_freq: Tensor


def find_rotary(near: list[Tensor], far: list[Tensor], candidates: list[Tensor]) -> Rotary | None:
    """The rotation between two readings of the same ids.

    Args:
        near: keys `[kv_heads, n, head_dim]` of each layer, read from position 0.
        far: the same, read from position `SHIFT`.
        candidates: frequencies to try, each `[pairs]`.

    Returns:
        None where positions are not rotary, or where layers rotate different numbers of columns.
    """
    for layout in LAYOUTS:
        layers = [_matching(candidates, a, b, layout) for a, b in zip(near, far, strict=True)]
        matched = [inv_freq for inv_freq in layers if inv_freq is not None]
        if len(matched) == len(layers) and len({len(inv_freq) for inv_freq in matched}) == 1:
            return Rotary(layout, torch.stack(matched))
    return None


def candidate_frequencies(hf: Any, head_dim: int) -> list[Tensor]:
    """Every `inv_freq` buffer of a model, then the usual frequencies of base 10000.

    The latter are for models that keep a table of sines instead (GPT-J), over `rotary_dim` columns
    or all of `head_dim`.
    """
    candidates = [
        buffer.float().cpu()
        for name, buffer in hf.named_buffers()
        if name.endswith("inv_freq") and "original" not in name and buffer.dim() == 1
    ]
    rotary_dim = getattr(hf.config.get_text_config(), "rotary_dim", None)
    for width in {rotary_dim or head_dim, head_dim}:
        candidates.append(1.0 / 10000 ** (torch.arange(0, width, 2) / width))
    return candidates


def _matching(candidates: list[Tensor], near: Tensor, far: Tensor, layout: str) -> Tensor | None:
    """The frequencies that rotate the near keys onto the far ones."""
    tolerance = TOLERANCE * float(near.abs().max())
    for inv_freq in candidates:
        if 2 * len(inv_freq) > near.shape[-1]:
            continue
        turned = rotated(near[None], (inv_freq * SHIFT)[None], layout)[0]
        if torch.allclose(turned, far, atol=tolerance, rtol=0):
            return inv_freq
    return None
