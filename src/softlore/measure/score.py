"""Recall (NLL of the responses) and drift (KL to the bare model on unrelated text).

A *conditioning* is the context before a text: soft prompts, plain lore, both, or nothing ("").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softlore.context import Branch, Tree, TreeBatch, free_places, hidden_states
from softlore.context.compose import ContextLike, compose
from softlore.decode import WeightedTrees
from softlore.errors import ContextError
from softlore.lore import Block
from softlore.measure.losses import mean_kl, response_nll
from softlore.model import FrozenModel, LanguageModel
from softlore.prompts import Context

BRANCHES_AT_ONCE = 32
SINK_TOKENS = 2  # tokens at the start of a bare text without BOS that predict unlike all others
Ids = Sequence[int]


def trunk(model: LanguageModel, conditioning: ContextLike, filler: Ids = ()) -> Tree:
    """A conditioning, which may be empty, and filler after it, for branches to hang on.

    Late prefixes are seen by the branches alone, not by the filler.
    """
    conditioning = Context(conditioning)
    if conditioning.body.pieces or model.bos:
        tree = compose(model, conditioning)
    else:  # prefixes alone, or nothing: no text yet
        for prompt in conditioning.prompts:
            model.check_prompt(prompt)
        tree = Tree([], [prompt.key_values for prompt in conditioning.prefixes])
    late = all(prompt.late for prompt in conditioning.prefixes)
    if late and conditioning.prefixes:
        places = free_places(tree.start, model.context_length)
        nodes = [replace(node, sees=()) for node in tree.nodes]
        tree = replace(tree, nodes=nodes, at=places)
    return tree.then(list(filler), sees=() if late else None) if filler else tree


@torch.no_grad()
def branch_hidden_states(
    model: FrozenModel, tree: Tree, branches: Sequence[Branch]
) -> list[Tensor]:
    """Hidden states `[n_rows, hidden]` of each branch."""
    states: list[Tensor] = []
    for start in range(0, len(branches), BRANCHES_AT_ONCE):
        part = branches[start : start + BRANCHES_AT_ONCE]
        rows = hidden_states(model, [TreeBatch(tree, part)], "expanded")
        states.extend(rows.split([branch.n_rows for branch in part]))
    return states


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
        conditioning: what stands before the call.
        distance: tokens of story between conditioning and call.
        story: token ids to take them from; the mean over all of these is returned.
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
        raise ContextError(f"no story text for a distance of {distance}; expected some; pass story")
    fillers = [_repeated(text, distance) for text in story if text] if distance else [[]]
    pairs = _pairs(model, blocks)
    runs = [token_losses(model, trunk(model, conditioning, filler), pairs) for filler in fillers]
    return [
        mean([float(losses.mean()) for losses in of_response])
        for of_response in zip(*runs, strict=True)
    ]


def fits(
    model: FrozenModel, conditioning: ContextLike, blocks: Sequence[Block], distance: int = 0
) -> bool:
    """Whether every call and response fits the model's context at this distance."""
    longest = max((len(call) + len(answer) for call, answer in _pairs(model, blocks)), default=0)
    return fits_after(model, conditioning, distance + longest)


def fits_after(model: FrozenModel, conditioning: ContextLike, length: int) -> bool:
    """Whether `length` tokens of text fit the model's context after a conditioning."""
    tree = trunk(model, conditioning)
    limit = model.context_length
    return limit is None or tree.start + tree.length + length <= limit


def token_losses(model: FrozenModel, tree: Tree, pairs: Sequence[tuple[Ids, Ids]]) -> list[Tensor]:
    """NLL `[len(ids)]` of the ids of each pair (text before, ids), each pair alone after a tree."""
    end = tree.end
    branches = [
        Branch([*before, *ids], end, len(before) - 1, len(before) + len(ids) - 1)
        for before, ids in pairs
    ]
    hidden = branch_hidden_states(model, tree, branches)
    return [
        response_nll(model, rows, torch.tensor(list(ids), device=rows.device))
        for rows, (_, ids) in zip(hidden, pairs, strict=True)
    ]


def mean(values: Sequence[float]) -> float:
    """The mean; NaN for no values."""
    return sum(values) / len(values) if values else math.nan


def _pairs(model: FrozenModel, blocks: Sequence[Block]) -> list[tuple[list[int], list[int]]]:
    return [
        (model.encode(block.call), model.encode(response, inside=True))
        for block in blocks
        for response in block.responses
    ]


def _repeated(ids: Ids, length: int) -> list[int]:
    return (list(ids) * (length // len(ids) + 1))[:length]


# drift -----------------------------------------------------------------------------------------


def hidden_states_after(
    model: FrozenModel, before: Tree | WeightedTrees, passages: Sequence[Ids], start: int = 0
) -> list[Tensor]:
    """Hidden states `[len - start, hidden]` of each passage after a tree, or after several.

    Of a passage that has no token at `start`, that of its last token is returned.

    Of several trees, whose weights sum to 1, the weighted sum of hidden states is returned. The
    output layer is linear, so its logits are, up to a constant, those of the mixed
    log-probabilities.
    """
    trees = [(before, 1.0)] if isinstance(before, Tree) else before
    mixed: list[Tensor] = []
    for tree, weight in trees:
        branches = [Branch(list(ids), tree.end, min(start, len(ids) - 1)) for ids in passages]
        states = [weight * rows for rows in branch_hidden_states(model, tree, branches)]
        mixed = [a + b for a, b in zip(mixed, states, strict=True)] if mixed else states
    return mixed


def passage_hidden_states(
    model: FrozenModel, conditioning: ContextLike, passages: Sequence[Ids], start: int = 0
) -> list[Tensor]:
    """Hidden states `[len - start, hidden]` of each passage after a conditioning."""
    return hidden_states_after(model, trunk(model, conditioning), passages, start)


def divergence(
    model: FrozenModel,
    teacher: ContextLike,
    student: ContextLike,
    passages: Sequence[Ids],
    start: int = 0,
) -> float:
    """Mean KL(teacher ‖ student) over the passages' tokens from `start` on, nats a token."""
    states = (passage_hidden_states(model, c, passages, start) for c in (teacher, student))
    return mean_kl(model, *states)


def comparable_hidden_states(
    model: FrozenModel, conditioning: ContextLike, passages: Sequence[Ids]
) -> list[Tensor]:
    """`passage_hidden_states` of the tokens that compare with the bare model's.

    See `first_comparable`.
    """
    return passage_hidden_states(model, conditioning, passages, first_comparable(model))


def first_comparable(model: LanguageModel) -> int:
    """The first token of a bare text whose hidden state compares with one behind a context.

    A model without BOS makes an attention sink of a text's first token, whatever it is: its state
    predicts little, and that of the next ones suffers. Behind any context the sink is elsewhere. A
    prompt that is trained to reproduce the first states makes a sink of the first token that
    follows it, and impairs the calls there.
    """
    return 0 if model.bos else SINK_TOKENS


def drift(model: FrozenModel, conditioning: ContextLike, passages: Sequence[Ids]) -> float:
    """Mean KL(bare ‖ with the conditioning) on unrelated text, nats a token.

    See `first_comparable` for the tokens that are left out where the model has no BOS.
    """
    return divergence(model, "", conditioning, passages, first_comparable(model))
