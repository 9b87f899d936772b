"""The frame of a story's context: what stands around the story, and how both are joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from softlore.errors import UnknownPromptError
from softlore.model import LanguageModel
from softlore.prompts import Context, SoftPrompt

Kind = Literal["memory", "lore", "soft", "note", "story"]
Piece = str | SoftPrompt


@dataclass(frozen=True)
class Part:
    """A part of the context: what it is, whose, and its tokens."""

    kind: Kind
    name: str
    tokens: int


class Frame:
    """What stands around the story: pieces before it, and some among its last turns."""

    def __init__(self, model: LanguageModel) -> None:
        self.parts: list[Part] = []
        self._model = model
        self._before: list[Context] = []
        self._at: dict[int, list[Context]] = {}
        self._prefixes: list[SoftPrompt] = []
        self._tokens = len(model.bos)

    def put(self, kind: Kind, name: str, piece: Piece | Context, depth: int | None = None) -> None:
        """Puts a piece before the story, or `depth` turns before its end."""
        context = Context(piece)
        count = context.token_count(self._model)
        self.parts.append(Part(kind, name, count.total))
        self._prefixes += context.prefixes
        if context.body.pieces:
            self._tokens += count.context + (1 if depth is not None else 0)  # a line's end before
            (self._before if depth is None else self._at.setdefault(depth, [])).append(context.body)

    def taken(self) -> int:
        """Places that are taken: prefixes stand side by side."""
        return self._tokens + max(map(len, self._prefixes), default=0)

    def context(
        self,
        texts: Sequence[str],
        start: int,
        prompts: Mapping[str, SoftPrompt],
    ) -> Context:
        """All pieces, with the story from a character on."""
        pieces: list[Piece | Context] = [*self._prefixes, *self._before]
        at, told = 0, ""
        for place, text in enumerate([*texts, ""]):
            for one in self._among(len(texts) - place, place):
                broken = isinstance(one.pieces[0], str) and told and not told.endswith("\n")
                pieces += ["\n", one] if broken else [one]
                told = one.pieces[-1] if isinstance(one.pieces[-1], str) else told
            shown = text[max(0, start - at) :]
            at += len(text)
            if shown:
                pieces.append(parse_context(shown, prompts))
                told = shown
        return Context(piece for some in pieces for piece in Context(some))

    def story_part(
        self, texts: Sequence[str], start: int, prompts: Mapping[str, SoftPrompt]
    ) -> Part:
        count = parse_context(tail(texts, start), prompts).token_count(self._model)
        return Part("story", "story", count.total)

    def _among(self, depth: int, place: int) -> list[Context]:
        """What stands `depth` turns before the end; at the first turn, all that goes deeper."""
        if place == 0:
            return [p for d in sorted(self._at, reverse=True) if d >= depth for p in self._at[d]]
        return self._at.get(depth, [])


def count_positions(model: LanguageModel, context: Context) -> int:
    """Places that a context takes: its text after the longest prefix."""
    longest = max(map(len, context.prefixes), default=0)
    return len(model.bos) + context.token_count(model).context + longest


def line(text: str) -> str:
    """A text that ends its line."""
    return text if text.endswith("\n") else text + "\n"


def tail(texts: Sequence[str], start: int) -> str:
    """The story from a character on, without joining all of it."""
    kept: list[str] = []
    left = sum(map(len, texts)) - start
    for text in reversed(texts):
        if left <= 0:
            break
        kept.append(text[-left:] if left < len(text) else text)
        left -= len(text)
    return "".join(reversed(kept))


def parse_context(text: str, prompts: Mapping[str, SoftPrompt]) -> Context:
    """A part of the story with its tags resolved; one that names no prompt stays text."""
    try:
        return Context.parse(text, prompts)
    except UnknownPromptError:
        return Context(text)
