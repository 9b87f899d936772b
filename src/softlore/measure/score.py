"""Recall (NLL of the responses) and drift (KL to the bare model on unrelated text).

A *conditioning* is the context before a text: soft prompts, plain lore, both, or nothing ("").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from softlore.context import (
    Branch,
    Tree,
    TreeBatch,
    free_places,
    hidden_states,
    read_trunks,
)
from softlore.context.compose import ContextLike, compose
from softlore.decode import WeightedTrees
from softlore.errors import ContextError
from softlore.lore import Block
from softlore.measure.losses import mean_kl, response_nll
from softlore.model import FrozenModel, LanguageModel
from softlore.prompts import Context
from softlore.prompts.control_vector import sum_vectors

# Tokens of branches in one pass: enough for matrix products to be fast, and few enough for the
# masked attention between branches to cost little.
TOKENS_AT_ONCE = 1024
SINK_TOKENS = 2  # tokens at the start of a bare text without BOS that predict unlike all others
Ids = Sequence[int]


def trunk(model: LanguageModel, conditioning: ContextLike, filler: Ids = ()) -> Tree:
    """A conditioning, which may be empty, and filler after it, for branches to hang on.

    Late prefixes are seen by the branches alone, not by the filler.
    """
    return _trunk(model, conditioning, [filler] if filler else [])


def _trunk(model: LanguageModel, conditioning: ContextLike, filler: Sequence[Ids]) -> Tree:
    """`trunk`, with a node for each part of the filler."""
    conditioning = Context(conditioning)
    if conditioning.body.pieces or model.bos:
        tree = compose(model, conditioning)
    else:  # prefixes alone, or nothing: no text yet
        for prompt in conditioning.prompts:
            model.check_prompt(prompt)
        steering = sum_vectors(model, conditioning.vectors)
        prefixes = [prompt.key_values for prompt in conditioning.prefixes]
        tree = Tree([], prefixes, steering=steering)
    late = all(prompt.late for prompt in conditioning.prefixes)
    if late and conditioning.prefixes:
        places = free_places(tree.start, model.context_length)
        nodes = [replace(node, sees=()) for node in tree.nodes]
        tree = replace(tree, nodes=nodes, at=places)
    for part in filler:
        tree = tree.then(list(part), sees=() if late else None)
    return tree


@torch.no_grad()
def branch_hidden_states(
    model: FrozenModel, tree: Tree, branches: Sequence[Branch]
) -> list[Tensor]:
    """Hidden states `[n_rows, hidden]` of each branch. The tree is run once."""
    parts = in_parts(branches)
    if len(parts) > 1 and tree.n_rows:
        (tree,) = read_trunks(model, [tree])
    states: list[Tensor] = []
    for part in parts:
        rows = hidden_states(model, [TreeBatch(tree, part)])
        states.extend(rows.split([branch.n_rows for branch in part]))
    return states


def in_parts(branches: Sequence[Branch]) -> list[list[Branch]]:
    """The branches in order, `TOKENS_AT_ONCE` in a part; one that is longer has its own."""
    parts: list[list[Branch]] = []
    tokens = 0
    for branch in branches:
        tokens += len(branch.ids)
        if not parts or tokens > TOKENS_AT_ONCE:
            parts.append([])
            tokens = len(branch.ids)
        parts[-1].append(branch)
    return parts


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
    return _losses_at(model, conditioning, [(blocks, distance)], story)[0]


def response_losses_after(model: FrozenModel, tree: Tree, blocks: Sequence[Block]) -> list[float]:
    """NLL of each response, block by block, nats a token, after a tree."""
    return [float(losses.mean()) for losses in token_losses(model, tree, _pairs(model, blocks))]


def recall_at(
    model: FrozenModel,
    conditioning: ContextLike,
    cases: Sequence[tuple[Sequence[Block], int]],
    story: Sequence[Ids] = (),
) -> list[float | None]:
    """`recall` of blocks at a distance each; what they have in common is read once.

    None for a case without blocks, and for one that does not fit the model's context.
    """
    fitting = [
        i
        for i, (blocks, distance) in enumerate(cases)
        if blocks and fits(model, conditioning, blocks, distance)
    ]
    measured: list[float | None] = [None] * len(cases)
    losses = _losses_at(model, conditioning, [cases[i] for i in fitting], story)
    for i, of_case in zip(fitting, losses, strict=True):
        measured[i] = mean(of_case)
    return measured


@torch.no_grad()
def _losses_at(
    model: FrozenModel,
    conditioning: ContextLike,
    cases: Sequence[tuple[Sequence[Block], int]],
    story: Sequence[Ids],
) -> list[list[float]]:
    """NLL of each response of each case, its mean over the texts of the story.

    Each text is read once, to the greatest distance; the calls hang on it at theirs. Those at no
    distance are the same for every text:

        [conditioning]─┬─[64 tokens]─┬─[192 tokens]─┬─ calls at 256
                       └─ calls at 0 └─ calls at 64 └─ …
    """
    if not cases:
        return []
    distances = sorted({distance for _, distance in cases if distance})
    texts = [text for text in story if text]
    if distances and not texts:
        raise ContextError(
            f"no story text for a distance of {distances[0]}; expected some; pass story"
        )
    pairs = [_pairs(model, blocks) for blocks, _ in cases]
    sums = [[0.0] * len(of_case) for of_case in pairs]
    for number, text in enumerate(texts if distances else [()]):
        ends = [0, *distances]
        filler = [_repeated(text, b)[a:] for a, b in pairwise(ends)]
        tree = _trunk(model, conditioning, filler)
        first = tree.end - len(filler)  # the node before the filler, or ROOT
        if tree.n_rows:
            (tree,) = read_trunks(model, [tree])
        for case, (_, distance) in enumerate(cases):
            if distance or not number:
                parent = first + ends.index(distance)
                weight = 1 / len(texts) if distance else 1.0
                for i, losses in enumerate(token_losses(model, tree, pairs[case], parent)):
                    sums[case][i] += weight * float(losses.mean())
    return sums


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


def token_losses(
    model: FrozenModel, tree: Tree, pairs: Sequence[tuple[Ids, Ids]], parent: int | None = None
) -> list[Tensor]:
    """NLL `[len(ids)]` of the ids of each pair (text before, ids), each pair alone after a tree.

    Args:
        parent: the node of the tree after which they come; by default its end.
    """
    if not pairs:
        return []
    branches = [
        Branch(
            [*before, *ids],
            tree.end if parent is None else parent,
            len(before) - 1,
            len(before) + len(ids) - 1,
        )
        for before, ids in pairs
    ]
    hidden = torch.cat(branch_hidden_states(model, tree, branches))
    targets = torch.tensor([i for _, ids in pairs for i in ids], device=hidden.device)
    losses = response_nll(model, hidden, targets)
    return list(losses.split([len(ids) for _, ids in pairs]))


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
    model: FrozenModel,
    before: Tree | WeightedTrees,
    passages: Sequence[Ids],
    start: int | Sequence[int] = 0,
) -> list[Tensor]:
    """Hidden states `[len - start, hidden]` of each passage after a tree, or after several.

    Of a passage that has no token at `start`, that of its last token is returned. `start`: of all
    passages, or of each.

    Of several trees, whose weights sum to 1, the weighted sum of hidden states is returned. The
    output layer is linear, so its logits are, up to a constant, those of the mixed
    log-probabilities.
    """
    trees = [(before, 1.0)] if isinstance(before, Tree) else before
    starts = [start] * len(passages) if isinstance(start, int) else start
    mixed: list[Tensor] = []
    for tree, weight in trees:
        branches = [
            Branch(list(ids), tree.end, min(first, len(ids) - 1))
            for ids, first in zip(passages, starts, strict=True)
        ]
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
