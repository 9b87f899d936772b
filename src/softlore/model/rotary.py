"""How a model turns its keys by position: found out by trying, layer by layer.

Prefixes that stand side by side on other engines take positions of their own there, so that their
keys must be turned on (see `vllm_connector.files`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softlore.vllm_connector.files import rotated

if TYPE_CHECKING:
    from softlore.model.frozen import FrozenModel

APART = 7  # positions between the two readings that are compared
SAME = 0.02  # of the largest key: bfloat16 rounds to some hundredths
LAYOUTS = ("halves", "neighbours")


@dataclass(frozen=True)
class Rotary:
    """The rotation of every layer.

    Attributes:
        layout: which columns turn together, see `rotated`.
        inv_freq: `[layers, pairs]`, radians a position.
    """

    layout: str
    inv_freq: Tensor


@torch.no_grad()
def rotary_of(model: FrozenModel) -> Rotary | None:
    """The model's rotation; None where its positions are not rotary, or its layers differ."""
    ids = list(range(3, min(11, model.vocab_size)))
    near, far = _keys(model, ids, 0), _keys(model, ids, APART)
    candidates = _candidates(model)
    for layout in LAYOUTS:
        found = [_fitting(candidates, a, b, layout) for a, b in zip(near, far, strict=True)]
        fitting = [one for one in found if one is not None]
        if len(fitting) == len(found) and len({len(one) for one in fitting}) == 1:
            return Rotary(layout, torch.stack(fitting))
    return None


def _keys(model: FrozenModel, ids: list[int], start: int) -> list[Tensor]:
    """Keys `[kv_heads, n, head_dim]` of each layer, of a text that starts at a position.

    Positions that only say how far things are from each other leave all else as it was.
    """
    rows = model.embed_ids(ids)[None]
    positions = torch.arange(start, start + len(ids), device=model.device)[None]
    visible = torch.ones(1, len(ids), len(ids), dtype=torch.bool, device=model.device).tril()
    kept = model.hidden(rows, positions, visible, keep=True)[1] or []
    return [key[0].float().cpu() for key, _ in kept]


def _candidates(model: FrozenModel) -> list[Tensor]:
    """Frequencies that the model names, and those of models that keep a table of sines instead."""
    found = [
        buffer.float().cpu()
        for name, buffer in model.hf.named_buffers()
        if name.endswith("inv_freq") and "original" not in name and buffer.dim() == 1
    ]
    config = model.hf.config.get_text_config()
    for width in {getattr(config, "rotary_dim", None), model.head_dim}:
        if width:
            found.append(1.0 / 10000 ** (torch.arange(0, width, 2) / width))
    return found


def _fitting(candidates: list[Tensor], near: Tensor, far: Tensor, layout: str) -> Tensor | None:
    """The frequencies that turn the near keys into the far ones."""
    scale = float(near.abs().max())
    for inv_freq in candidates:
        if 2 * len(inv_freq) > near.shape[-1]:
            continue
        turned = rotated(near[None], (inv_freq * APART)[None], layout)[0]
        if torch.allclose(turned, far, atol=SAME * scale, rtol=0):
            return inv_freq
    return None
