"""Turns a context, a list of text and soft prompts, into a tree of one branch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softlore.context.splice import splice
from softlore.context.tree import Node, Tree, common_length, free_places
from softlore.errors import ContextError
from softlore.model import FrozenModel, LanguageModel
from softlore.prompts import Context, SoftPrompt
from softlore.prompts.control_vector import sum_vectors
from softlore.settings.arguments import FROZEN, expecting

Piece = str | SoftPrompt
ContextLike = Piece | Context


def compose(
    model: LanguageModel,
    context: ContextLike,
    check: bool = True,
    conditioning: ContextLike = "",
    reserved: int = 0,
    ids: Sequence[int] = (),
) -> Tree:
    """Makes a node of each piece of text and each embedding prompt, and a prefix of the others.

    The nodes follow each other in the order of the pieces, after BOS if the model has one. A prefix
    takes no place in the text, and is seen from where it stands on: by everything if it comes
    first, and by the last token if it comes last.

    Args:
        check: compare each prompt's fingerprint with the model's; else only its shape.
        conditioning: pieces before the context, in nodes of their own, such as a control code.
        reserved: places kept free before the text, so that it stays where it is when a prefix of
            no more tokens is added or taken away.
        ids: tokens after the context, as they are: a BOS at their beginning stands before all,
            and where they have none there is none.

    Raises:
        PromptMismatchError: a prompt or control vector of another model.
        ContextError: the context has no token.
    """
    parts = [Context(conditioning), Context(context)]
    for prompt in (prompt for part in parts for prompt in part.prompts):
        model.check_prompt(prompt, any_model=not check)
    prefixes = list(dict.fromkeys(prefix for part in parts for prefix in part.prefixes))
    contents = list(_contents(model, parts, prefixes))
    begun = list(ids[: len(model.bos)]) == model.bos
    if text := list(ids[len(model.bos) if begun else 0 :]):
        contents.append((text, range(len(prefixes))))
    if model.bos and (begun or not ids):
        first = contents[0][1] if contents else range(len(prefixes))
        contents.insert(0, (model.bos, first))
    if not contents:
        raise ContextError(
            "the context holds no text; expected at least one token to continue from "
            "(this model has no BOS); write an opening"
        )
    last, seen = contents.pop()
    if len(seen) < len(prefixes):  # some stand at the end
        contents += [(last[:-1], seen)] if len(last) > 1 else []
        last, seen = last[-1:], range(len(prefixes))
    contents.append((last, seen))
    nodes = [Node(content, i - 1, seen) for i, (content, seen) in enumerate(contents)]
    longest = max(map(len, prefixes), default=0)
    if any(prefix.late for prefix in prefixes):  # as in training
        longest = free_places(longest, model.context_length)
    cast = [prefix.cast(model.device, model.dtype) for prefix in prefixes]
    steering = sum_vectors(model, [pair for part in parts for pair in part.vectors], check)
    return Tree(nodes, cast, max(reserved, longest), steering)


def count_conditioning_nodes(model: LanguageModel, conditioning: ContextLike) -> int:
    """The number of nodes, BOS included, that `compose` makes of a conditioning."""
    context = Context(conditioning)
    contents = _contents(model, [context], context.prefixes)
    return sum(1 for _ in contents) + len(model.bos)


def _contents(
    model: LanguageModel, contexts: Sequence[Context], prefixes: Sequence[SoftPrompt]
) -> Iterator[tuple[list[int] | Tensor, Sequence[int]]]:
    """Runs of tokens or rows, each with the indices of the prefixes that stand before it.

    Text on both sides of a prefix is encoded together, so that its tokens are those that it has
    without the prefix.
    """
    seen: list[int] = []
    for context in contexts:
        for number, (run, marks) in enumerate(_runs(context)):
            if isinstance(run, SoftPrompt):
                yield run.cast(model.device, model.dtype), tuple(seen)
                continue
            inside, start = number > 0, 0
            ids = model.encode(run, inside=inside) if run else []
            places = {place for place, _ in marks} - {0}
            encoded = {place: model.encode(run[:place], inside=inside) for place in places}
            for place, prefix in marks:
                stop = max(start, common_length(encoded.get(place, []), ids))
                if stop > start:
                    yield ids[start:stop], tuple(seen)
                seen += [] if (i := prefixes.index(prefix)) in seen else [i]
                start = stop
            if start < len(ids):
                yield ids[start:], tuple(seen)


def _runs(context: Context) -> list[tuple[str | SoftPrompt, list[tuple[int, SoftPrompt]]]]:
    """The text of a context, whole between embedding prompts; and these.

    With each text the prefixes in it: how many of its characters stand before them.
    """
    runs: list[tuple[str | SoftPrompt, list[tuple[int, SoftPrompt]]]] = []
    text, marks = "", list[tuple[int, SoftPrompt]]()
    for piece in context:
        if isinstance(piece, str):
            text += piece
        elif piece.kind == "prefix":
            marks.append((len(text), piece))
        else:
            runs += [(text, marks)] if text or marks else []
            runs.append((piece, []))
            text, marks = "", []
    return [*runs, (text, marks)] if text or marks else runs


@expecting(model=FROZEN)
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


@expecting(model=FROZEN)
@torch.no_grad()
def logits(model: FrozenModel, context: ContextLike) -> Tensor:
    """Logits `[tokens, vocab]`, float32: a row for each token and embedding row of the context."""
    spliced = splice(model, [compose(model, context)])
    hidden, _ = spliced.run(model)
    return model.logits(hidden[0])
