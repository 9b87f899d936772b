"""The parts of a story's context: what stands around the story, and the story's newest turns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from softlore.errors import UnknownPromptError
from softlore.model import LanguageModel
from softlore.prompts import Context, SoftPrompt, TokenCount
from softlore.prompts.tags import LONGEST_TAG, past_tag

Kind = Literal["memory", "lore", "soft", "note", "story"]
Piece = str | SoftPrompt
Turn = str | Context  # a turn of a story; a string may hold tags of soft prompts

CACHED_TEXTS = 1024
LONGEST_CACHED = 4096  # characters
_BREAK = re.compile(r"(?<=[\n.!?])[\"'”’]*\s+|\n")


@dataclass(frozen=True)
class Part:
    """A part of the context: its kind, the name of its entry or prompt, and its tokens."""

    kind: Kind
    name: str
    tokens: int


class TokenCounter:
    """Counts the tokens of contexts; counts of the latest short texts are cached.

    A story comes back at every turn with one turn more, so that all the others are known.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._cached = lru_cache(CACHED_TEXTS)(self._encoded_length)

    def text(self, text: str) -> int:
        """Tokens of a text that continues other text."""
        count = self._cached if len(text) <= LONGEST_CACHED else self._encoded_length
        return count(text)

    def __call__(self, context: Context) -> TokenCount:
        """What `Context.token_count` returns."""
        body = context.body.pieces
        return TokenCount(
            text=sum(self.text(piece) for piece in body if isinstance(piece, str)),
            embedding=sum(len(piece) for piece in body if isinstance(piece, SoftPrompt)),
            prefix=sum(map(len, context.prefixes)),
        )

    def _encoded_length(self, text: str) -> int:
        return len(self._model.encode(text, inside=True))


class StoryText:
    """The turns of a story, each parsed and encoded at most once, and only if it is needed.

    Places in the story are counted in characters of all turns, a soft prompt as its tag.

    Attributes:
        length: characters of all turns.
    """

    def __init__(
        self, turns: Sequence[Turn], prompts: Mapping[str, SoftPrompt], count: TokenCounter
    ) -> None:
        self._turns = turns
        self._prompts = prompts
        self._count = count
        self._texts = [plain(turn) for turn in turns]
        self.length = sum(map(len, self._texts))
        self._contexts: dict[int, Context] = {}
        self._tokens: dict[int, int] = {}

    @property
    def texts(self) -> list[str]:
        """The text of each turn, soft prompts as tags."""
        return self._texts

    def context(self, number: int, start: int = 0) -> Context:
        """A turn, or its part from a character on."""
        if start:
            return cut(self._turns[number], start, self._prompts)
        if number not in self._contexts:
            turn = self._turns[number]
            parsed = parse_context(turn, self._prompts) if isinstance(turn, str) else turn
            self._contexts[number] = parsed
        return self._contexts[number]

    def contexts_from(self, start: int) -> list[Context]:
        """The turns from a character of the story on; those before it are empty."""
        contexts, at = [], 0
        for number, text in enumerate(self._texts):
            skipped = max(0, start - at)
            contexts.append(self.context(number, skipped) if skipped < len(text) else Context())
            at += len(text)
        return contexts

    def tokens_from(self, start: int, most: float = math.inf) -> int:
        """Tokens from a character of the story on, prefixes not counted.

        Counted from the end, turn by turn, until there are more than `most`.
        """
        tokens, end = 0, self.length
        for number in reversed(range(len(self._turns))):
            at = end - len(self._texts[number])
            if end <= start or tokens > most:
                break
            tokens += self._tokens_of(number, max(0, start - at))
            end = at
        return tokens

    def beginning(self, start: int, within: int, whole_turns: bool = False) -> int:
        """The first place to begin at, from a character on, no more than `within` after it.

        That is the beginning of a sentence or line, or of a turn, where there is one; never the
        middle of a tag.
        """
        if not start:
            return 0
        if whole_turns and (turn := self._next_turn(start)) is not None:
            return turn
        found = _BREAK.search(self._window(start, start + within))
        start += found.end() if found else 0
        before = max(0, start - LONGEST_TAG)
        return before + past_tag(self._window(before, before + 2 * LONGEST_TAG), start - before)

    def _tokens_of(self, number: int, start: int) -> int:
        if start:
            return self._count(self.context(number, start)).context
        if number not in self._tokens:
            self._tokens[number] = self._count(self.context(number)).context
        return self._tokens[number]

    def _next_turn(self, start: int) -> int | None:
        """Where the first turn begins that begins at `start` or after it."""
        at = 0
        for text in self._texts:
            if at >= start:
                return at
            at += len(text)
        return None

    def _window(self, start: int, stop: int) -> str:
        """Characters `start` to `stop` of the story."""
        parts, end = [], self.length
        for text in reversed(self._texts):
            if end <= start:
                break
            end -= len(text)
            parts.append(text[max(0, start - end) : max(0, stop - end)])
        return "".join(reversed(parts))


class Frame:
    """What stands around the story: pieces before it, and some among its last turns."""

    def __init__(self, model: LanguageModel, count: TokenCounter) -> None:
        self.parts: list[Part] = []
        self._count = count
        self._before: list[Context] = []
        self._at_depth: dict[int, list[Context]] = {}
        self._prefixes: list[SoftPrompt] = []
        self._tokens = len(model.bos)

    def put(self, kind: Kind, name: str, piece: Piece | Context, depth: int | None = None) -> None:
        """Puts a piece before the story, or `depth` turns before its end."""
        context = Context(piece)
        count = self._count(context)
        self.parts.append(Part(kind, name, count.total))
        self._prefixes += context.prefixes
        if context.body.pieces:
            self._tokens += count.context + (1 if depth is not None else 0)  # a newline before it
            pieces = self._before if depth is None else self._at_depth.setdefault(depth, [])
            pieces.append(context.body)

    def positions(self) -> int:
        """Positions that are taken; prefixes share theirs."""
        return self._tokens + max(map(len, self._prefixes), default=0)

    def context(self, story: StoryText, start: int) -> Context:
        """All pieces, with the story from a character on."""
        pieces: list[Piece] = [*self._prefixes, *(p for before in self._before for p in before)]
        turns = [*story.contexts_from(start), Context()]
        last = ""  # text before the next piece, from the first turn that is read on
        for number, turn in enumerate(turns):
            for inserted in self._inserted(len(turns) - 1 - number, number == 0):
                if isinstance(inserted.pieces[0], str) and last and not last.endswith("\n"):
                    pieces.append("\n")
                pieces += inserted
                last = inserted.pieces[-1] if isinstance(inserted.pieces[-1], str) else last
            pieces += turn
            last = plain(turn) or last
        return Context(pieces)

    def story_part(self, story: StoryText, start: int) -> Part:
        """The story's own part, from a character on."""
        prefixes = {p for turn in story.contexts_from(start) for p in turn.prefixes}
        tokens = story.tokens_from(start) + sum(map(len, prefixes))
        return Part("story", "story", tokens)

    def _inserted(self, depth: int, first: bool) -> list[Context]:
        """What stands `depth` turns before the end; at the first turn, all that goes deeper."""
        if first:
            deeper = [d for d in sorted(self._at_depth, reverse=True) if d >= depth]
            return [context for d in deeper for context in self._at_depth[d]]
        return self._at_depth.get(depth, [])


def parse_context(text: str, prompts: Mapping[str, SoftPrompt]) -> Context:
    """A part of a story with its tags resolved; one that names no prompt stays text."""
    try:
        return Context.parse(text, prompts)
    except UnknownPromptError:
        return Context(text)


def plain(turn: Turn) -> str:
    """A turn's text, soft prompts as tags."""
    if isinstance(turn, str):
        return turn
    return "".join(piece if isinstance(piece, str) else piece.tag for piece in turn.pieces)


def cut(turn: Turn, start: int, prompts: Mapping[str, SoftPrompt] | None = None) -> Context:
    """A turn from a character of its text on; a tag that would be cut in two is left out."""
    if isinstance(turn, str):
        return parse_context(turn[past_tag(turn, start) :], prompts or {})
    pieces: list[Piece] = []
    for piece in turn.pieces:
        length = len(piece) if isinstance(piece, str) else len(piece.tag)
        if start <= 0:
            pieces.append(piece)
        elif isinstance(piece, str):
            pieces.append(piece[start:])
        start -= length
    return Context(pieces)


def line(text: Context) -> Context:
    """A text that ends its line."""
    last = text.pieces[-1] if text.pieces else ""
    return text if isinstance(last, str) and last.endswith("\n") else text + "\n"
