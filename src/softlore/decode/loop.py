"""The decoding loop: trees in, a token a row at a time out, over one growing cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from softlore.context import Tree, splice
from softlore.model import FrozenModel

# From logits `[B, vocab]` and the ids of each text so far to token ids `[B]`.
Choose = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]


@torch.no_grad()
def decode(
    model: FrozenModel, trees: Sequence[Tree], choose: Choose, max_new_tokens: int
) -> Iterator[list[int]]:
    """Yields one token id a tree, step by step, until `max_new_tokens` or the context's end.

    Trees of one branch each; rows may differ in prompts and length. Stopping earlier is the
    caller's choice: leave the loop.
    """
    spliced = splice(model, trees)
    texts = [_ids(tree) for tree in trees]
    hidden, kept = model.hidden(
        spliced.embeds, spliced.positions, spliced.visible, spliced.past, keep=True
    )
    lengths = torch.tensor([sum(map(len, t.nodes)) for t in trees], device=model.device)
    last = hidden[torch.arange(len(trees), device=model.device), lengths - 1]
    past = spliced.after(kept or [])
    position = torch.tensor([t.start for t in trees], device=model.device) + lengths
    seen = torch.ones(len(trees), 1, dtype=torch.bool, device=model.device)
    token = torch.empty(0, dtype=torch.long)
    for step in range(_room(model, position, max_new_tokens)):
        if step:
            visible = torch.cat([past.visible, seen], dim=1)[:, None]
            at = (position + step - 1)[:, None]
            hidden, kept = model.hidden(model.embed_ids(token)[:, None], at, visible, past, True)
            past = past.extend(kept or [], at, seen)
            last = hidden[:, 0]
        token = choose(model.logits(last), texts)
        ids: list[int] = token.tolist()
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
