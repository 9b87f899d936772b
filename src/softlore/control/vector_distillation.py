"""Distils what texts do to a model into a control vector, by gradient.

The directions of the chosen layers are parameters; the model is frozen. They start from the mean
difference and learn what a soft prompt learns in distillation:

    a text behind a context    the model that has not read the context, with the vector, expects
                               what the model expects that has read it: KL(teacher ‖ steered)
    a text by itself           it is likelier with the vector: its NLL

(Dunefsky and Cohan 2025, arXiv 2502.18862, train steering vectors by gradient, too; AxBench, arXiv
2501.17148, finds trained directions better than differences of means.) Some texts are held out:
the directions that suit those best are kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean

import torch
from torch import Tensor

from softlore.context import Branch, Tree, TreeBatch, hidden_states
from softlore.errors import ConfigError
from softlore.measure.losses import response_nll, teacher_kl
from softlore.measure.score import first_comparable, hidden_states_after, trunk
from softlore.model import FrozenModel

RATE = 1.0  # of Adam, at first, in root mean squares of each layer's direction at the start
BATCH_TOKENS = 480  # of an update
MAX_PASSAGE = 128  # tokens; longer texts are cut into several
HELD_OUT = 1 / 8
INTERVAL = 10  # updates between two measurements
Ids = Sequence[int]


@dataclass(frozen=True)
class Distilled:
    """What distillation came to.

    Attributes:
        directions: `[layers, width]`.
        steps: updates that they were trained for.
        losses: of held-out texts, nats a token: without it, with what it started from, and with it.
    """

    directions: Tensor
    steps: int
    losses: dict[str, float]


@dataclass(frozen=True)
class _Passage:
    """A text `[T]`, and what its tokens from `start` on are compared with.

    `teacher`: hidden states `[T - start, hidden]`; None where the text's own ids are the target.
    """

    ids: list[int]
    start: int
    teacher: Tensor | None


def distil(
    model: FrozenModel,
    start: Tensor,
    texts: Sequence[tuple[Tree, Ids]],
    *,
    max_steps: int,
    seed: int,
    on_progress: Callable[[float], None] | None = None,
) -> Distilled:
    """Trains directions on what is expected in texts; see above.

    Args:
        start: directions `[layers, width]` to start from; rows that are 0 stay so.
        texts: for each, the context before it and its token ids.
        on_progress: called with the share of the updates that are done.

    Raises:
        ConfigError: no text is long enough to learn from.
    """
    bare = trunk(model, "")
    passages = _passages(model, bare, texts)
    if not passages:
        raise ConfigError(
            f"no text has more than {first_comparable(model) + 1} tokens; expected longer ones for "
            "the method distil; give others, or use the method mean"
        )
    random.Random(f"vector/{seed}").shuffle(passages)
    count = max(1, round(HELD_OUT * len(passages)))
    held_out, trained = passages[:count], passages[count:] or passages
    draw = _batches(trained, random.Random(f"vector/{seed}/batches"))
    # Later layers have larger states: each is trained in units of its own.
    units = start.square().mean(dim=1, keepdim=True).sqrt().to(model.device)
    parameter = (start.to(model.device) / units.clamp(min=1e-12)).requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, max_steps))

    def loss(weights: Tensor, batch: Sequence[_Passage]) -> Tensor:
        return _loss(model, replace(bare, steering=weights * units), batch)

    @torch.no_grad()
    def measured(weights: Tensor) -> float:
        return fmean(float(loss(weights, batch)) for batch in _in_batches(held_out))

    of_bare, of_start = measured(torch.zeros_like(parameter)), measured(parameter)
    best, kept, steps = of_start, parameter.detach().clone(), 0
    for step in range(1, max_steps + 1):
        with torch.enable_grad():
            optimizer.zero_grad()
            loss(parameter, next(draw)).backward()
        optimizer.step()
        schedule.step()
        if on_progress is not None:
            on_progress(step / max_steps)
        if step % INTERVAL == 0 or step == max_steps:
            value = measured(parameter)
            if value < best:
                best, kept, steps = value, parameter.detach().clone(), step
    losses = {"bare": of_bare, "start": of_start, "end": best}
    return Distilled(
        (kept * units).to(start), steps, {name: round(loss, 4) for name, loss in losses.items()}
    )


def _passages(model: FrozenModel, bare: Tree, texts: Sequence[tuple[Tree, Ids]]) -> list[_Passage]:
    """Texts with what is expected in them; a long one is cut into several."""
    start = first_comparable(model)
    passages = []
    for _, group in groupby(texts, key=lambda text: id(text[0])):
        of_tree = list(group)
        tree = of_tree[0][0]
        parts = [
            list(ids[i : i + MAX_PASSAGE])
            for _, ids in of_tree
            for i in range(0, len(ids), MAX_PASSAGE)
        ]
        parts = [ids for ids in parts if len(ids) > start + 1]
        teachers: Sequence[Tensor | None] = [None] * len(parts)
        if tree.length > bare.length:
            teachers = hidden_states_after(model, tree, parts, start)
        passages += [_Passage(ids, start, t) for ids, t in zip(parts, teachers, strict=True)]
    return passages


def _in_batches(passages: Sequence[_Passage]) -> list[list[_Passage]]:
    """Passages in order, `BATCH_TOKENS` in a batch."""
    batches: list[list[_Passage]] = []
    tokens = BATCH_TOKENS
    for passage in passages:
        if tokens + len(passage.ids) > BATCH_TOKENS:
            batches.append([])
            tokens = 0
        batches[-1].append(passage)
        tokens += len(passage.ids)
    return batches


def _batches(passages: Sequence[_Passage], draw: random.Random) -> Iterator[list[_Passage]]:
    """Batches without end, in a new order each time that all have been read."""
    while True:
        yield from _in_batches(draw.sample(passages, len(passages)))


def _loss(model: FrozenModel, tree: Tree, passages: Sequence[_Passage]) -> Tensor:
    """Mean loss of the tokens of passages behind a tree, nats."""
    branches = [Branch(passage.ids, tree.end, passage.start) for passage in passages]
    states = hidden_states(model, [TreeBatch(tree, branches)])
    losses = []
    for passage, rows in zip(passages, states.split([b.n_rows for b in branches]), strict=True):
        if passage.teacher is not None:
            losses.append(teacher_kl(model, rows, passage.teacher))
        else:
            ids = torch.tensor(passage.ids[passage.start + 1 :], device=rows.device)
            losses.append(response_nll(model, rows[:-1], ids))
    return torch.cat(losses).mean()
