"""Trains control vectors from what two sets of texts do to a model's hidden states.

A *contrast* is two texts before the same passages ("The story is dark." and "The story is merry."),
or two sets of texts of a kind each (ghost stories and jokes). Their effect is a difference of
hidden states for each layer:

    mean      the mean of the differences (Rimsky et al. 2024, arXiv 2312.06681)
    pca       the first principal component of the differences, about zero (Zou et al. 2023, arXiv
              2310.01405; `pca_center` of repeng)
    pca_diff  the same about their mean, as repeng's default has it: how the differences vary

Each layer's difference has that of the layers before it in it, so adding all would be too much. The
vector is scaled, all layers alike, so that with strength 1 it moves the last layer's output as far
along the difference there as it is from the second text to the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from softlore.context import Branch, Tree, TreeBatch, hidden_states
from softlore.decode import sample_passages
from softlore.errors import ConfigError
from softlore.lore.study import OPENERS, as_line
from softlore.measure.score import SINK_TOKENS, in_parts, trunk
from softlore.model import FrozenModel
from softlore.model.steering import changed
from softlore.prompts import ControlVector
from softlore.settings.arguments import COUNT, FROZEN, TEXT, expecting

METHODS = ("mean", "pca", "pca_diff")
PASSAGES, LENGTH = 48, 40  # passages that contexts are compared on, and their tokens
SCALES = 8  # halvings of the interval in which the scale is searched
LARGEST_SCALE = 4.0
Ids = Sequence[int]


@dataclass(frozen=True)
class Contrast:
    """Texts whose hidden states are compared, pair by pair where there are as many of each.

    Attributes:
        positive, negative: for each text, the context before it and its token ids.
    """

    positive: Sequence[tuple[Tree, Ids]]
    negative: Sequence[tuple[Tree, Ids]]


@expecting(model=FROZEN, passages=COUNT)
def contrast_of_contexts(
    model: FrozenModel,
    positive: Sequence[str],
    negative: Sequence[str] = ("",),
    *,
    passages: int = PASSAGES,
    seed: int = 0,
) -> Contrast:
    """What contexts do to passages that the model writes without either.

    Args:
        positive: texts that have the effect; each is put before every passage, as a line of its
            own.
        negative: texts that have the opposite effect, or none; as many, or one.

    Raises:
        ConfigError: no text.
    """
    if passages < 1:
        raise ConfigError(f"passages is {passages}; expected at least 1; raise it")
    positive = _texts(positive, "positive")
    negative = [negative] if isinstance(negative, str) else list(negative) or [""]
    count = -(-passages // len(positive))
    bare = trunk(model, "")
    written = [
        ids for ids in sample_passages(model, bare, OPENERS, count, LENGTH, seed) if len(ids) > 1
    ]
    pairs = [(text, negative[i % len(negative)]) for i, text in enumerate(positive)]
    trees = {text: trunk(model, as_line(text) if text else "") for pair in pairs for text in pair}
    return Contrast(
        [(trees[text], ids) for text, _ in pairs for ids in written],
        [(trees[text], ids) for _, text in pairs for ids in written],
    )


@expecting(model=FROZEN)
def contrast_of_texts(
    model: FrozenModel, positive: Sequence[str], negative: Sequence[str]
) -> Contrast:
    """Texts of one kind, and of another, such as genres or opposite adjectives.

    Raises:
        ConfigError: no text of one of them.
    """
    bare = trunk(model, "")
    limit = (model.context_length or 1 << 20) - bare.length
    sides = [
        [(bare, model.encode(text)[:limit]) for text in _texts(texts, name)]
        for texts, name in ((positive, "positive"), (negative, "negative"))
    ]
    return Contrast(*sides)


@expecting(model=FROZEN, name=TEXT)
@torch.no_grad()
def train_vector(
    model: FrozenModel,
    name: str,
    contrast: Contrast,
    *,
    method: str = "mean",
    layers: Sequence[int] | None = None,
    last_token: bool = False,
    training: dict[str, Any] | None = None,
) -> ControlVector:
    """Trains a control vector on a contrast.

    Args:
        layers: that the vector changes, counted from 0; by default the middle half.
        last_token: compare the last token of each text, in place of the mean over its tokens.
        training: what the contrast was made of, for the record.

    Raises:
        ConfigError: an unknown method or layer; pca of unequal numbers of texts; texts that do the
            same.
        UnsupportedModelError: a model whose layers can't be told apart.
    """
    chosen = _checked_layers(model, layers)
    if method not in METHODS:
        raise ConfigError(f"method is {method!r:.40}; expected {' or '.join(METHODS)}; choose one")
    states = partial(_layer_states, model, last_token=last_token)
    positive, negative = states(contrast.positive), states(contrast.negative)
    if method != "mean":
        directions = _components(positive, negative, centred=method == "pca_diff")
    else:
        directions = positive.mean(0) - negative.mean(0)
    if not directions[chosen].any():
        raise ConfigError(
            "the two sets of texts have the same effect on the model; expected different ones; "
            "give others"
        )
    goal = positive.mean(0)[-1] - negative.mean(0)[-1]
    kept = torch.zeros_like(directions)
    kept[chosen] = directions[chosen]
    scale = _scale(model, contrast.negative, kept, goal, last_token)
    return ControlVector(
        name,
        scale * kept,
        fingerprint=model.fingerprint("embedding"),
        base_model=model.name,
        training={
            "method": method,
            "layers": chosen,
            "texts": [len(contrast.positive), len(contrast.negative)],
            "scale": round(scale, 4),
            **(training or {}),
        },
    )


def middle_layers(n_layers: int) -> list[int]:
    """The middle half of a model's layers, at least one."""
    return list(range(n_layers // 4, max(n_layers // 4 + 1, n_layers - n_layers // 4)))


def _checked_layers(model: FrozenModel, layers: Sequence[int] | None) -> list[int]:
    chosen = middle_layers(model.layers) if layers is None else sorted(set(layers))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < model.layers:
        raise ConfigError(
            f"layers are {list(chosen)}; expected one or more from 0 to {model.layers - 1}, those "
            f"of {model.name!r}; choose others"
        )
    return chosen


def _texts(texts: Sequence[str], name: str) -> list[str]:
    kept = [text for text in ([texts] if isinstance(texts, str) else texts) if text.strip()]
    if not kept:
        raise ConfigError(f"{name} has no text; expected at least one; give some")
    return kept


def _layer_states(
    model: FrozenModel,
    texts: Sequence[tuple[Tree, Ids]],
    last_token: bool,
    steering: Tensor | None = None,
) -> Tensor:
    """What each layer puts out, `[texts, layers, width]`: the mean over each text's tokens.

    Without BOS a text's first tokens are left out, behind a context, too: in a bare text they are
    an attention sink, unlike all others.

    Args:
        steering: control vectors `[layers, width]` that the texts are read with.
    """
    first = 0 if model.bos else SINK_TOKENS
    means: list[Tensor] = []
    for tree, branches in _branches(texts):
        outputs: list[Tensor] = []
        with changed(model, partial(_record, outputs)):
            hidden_states(model, [TreeBatch(replace(tree, steering=steering), branches)])
        lengths = [len(branch.ids) for branch in branches]
        rows = torch.stack(outputs)[:, -sum(lengths) :].float()  # [layers, tokens, width]
        for of_text in rows.split(lengths, dim=1):
            skipped = min(first, of_text.shape[1] - 1)
            means.append(of_text[:, -1] if last_token else of_text[:, skipped:].mean(dim=1))
    return torch.stack(means).cpu()


def _record(outputs: list[Tensor], layer: int, hidden: Tensor) -> None:
    outputs.append(hidden[0])


def _branches(texts: Sequence[tuple[Tree, Ids]]) -> Iterator[tuple[Tree, list[Branch]]]:
    """Texts in order, those of one tree that follow each other in parts that are fast to run."""
    for _, group in groupby(texts, key=lambda text: id(text[0])):
        of_tree = list(group)
        tree = of_tree[0][0]
        for part in in_parts([Branch(ids, tree.end) for _, ids in of_tree]):
            yield tree, part


def _components(positive: Tensor, negative: Tensor, centred: bool) -> Tensor:
    """`[layers, width]`: the first principal component of the pairs' differences.

    It points to where the positive text lies in most pairs, as repeng's does, and is as long as the
    mean of the differences along it.

    Args:
        centred: about their mean, in place of zero.
    """
    if positive.shape != negative.shape:
        raise ConfigError(
            f"pca compares pairs, and there are {len(positive)} positive and {len(negative)} "
            "negative texts; expected as many of each; use the method mean, or leave some out"
        )
    differences = (positive - negative).transpose(0, 1)  # [layers, pairs, width]
    spread = differences - differences.mean(dim=1, keepdim=True) if centred else differences
    components = torch.linalg.svd(spread, full_matrices=False).Vh[:, 0]
    along = (differences * components[:, None]).sum(-1)  # [layers, pairs]
    sign = torch.where((along > 0).sum(-1) < (along < 0).sum(-1), -1.0, 1.0)
    return components * (sign * along.mean(-1).abs())[:, None]


def _scale(
    model: FrozenModel,
    texts: Sequence[tuple[Tree, Ids]],
    directions: Tensor,
    goal: Tensor,
    last_token: bool,
) -> float:
    """The scale at which directions move the last layer's mean output along `goal` by all of it.

    The move grows with the scale as long as that is small; it is searched there, by halving, up to
    `LARGEST_SCALE`: a single layer may not reach it.
    """
    some = texts[:: max(1, len(texts) // 12)]
    wanted = float(goal @ goal)
    base = _layer_states(model, some, last_token).mean(0)[-1]

    def moved(scale: float) -> float:
        states = _layer_states(model, some, last_token, scale * directions)
        return float((states.mean(0)[-1] - base) @ goal)

    low, high = 0.0, 1 / 16
    while high < LARGEST_SCALE and moved(high) < wanted:
        low, high = high, 2 * high
    for _ in range(SCALES):
        middle = (low + high) / 2
        low, high = (middle, high) if moved(middle) < wanted else (low, middle)
    return (low + high) / 2
