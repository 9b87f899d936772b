"""From a context, a plain list of pieces, to a tree with one branch."""

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
    """Turns pieces into nodes and prefixes; BOS, where the model has one, stands once, first.

    Args:
        check: compare each prompt's fingerprint with the model's; else its shape only.
        head: what stands before the context, in nodes of its own: a control code, say.

    Raises:
        PromptMismatchError: a prompt of another model.
        ContextError: nothing to read.
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
            "the context holds no text; expected at least one token for the model to go on from "
            "(this model has no BOS to start with); write an opening"
        )
    prefixes = dict.fromkeys(prefix for part in parts for prefix in part.prefixes)
    return Tree(nodes, [prompt.cast(model.device, model.dtype) for prompt in prefixes])


def count_conditioning_nodes(model: LanguageModel, conditioning: ContextLike) -> int:
    """How many nodes, BOS among them, `compose` makes of a head."""
    contents = [model.bos, *_contents(model, Context(conditioning).body.pieces)]
    return sum(1 for content in contents if len(content))


def _contents(model: LanguageModel, pieces: Sequence[Piece]) -> list[list[int] | Tensor]:
    return [
        model.encode(piece, inside=place > 0)
        if isinstance(piece, str)
        else piece.cast(model.device, model.dtype)
        for place, piece in enumerate(pieces)
    ]


def embed(model: FrozenModel, context: ContextLike) -> Tensor:
    """Embedding rows of a context, as the model's forward takes them: `[tokens, width]`.

    Raises:
        ContextError: when the context holds a prefix prompt, which has no rows.
    """
    tree = compose(model, context)
    if tree.prefixes:
        names = ", ".join(repr(prompt.name) for prompt in Context(context).prefixes)
        raise ContextError(
            f"{names} is of kind 'prefix': keys and values at the head of the cache, not rows; "
            "expected embedding prompts only; use logits() or generate(), or train kind='embedding'"
        )
    return splice(model, [tree]).embeds[0]


@torch.no_grad()
def logits(model: FrozenModel, context: ContextLike) -> Tensor:
    """Logits `[tokens, vocab]`, float32: a row a token, embedding rows too, prefix tokens not."""
    spliced = splice(model, [compose(model, context)])
    hidden, _ = model.hidden(spliced.embeds, spliced.positions, spliced.visible, spliced.past)
    return model.logits(hidden[0])
