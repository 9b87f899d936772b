"""Recall and drift: how well responses come back, and how far other text is bent.

A *head* is what stands before: a soft prompt, several of them, plain lore, or nothing ("").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from softlore.context import Branch, Tree, TreeBatch, hidden_states
from softlore.context.compose import ContextLike, compose
from softlore.errors import ContextError
from softlore.lore import Block
from softlore.model import FrozenModel, LanguageModel
from softlore.prompts import Context

LEAVES_AT_ONCE = 32
LOGITS_AT_ONCE = 1 << 25  # float32 logits held at a time: 128 MB
Ids = Sequence[int]


def trunk(model: LanguageModel, conditioning: ContextLike, filler: Ids = ()) -> Tree:
    """A head (which may be empty), and filler after it, as something that leaves hang on."""
    conditioning = Context(conditioning)
    if conditioning.body.pieces or model.bos:
        tree = compose(model, conditioning)
    else:  # prefixes alone, or nothing: no text yet
        for prompt in conditioning.prompts:
            model.check_prompt(prompt)
        tree = Tree([], [prompt.key_values for prompt in conditioning.prefixes])
    if filler:
        tree = tree.then(list(filler))
    return tree


@torch.no_grad()
def branch_hidden_states(model: FrozenModel, tree: Tree, leaves: Sequence[Branch]) -> list[Tensor]:
    """Hidden states `[wanted, hidden]` of each leaf."""
    found: list[Tensor] = []
    for start in range(0, len(leaves), LEAVES_AT_ONCE):
        part = leaves[start : start + LEAVES_AT_ONCE]
        rows = hidden_states(model, [TreeBatch(tree, part)], "expanded")
        found.extend(rows.split([leaf.wanted for leaf in part]))
    return found


# recall ----------------------------------------------------------------------------------------


def recall(
    model: FrozenModel,
    conditioning: ContextLike,
    blocks: Sequence[Block],
    distance: int = 0,
    story: Sequence[Ids] = (),
) -> float:
    """Mean NLL of the responses, nats a token; lower is better.

    Args:
        head: what stands before the call.
        distance: tokens of story between head and call.
        story: token ids to take them from; the mean over all of these is reported.
    """
    return mean(response_losses(model, conditioning, blocks, distance, story))


def response_losses(
    model: FrozenModel,
    conditioning: ContextLike,
    blocks: Sequence[Block],
    distance: int = 0,
    story: Sequence[Ids] = (),
) -> list[float]:
    """NLL of each response, block by block, nats a token; see `recall`."""
    if distance and not any(map(len, story)):
        raise ContextError(f"no story text for a distance of {distance}; expected some; give it")
    fillers = [_stretched(text, distance) for text in story if text] if distance else [[]]
    pairs = _pairs(model, blocks)
    runs = [token_losses(model, trunk(model, conditioning, filler), pairs) for filler in fillers]
    return [mean([float(one.mean()) for one in of_one]) for of_one in zip(*runs, strict=True)]


def fits(
    model: FrozenModel, conditioning: ContextLike, blocks: Sequence[Block], distance: int = 0
) -> bool:
    """Whether the model reads far enough for every response at this distance."""
    longest = max((len(call) + len(answer) for call, answer in _pairs(model, blocks)), default=0)
    return fits_after(model, conditioning, distance + longest)


def fits_after(model: FrozenModel, conditioning: ContextLike, length: int) -> bool:
    """Whether so many tokens of text fit the model's context after a head."""
    tree = trunk(model, conditioning)
    taken = tree.start + tree.length
    return model.context_length is None or taken + length <= model.context_length


def token_losses(model: FrozenModel, tree: Tree, pairs: Sequence[tuple[Ids, Ids]]) -> list[Tensor]:
    """NLL `[len(told)]` of the tokens told in each pair (read, told), by itself after the tree."""
    end = tree.end
    leaves = [
        Branch([*read, *told], end, len(read) - 1, len(read) + len(told) - 1)
        for read, told in pairs
    ]
    hidden = branch_hidden_states(model, tree, leaves)
    return [
        nll(model, rows, torch.tensor(list(told), device=rows.device))
        for rows, (_, told) in zip(hidden, pairs, strict=True)
    ]


def nll(model: FrozenModel, hidden: Tensor, ids: Tensor) -> Tensor:
    """−log p `[R]`, nats, of the ids `[R]` that flat hidden states `[R, hidden]` are to tell.

    Logits are made a part at a time: those of a long text and a large vocabulary do not fit.
    """
    size = max(1, LOGITS_AT_ONCE // model.vocab_size)
    parts = [
        -log_softmax(model.logits(rows), dim=-1).gather(1, told[:, None])[:, 0]
        for rows, told in zip(hidden.split(size), ids.split(size), strict=True)
    ]
    return torch.cat(parts)


def mean(values: Sequence[float]) -> float:
    """The mean; not a number for no values."""
    return sum(values) / len(values) if values else math.nan


def _pairs(model: FrozenModel, blocks: Sequence[Block]) -> list[tuple[list[int], list[int]]]:
    return [
        (model.encode(block.call), model.encode(response, inside=True))
        for block in blocks
        for response in block.responses
    ]


def _stretched(ids: Ids, length: int) -> list[int]:
    return (list(ids) * (length // len(ids) + 1))[:length]


# drift -----------------------------------------------------------------------------------------


def passage_hidden_states(
    model: FrozenModel, conditioning: ContextLike, passages: Sequence[Ids]
) -> list[Tensor]:
    """Hidden states `[len, hidden]` of each passage after a head."""
    tree = trunk(model, conditioning)
    return branch_hidden_states(model, tree, [Branch(list(ids), tree.end) for ids in passages])


def kl(model: FrozenModel, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> float:
    """Mean KL(teacher ‖ student) of next tokens, nats a token, from `thoughts` of both."""
    total, tokens = 0.0, 0
    for theirs, ours in zip(teacher, student, strict=True):
        p, q = (log_softmax(model.logits(rows), dim=-1) for rows in (theirs, ours))
        total += float((p.exp() * (p - q)).sum())
        tokens += len(p)
    return total / tokens if tokens else math.nan


def divergence(
    model: FrozenModel, teacher: ContextLike, student: ContextLike, passages: Sequence[Ids]
) -> float:
    """Mean KL(teacher ‖ student) over the passages' tokens, nats a token."""
    return kl(
        model,
        passage_hidden_states(model, teacher, passages),
        passage_hidden_states(model, student, passages),
    )


def drift(model: FrozenModel, conditioning: ContextLike, passages: Sequence[Ids]) -> float:
    """How far unrelated text is bent: mean KL(bare ‖ with head), nats a token."""
    return divergence(model, "", conditioning, passages)


def fidelity(
    model: FrozenModel, text: ContextLike, soft: ContextLike, passages: Sequence[Ids]
) -> float:
    """How much of what a text does a soft prompt does: 1 − KL(text ‖ soft) / KL(text ‖ bare).

    1 is all of it, 0 no more than the bare model, below 0 less than that; not a number where the
    text does nothing. The passages are ones that the model wrote after the text
    (`decode.sample_passages`), not those it was trained on.
    """
    teacher, bare, ours = (
        passage_hidden_states(model, conditioning, passages) for conditioning in (text, "", soft)
    )
    whole = kl(model, teacher, bare)
    return 1 - kl(model, teacher, ours) / whole if whole > 0 else math.nan
