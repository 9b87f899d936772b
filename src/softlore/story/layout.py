"""ContextLayout: the parts of a context around the story, and the turns that fit."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from softlore.context import free_places
from softlore.errors import UnknownPromptError
from softlore.lore.sentences import starts
from softlore.model import LanguageModel
from softlore.prompts import Context, SoftPrompt, TokenCount
from softlore.prompts.tags import MAX_TAG, past_tag

Kind = Literal["memory", "lore", "soft", "note", "story"]
Piece = str | SoftPrompt
TurnText = str | Context  # a string may hold tags of soft prompts

CACHED_TEXTS = 1024
MAX_CACHED = 4096  # characters
NEWEST = 80  # characters that the newest text has at least
MAX_NEWEST = 1000  # characters of the newest text, about: of one turn no more are read twice


@dataclass(frozen=True)
class Part:
    """A part of the context.

    Attributes:
        name: of its entry or prompt.
        late: a soft prompt that only the newest text sees.
    """

    kind: Kind
    name: str
    tokens: int
    late: bool = False


class TokenCounter:
    """Counts the tokens of contexts; the counts of recent short texts are cached.

    Each turn of a story is counted again when the next one is written, from the cache.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._cached = lru_cache(CACHED_TEXTS)(self._encoded_length)

    def text(self, text: str) -> int:
        """Tokens of a text that continues other text."""
        count = self._cached if len(text) <= MAX_CACHED else self._encoded_length
        return count(text)

    def __call__(self, context: Context) -> TokenCount:
        """The same as `Context.token_count`."""
        body = context.body.pieces
        return TokenCount(
            text=sum(self.text(piece) for piece in body if isinstance(piece, str)),
            embedding=sum(len(piece) for piece in body if isinstance(piece, SoftPrompt)),
            prefix=sum(map(len, context.prefixes)),
        )

    def _encoded_length(self, text: str) -> int:
        return len(self._model.encode(text, inside=True))


class StoryText:
    """The turns of a story, each parsed and encoded at most once, and only if needed.

    Positions in the story are in characters of all turns, soft prompts counted as their tags.

    Attributes:
        texts: the text of each turn, with tags for soft prompts.
        length: characters of all turns.
    """

    def __init__(
        self, turns: Sequence[TurnText], prompts: Mapping[str, SoftPrompt], count: TokenCounter
    ) -> None:
        self.texts = [plain(turn) for turn in turns]
        self._turns, self._prompts, self._count = turns, prompts, count
        self._starts = list(accumulate(map(len, self.texts), initial=0))
        self.length = self._starts.pop()
        self._contexts: dict[int, Context] = {}
        self._tokens: dict[int, int] = {}

    def context(self, index: int, start: int = 0, stop: int | None = None) -> Context:
        """A turn, or its part from a character of it on, and up to another."""
        turn = self._turns[index]
        if start or (stop is not None and stop < len(self.texts[index])):
            return cut(turn, start, self._prompts, stop)
        if index not in self._contexts:
            parsed = parse_context(turn, self._prompts) if isinstance(turn, str) else turn
            self._contexts[index] = parsed
        return self._contexts[index]

    def contexts_from(self, start: int, stop: int | None = None) -> list[Context]:
        """A context for each turn, of the story's characters `start` to `stop`; some are empty.

        Args:
            stop: exclusive; None: the story's end.
        """
        stop = self.length if stop is None else stop
        return [
            self.context(index, max(0, start - first), stop - first)
            if start < first + len(text) and first < stop
            else Context()
            for index, (first, text) in enumerate(zip(self._starts, self.texts, strict=True))
        ]

    def newest(self) -> int:
        """The first character of the newest text, which late prefixes stand before.

        All text before it is read without them: it is the same whatever lore is active, so that
        only the newest text has to be read again where lore has changed. It starts with the last
        turn that is not empty; where this leaves fewer than `NEWEST` characters, with one of the
        turns before it, whole, that leaves as many, or with the story. Of a longer text than
        `MAX_NEWEST` it starts with the first sentence or line of so many characters at the end.
        """
        long_enough = (first for first in reversed(self._starts) if self.length - first >= NEWEST)
        start = next(long_enough, 0)
        if self.length - start <= MAX_NEWEST:
            return start
        return self.break_after(self.length - MAX_NEWEST, MAX_NEWEST - NEWEST)

    def tokens_from(self, start: int, limit: float = math.inf) -> int:
        """Tokens from a character of the story on, without prefixes.

        Counts turns from the end until there are more than `limit`.
        """
        tokens, end = 0, self.length
        for index in reversed(range(len(self._turns))):
            if end <= start or tokens > limit:
                break
            end = self._starts[index]
            tokens += self._count_turn(index, max(0, start - end))
        return tokens

    def break_after(self, start: int, within: int, whole_turns: bool = False) -> int:
        """The first place from a character on where the context may begin.

        This is the start of a sentence or line, no more than `within` characters on, if there is
        one; of a turn with `whole_turns`. It is never inside a tag.
        """
        if not start:
            return 0
        index = bisect.bisect_left(self._starts, start)
        if whole_turns and index < len(self._starts):
            return self._starts[index]
        start += next(starts(self._slice(start, start + within)), 0)
        before = max(0, start - MAX_TAG)
        return before + past_tag(self._slice(before, before + 2 * MAX_TAG), start - before)

    def _count_turn(self, index: int, start: int) -> int:
        if start:
            return self._count(self.context(index, start)).context
        if index not in self._tokens:
            self._tokens[index] = self._count(self.context(index)).context
        return self._tokens[index]

    def _slice(self, start: int, stop: int) -> str:
        """Characters `start` to `stop` of the story."""
        parts = []
        for first, text in zip(reversed(self._starts), reversed(self.texts), strict=True):
            parts.append(text[max(0, start - first) : max(0, stop - first)])
            if first <= start:
                break
        return "".join(reversed(parts))


class ContextLayout:
    """The parts of a context around the story: some before it, some between its last turns.

    ::

        classic │ before │ turn 1 │ depth 2 │ turn 2 │ late │ newest text, depth 1 │ depth 0

    A part at depth n is placed n turns before the end, or before the first turn that is read.
    Prefixes take no place in the text. All classic ones stand first, wherever they are named, and
    everything sees them. Late ones stand before the newest text (`StoryText.newest`), and only it
    sees them; those that are named in it stay where they are.

    Args:
        keep_places: leave places free before the text for prefixes that it does not have now.
    """

    def __init__(
        self, model: LanguageModel, count: TokenCounter, keep_places: bool = False
    ) -> None:
        self.parts: list[Part] = []
        self._count = count
        self._before: list[Context] = []
        self._at_depth: dict[int, list[Context]] = {}
        self._prefixes: list[SoftPrompt] = []
        self._tokens = len(model.bos)
        self._keep_places = keep_places
        self._context_length = model.context_length

    def add(self, kind: Kind, name: str, piece: Piece | Context, depth: int | None = None) -> None:
        """Adds a part before the story, or `depth` turns before its end."""
        context = Context(piece)
        count = self._count(context)
        late = isinstance(piece, SoftPrompt) and piece.late
        self.parts.append(Part(kind, name, count.total, late))
        self._prefixes += context.prefixes
        if context.body.pieces:
            self._tokens += count.context + (depth is not None)  # a newline before it
            pieces = self._before if depth is None else self._at_depth.setdefault(depth, [])
            pieces.append(context.body)

    def places(self, prefixes: Sequence[SoftPrompt] = ()) -> int:
        """Positions before the text: for the parts' prefixes, these, and others that may come.

        In all but short contexts they stay as many while prefixes of up to 32 tokens come and go.
        """
        prefixes = (*self._prefixes, *prefixes)
        longest = max(map(len, prefixes), default=0)
        if self._keep_places or any(prefix.late for prefix in prefixes):
            return free_places(max(longest, 1), self._context_length)
        return longest

    def positions(self) -> int:
        """Positions that the parts take; prefixes share the same ones."""
        return self._tokens + self.places()

    def context(self, story: StoryText, start: int) -> Context:
        """The whole context, with the story from a character on."""
        place = max(start, story.newest())
        old, new = story.contexts_from(start, place), story.contexts_from(place)
        classic, late = self._sorted_prefixes(old, new)
        pieces: list[Piece] = [*classic, *(p for before in self._before for p in before)]
        last = ""  # the text that precedes the next piece, within the story
        for number, turn in enumerate([*zip(old, new, strict=True), (Context(), Context())]):
            for part in self._inserted(len(old) - number, number == 0):
                if isinstance(part.pieces[0], str) and last and not last.endswith("\n"):
                    pieces.append("\n")
                pieces += part
                last = part.pieces[-1] if isinstance(part.pieces[-1], str) else last
            before, after = turn
            pieces += before.body
            if after.pieces or number == len(old):
                pieces += late
                late = []
            pieces += (piece for piece in after if not _is_classic(piece))
            last = plain(after) or plain(before) or last
        return Context(pieces)

    def story_part(self, story: StoryText, start: int) -> Part:
        """The part that is the story from a character on."""
        prefixes = {p for turn in story.contexts_from(start) for p in turn.prefixes}
        return Part("story", "story", story.tokens_from(start) + sum(map(len, prefixes)))

    def _sorted_prefixes(
        self, old: Sequence[Context], new: Sequence[Context]
    ) -> tuple[list[SoftPrompt], list[SoftPrompt]]:
        """Classic prefixes of the whole context, and late ones that are named before the new."""
        named = [*self._prefixes, *(p for turn in old for p in turn.prefixes)]
        late = [prefix for prefix in named if prefix.late]
        named += [p for turn in new for p in turn.prefixes]
        classic = dict.fromkeys(prefix for prefix in named if not prefix.late)
        return list(classic), list(dict.fromkeys(late))

    def _inserted(self, depth: int, first: bool) -> list[Context]:
        """The parts at a depth; before the first turn, also those deeper than the story."""
        depths = sorted(self._at_depth, reverse=True)
        here = [d for d in depths if d == depth or (first and d > depth)]
        return [context for d in here for context in self._at_depth[d]]


def parse_context(text: str, prompts: Mapping[str, SoftPrompt]) -> Context:
    """Parses the tags in a text; if one names an unknown prompt, all of it stays text."""
    try:
        return Context.parse(text, prompts)
    except UnknownPromptError:
        return Context(text)


def _is_classic(piece: Piece) -> bool:
    return isinstance(piece, SoftPrompt) and piece.kind == "prefix" and not piece.late


def plain(turn: TurnText) -> str:
    """A turn as text, with tags for soft prompts."""
    if isinstance(turn, str):
        return turn
    return "".join(piece if isinstance(piece, str) else piece.tag for piece in turn.pieces)


def cut(
    turn: TurnText,
    start: int,
    prompts: Mapping[str, SoftPrompt] | None = None,
    stop: int | None = None,
) -> Context:
    """A turn from a character of its text on, without a tag that this would divide.

    `stop`: the character that it ends before, which is in no tag.
    """
    stop = len(plain(turn)) if stop is None else stop
    if isinstance(turn, str):
        return parse_context(turn[past_tag(turn, start) : stop], prompts or {})
    pieces: list[Piece] = []
    for piece in turn.pieces:
        length = len(piece) if isinstance(piece, str) else len(piece.tag)
        if isinstance(piece, str):
            pieces.append(piece[max(0, start) : max(0, stop)])
        elif start <= 0 < stop:
            pieces.append(piece)
        start, stop = start - length, stop - length
    return Context(pieces)


def end_line(text: Context) -> Context:
    """A text with a newline at its end."""
    last = text.pieces[-1] if text.pieces else ""
    return text if isinstance(last, str) and last.endswith("\n") else text + "\n"
