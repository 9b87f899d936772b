"""Turns a context, a list of text and soft prompts, into a tree of one branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softlore.context.splice import ROOT, Node, Tree, splice
from softlore.errors import ContextError
from softlore.model import FrozenModel, LanguageModel
from softlore.prompts import Context, SoftPrompt

Piece = str | SoftPrompt
ContextLike = Piece | Context


def compose(
    model: LanguageModel, context: ContextLike, check: bool = True, conditioning: ContextLike = ""
) -> Tree:
    """Makes a node of each piece of text and each embedding prompt, and a prefix of the others.

    The nodes follow each other in the order of the pieces, after BOS if the model has one. Prefixes
    may stand anywhere in the context: they take no place in the text.

    Args:
        check: compare each prompt's fingerprint with the model's; else only its shape.
        conditioning: pieces before the context, in nodes of their own, such as a control code.

    Raises:
        PromptMismatchError: a prompt of another model.
        ContextError: the context has no token.
    """
    parts = [Context(conditioning), Context(context)]
    for prompt in (prompt for part in parts for prompt in part.prompts):
        model.check_prompt(prompt, any_model=not check)
    contents = [model.bos, *_contents(model, [p for part in parts for p in part.body.pieces])]
    nodes: list[Node] = []
    for content in contents:
        if len(content):
            nodes.append(Node(content, len(nodes) - 1 if nodes else ROOT))
    if not nodes:
        raise ContextError(
            "the context holds no text; expected at least one token to continue from "
            "(this model has no BOS); write an opening"
        )
    prefixes = dict.fromkeys(prefix for part in parts for prefix in part.prefixes)
    return Tree(nodes, [prompt.cast(model.device, model.dtype) for prompt in prefixes])


def count_conditioning_nodes(model: LanguageModel, conditioning: ContextLike) -> int:
    """The number of nodes, BOS included, that `compose` makes of a conditioning."""
    contents = [model.bos, *_contents(model, Context(conditioning).body.pieces)]
    return sum(1 for content in contents if len(content))


def _contents(model: LanguageModel, pieces: Sequence[Piece]) -> list[list[int] | Tensor]:
    return [
        model.encode(piece, inside=i > 0)
        if isinstance(piece, str)
        else piece.cast(model.device, model.dtype)
        for i, piece in enumerate(pieces)
    ]


def embed(model: FrozenModel, context: ContextLike) -> Tensor:
    """Embedding rows of a context, as the model's forward takes them: `[tokens, width]`.

    Raises:
        ContextError: the context holds a prefix prompt, which has no rows.
    """
    tree = compose(model, context)
    if tree.prefixes:
        names = ", ".join(repr(prompt.name) for prompt in Context(context).prefixes)
        raise ContextError(
            f"{names} is of kind 'prefix': keys and values in the cache, not rows; "
            "expected embedding prompts only; use logits() or generate(), or train kind='embedding'"
        )
    return splice(model, [tree]).embeds[0]


@torch.no_grad()
def logits(model: FrozenModel, context: ContextLike) -> Tensor:
    """Logits `[tokens, vocab]`, float32: a row for each token and embedding row of the context."""
    spliced = splice(model, [compose(model, context)])
    hidden, _ = model.hidden(spliced.embeds, spliced.positions, spliced.visible, spliced.past)
    return model.logits(hidden[0])
