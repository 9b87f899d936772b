"""The decoding loop: trees in, a token a row at a time out, over one growing cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from softlore.context import Tree, splice
from softlore.decode.memory import TextCache
from softlore.model import FrozenModel

# From logits `[B, vocab]` and the ids of each text so far to token ids `[B]`.
SampleFunction = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]


@torch.no_grad()
def decode(
    model: FrozenModel,
    trees: Sequence[Tree],
    choose: SampleFunction,
    max_new_tokens: int,
    memory: TextCache | None = None,
) -> Iterator[list[int]]:
    """Yields one token id a tree, step by step, until `max_new_tokens` or the context's end.

    Trees of one branch each; rows may differ in prompts and length. Stopping earlier is the
    caller's choice: leave the loop. With a `memory` (and a single tree) only what it does not hold
    is read, and it holds what was read when the loop is left, at whatever step.
    """
    texts = [_ids(tree) for tree in trees]
    if memory is not None:
        trees = [memory.recall(tree) for tree in trees]
    spliced = splice(model, trees, memory.past if memory is not None else None)
    hidden, kept = model.hidden(
        spliced.embeds, spliced.positions, spliced.visible, spliced.past, keep=True
    )
    lengths = torch.tensor([t.length for t in trees], device=model.device)
    last = hidden[torch.arange(len(trees), device=model.device), lengths - 1]
    past = spliced.after(kept or [])
    if memory is not None:
        memory.keep(past, [])
    position = torch.tensor([t.start for t in trees], device=model.device) + lengths
    seen = torch.ones(len(trees), 1, dtype=torch.bool, device=model.device)
    token, ids = torch.empty(0, dtype=torch.long), [0]
    for step in range(_room(model, position, max_new_tokens)):
        if step:
            visible = torch.cat([past.visible, seen], dim=1)[:, None]
            at = (position + step - 1)[:, None]
            hidden, kept = model.hidden(model.embed_ids(token)[:, None], at, visible, past, True)
            past = past.extend(kept or [], at, seen)
            last = hidden[:, 0]
            if memory is not None:
                memory.keep(past, ids)
        token = choose(model.logits(last), texts)
        ids = token.tolist()
        for text, i in zip(texts, ids, strict=True):
            text.append(i)
        yield ids


def _ids(tree: Tree) -> list[int]:
    """The text's ids; soft rows have none."""
    return [i for node in tree.nodes if not isinstance(node.content, Tensor) for i in node.content]


def _room(model: FrozenModel, position: Tensor, wanted: int) -> int:
    if model.context_length is None:
        return wanted
    # The last token chosen is never read, so it may stand one past the end.
    return min(wanted, model.context_length - int(position.max()) + 1)
