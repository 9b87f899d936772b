"""A text that was edited as a whole, as turns again: which of the old ones are still there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from softlore.story.turns import By, Turn

ANCHOR = 16  # characters: shorter turns are found again beside their neighbours only
_MAX_MISSES = 64  # each costs a search through the whole text


@dataclass(frozen=True)
class Piece:
    """A piece of the new text: an old turn unchanged, a new version of one, or neither (None)."""

    text: str
    by: By
    turn: Turn | None = None

    @property
    def unchanged(self) -> bool:
        return self.turn is not None and self.keeps(self.turn)

    def keeps(self, turn: Turn) -> bool:
        """Whether it is that turn, unchanged."""
        return self.turn is turn and self.text == turn.text


def pieces_of(turns: Sequence[Turn], text: str) -> list[Piece]:
    """Returns pieces that make up `text`, with as many of `turns` unchanged as can be found.

    First the turns at either end, then in what is left the longer ones wherever they stand, in
    order. What lies between two that were found is a new version of the turn that was there (of
    the first, if there were several), or a new piece by the writer.
    """
    return _trimmed(turns, text, _anchored)


def _trimmed(
    turns: Sequence[Turn], text: str, inner: Callable[[Sequence[Turn], str], list[Piece]]
) -> list[Piece]:
    """Takes off the unchanged turns at both ends, and leaves the rest to `inner`."""
    first, start = 0, 0
    while first < len(turns) and text.startswith(turns[first].text, start):
        start += len(turns[first].text)
        first += 1
    last, end = len(turns), len(text)
    while last > first and text.endswith(turns[last - 1].text, start, end):
        last -= 1
        end -= len(turns[last].text)
    same = [_same(turn) for turn in turns]
    return same[:first] + inner(turns[first:last], text[start:end]) + same[last:]


def _anchored(turns: Sequence[Turn], text: str) -> list[Piece]:
    """Finds the longer turns again, wherever they stand now, in order."""
    pieces: list[Piece] = []
    waiting: list[Turn] = []
    at = misses = 0
    for turn in turns:
        found = -1
        if len(turn.text) >= ANCHOR and misses < _MAX_MISSES:
            found = text.find(turn.text, at)
            misses += found < 0
        if found < 0:
            waiting.append(turn)
            continue
        pieces += [*_trimmed(waiting, text[at:found], _changed), _same(turn)]
        waiting, at = [], found + len(turn.text)
    return pieces + _trimmed(waiting, text[at:], _changed)


def _changed(turns: Sequence[Turn], text: str) -> list[Piece]:
    if not text:
        return []
    if not turns:
        return [Piece(text, "writer")]
    by = turns[0].by if len({turn.by for turn in turns}) == 1 else "writer"
    return [Piece(text, by, turns[0])]


def _same(turn: Turn) -> Piece:
    return Piece(turn.text, turn.by, turn)
