"""Trains control vectors from what two sets of texts do to a model's hidden states.

A *contrast* is two texts before the same passages ("The story is dark." and "The story is merry."),
or two sets of texts of a kind each (ghost stories and jokes). Their effect is a difference of
hidden states for each layer:

    mean      the mean of the differences (Rimsky et al. 2024, arXiv 2312.06681)
    pca       the first principal component of the differences, about zero (Zou et al. 2023, arXiv
              2310.01405; `pca_center` of repeng)
    pca_diff  the same about their mean, as repeng's default has it: how the differences vary
    distil    directions that are trained, by gradient, to have the effect of the positive texts

Each layer's difference has that of the layers before it in it, so adding all would be too much. The
vector is scaled, all layers alike, so that with strength 1 it moves the last layer's output as far
along the difference there as it is from the second text to the first. Distillation starts from
this, and needs no further scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from softlore.context import Branch, Tree, TreeBatch, hidden_states
from softlore.control.vector_distillation import distil
from softlore.decode.passages import sample_openings
from softlore.errors import ConfigError
from softlore.lore.study import OPENERS, as_line
from softlore.measure.score import SINK_TOKENS, in_parts, trunk
from softlore.model import FrozenModel
from softlore.model.steering import changed
from softlore.prompts import ControlVector
from softlore.settings.arguments import COUNT, FROZEN, TEXT, expecting

METHODS = ("mean", "pca", "pca_diff", "distil")
PASSAGES, LENGTH = 48, 40  # passages that contexts are compared on, and their tokens
DISTILLED, MAX_STEPS = 192, 80  # passages that distillation does well with, and its updates
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
    after_positive: bool = False,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> Contrast:
    """What contexts do to passages that the model writes.

    Args:
        positive: texts that have the effect; each is put before every passage, as a line of its
            own.
        negative: texts that have the opposite effect, or none; as many, or one.
        passages: to write; distillation wants some four times as many as the other methods.
        after_positive: write them after the positive texts, as distillation learns from, in place
            of after nothing.

    Raises:
        ConfigError: no text.
    """
    if passages < 1:
        raise ConfigError(f"passages is {passages}; expected at least 1; raise it")
    positive = _texts(positive, "positive")
    negative = [negative] if isinstance(negative, str) else list(negative) or [""]
    texts = [(text, negative[i % len(negative)]) for i, text in enumerate(positive)]
    trees = {text: trunk(model, as_line(text) if text else "") for pair in texts for text in pair}
    pairs = [(trees[a], trees[b]) for a, b in texts]
    count = -(-passages // len(pairs))
    before = [tree for tree, _ in pairs] if after_positive else [trunk(model, "")]
    contexts = [(tree, OPENERS[i % len(OPENERS)]) for tree in before for i in range(count)]
    written = sample_openings(model, contexts, LENGTH, seed, on_progress=on_progress)
    of_each = [written[i * count : (i + 1) * count] for i in range(len(before))]
    if not after_positive:
        of_each *= len(pairs)
    kept = [
        (pair, ids)
        for pair, of_pair in zip(pairs, of_each, strict=True)
        for ids in of_pair
        if len(ids) > 1
    ]
    return Contrast([(a, ids) for (a, _), ids in kept], [(b, ids) for (_, b), ids in kept])


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


@expecting(model=FROZEN, name=TEXT, max_steps=COUNT, seed=COUNT)
@torch.no_grad()
def train_vector(
    model: FrozenModel,
    name: str,
    contrast: Contrast,
    *,
    method: str = "mean",
    layers: Sequence[int] | None = None,
    last_token: bool = False,
    max_steps: int = MAX_STEPS,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
    training: dict[str, Any] | None = None,
) -> ControlVector:
    """Trains a control vector on a contrast.

    Args:
        layers: that the vector changes, counted from 0; by default the middle half, and for
            distillation all but the outermost.
        last_token: compare the last token of each text, in place of the mean over its tokens.
        max_steps, seed: of distillation, which starts from the mean; it ends where held-out texts
            gain no more.
        on_progress: called with the share of distillation's updates that are done.
        training: what the contrast was made of, for the record.

    Raises:
        ConfigError: an unknown method or layer; pca of unequal numbers of texts; texts that do the
            same.
        UnsupportedModelError: a model whose layers can't be told apart.
    """
    if method not in METHODS:
        raise ConfigError(f"method is {method!r:.40}; expected {' or '.join(METHODS)}; choose one")
    if layers is None:
        layers = (inner_layers if method == "distil" else middle_layers)(model.layers)
    chosen = _checked_layers(model, layers)
    states = partial(_layer_states, model, last_token=last_token)
    positive, negative = states(contrast.positive), states(contrast.negative)
    if method.startswith("pca"):
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
    kept, distilled = scale * kept, {}
    if method == "distil":
        result = distil(
            model, kept, contrast.positive, max_steps=max_steps, seed=seed, on_progress=on_progress
        )
        kept, distilled = result.directions, {"steps": result.steps, "held_out_loss": result.losses}
    return ControlVector(
        name,
        kept,
        fingerprint=model.fingerprint("embedding"),
        base_model=model.name,
        training={
            "method": method,
            "layers": chosen,
            "texts": [len(contrast.positive), len(contrast.negative)],
            "scale": round(scale, 4),
            **distilled,
            **(training or {}),
        },
    )


def middle_layers(n_layers: int) -> list[int]:
    """The middle half of a model's layers, at least one."""
    return list(range(n_layers // 4, max(n_layers // 4 + 1, n_layers - n_layers // 4)))


def inner_layers(n_layers: int) -> list[int]:
    """All layers but some at both ends: the first one, and a sixteenth."""
    return list(range(max(1, n_layers // 16), max(2, n_layers - n_layers // 16)))


def _checked_layers(model: FrozenModel, layers: Sequence[int]) -> list[int]:
    chosen = sorted(set(layers))
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
