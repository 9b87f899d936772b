"""Token healing: the tokens at the seam between a text and what is generated after it.

A text that ends within a word ends in tokens that the whole word does not have: after "a bright ca"
the token " ca" stands, and " castle" can no longer come. So the last tokens are taken off, and are
generated again: as they are, or as a token that begins with their text. A last word that occurs
earlier in the text, or in the name of a soft prompt, is complete: no letters are added to it.

Source: token healing of guidance (Lundberg and Ribeiro 2023).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LogitsProcessor

from softlore.context import Tree
from softlore.context.compose import ContextLike
from softlore.model import LanguageModel
from softlore.prompts import Context

MAX_TOKENS = 8  # that are taken off the end of a text
NATS = 3.0  # what a further token of the same word costs, roughly, before it is run
_WORD = re.compile(r"[^\W\d_]+")


class Healing:
    """Limits the first tokens that are generated, for token healing; see the module.

    Attributes:
        ids: token ids that were removed from the end of the text, and are generated again.
        text: the removed ids, decoded.

    Args:
        whole: the text ends with a complete word: the first token may not begin with a letter.
    """

    def __init__(self, model: LanguageModel, ids: Sequence[int] = (), whole: bool = False) -> None:
        self._vocabulary, self._token_bytes = model.vocabulary, model.token_bytes
        self.ids = tuple(ids)
        self._ids = list(ids)  # that are left
        self._is_whole = whole
        self.text = b"".join(self._token_bytes(self._ids)).decode("utf-8", "replace")

    def advance(self, token: int) -> None:
        """Goes on by a token that was sampled."""
        self._is_whole = False
        self._ids = self._ids[1:] if self._ids and token == self._ids[0] else []

    def apply(self, scores: Tensor) -> Tensor:
        """Scores `[B, vocab]`, -inf for what may not come next."""
        if self._ids:
            first = self._ids[0]
            text = b"".join(self._token_bytes(self._ids))
            allowed = [first, *self._vocabulary.extending(text)]
            kept = torch.full_like(scores, -torch.inf)
            kept[:, allowed] = scores[:, allowed]
            kept[:, first] -= NATS * (len(self._ids) - 1)
            return kept
        if self._is_whole:
            scores = scores.clone()
            scores[:, self._vocabulary.letters] = -torch.inf
        return scores


class HealingLogitsProcessor(LogitsProcessor):
    """Lets only the tokens come that a healing allows."""

    def __init__(self, healing: Healing) -> None:
        self._healing = healing

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._healing.apply(scores)


def heal(
    model: LanguageModel, context: ContextLike, tree: Tree, keep: bool = False
) -> tuple[Healing | None, Tree]:
    """How the first tokens after a context are chosen, and the context without its last tokens.

    Args:
        tree: the context, encoded.
        keep: its tokens stay; only a word that is known to be whole gets no further letters.
    """
    pieces = Context(context).pieces
    text = pieces[-1] if pieces and isinstance(pieces[-1], str) else ""
    if not text or model.token_bytes.words or not tree.nodes or not len(tree.nodes[-1].ids):
        return None, tree
    if (word := _last_word(text)) and word in _known_words(context, word):
        return Healing(model, whole=True), tree
    number = 0 if keep else _count_unsure(model, list(tree.nodes[-1].ids), text)
    if not number:
        return None, tree
    last = tree.nodes[-1]
    left = replace(last, content=list(last.ids[:-number]))
    healing = Healing(model, last.ids[-number:])
    return healing, replace(tree, nodes=[*tree.nodes[:-1], left], at=tree.start)


def _last_word(text: str) -> str:
    """The word of cased letters that a text ends with; other scripts put no space after words."""
    start = len(text)
    while start and _is_cased(text[start - 1]):
        start -= 1
    return text[start:]


def _is_cased(character: str) -> bool:
    return character.lower() != character.upper()


def _known_words(context: ContextLike, word: str) -> set[str]:
    """The words of a context but its last, and those of the names of its soft prompts."""
    context = Context(context)
    names = (prompt.name for prompt in context.prompts)
    text = "".join(piece if isinstance(piece, str) else " " for piece in context.pieces)
    return set(_WORD.findall(" ".join([*names, text[: len(text) - len(word)]])))


def _count_unsure(model: LanguageModel, ids: Sequence[int], text: str) -> int:
    """How many tokens at the end a longer token could replace; the first one always stays.

    They are of the last word, or of the spaces at the end.
    """
    spaces = text.endswith(" ")
    end = " " if spaces else _last_word(text)
    if not end:
        return 0
    texts = model.token_bytes(ids[-MAX_TOKENS:])
    for number in range(min(len(texts), len(ids) - 1), 0, -1):
        joined = b"".join(texts[-number:])
        within = joined.decode("utf-8", "replace").lstrip(" ")
        if end.endswith(within) and (within or spaces) and model.vocabulary.extending(joined):
            return number
    return 0
