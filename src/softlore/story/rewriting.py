"""Splits an edited text into turns again: which turns are unchanged, changed or new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from softlore.story.turns import By, Turn

ANCHOR = 16  # characters; shorter turns are recognized only next to other unchanged ones
_MAX_MISSES = 64  # each costs a search through the whole text


@dataclass(frozen=True)
class Segment:
    """A part of a new text: an old turn, a new version of one, or a new turn (None)."""

    text: str
    by: By
    turn: Turn | None = None

    def equals(self, turn: Turn) -> bool:
        """Whether it is that turn, unchanged."""
        return self.turn is turn and self.text == turn.text


def segments_of(turns: Sequence[Turn], text: str) -> list[Segment]:
    """Splits `text` so that as many of `turns` as can be found stay unchanged, in order.

    First the turns at both ends are matched, then longer ones anywhere between. The text between
    two matches is a new version of the first turn that was there, or a new turn by the writer::

        turns   │ A │ B │ C │ D │ E │        A and E match at the ends, C in the middle;
        text    │ A │ B'    │ C │ x │ E │    B' is a version of B, x one of D
    """
    return _match_ends(turns, text, _match_inside)


def _match_ends(
    turns: Sequence[Turn], text: str, inner: Callable[[Sequence[Turn], str], list[Segment]]
) -> list[Segment]:
    """Matches unchanged turns at both ends, and leaves the rest to `inner`."""
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


def _match_inside(turns: Sequence[Turn], text: str) -> list[Segment]:
    """Matches longer turns wherever they are, in order."""
    segments: list[Segment] = []
    unmatched: list[Turn] = []
    start = misses = 0
    for turn in turns:
        found = -1
        if len(turn.text) >= ANCHOR and misses < _MAX_MISSES:
            found = text.find(turn.text, start)
            misses += found < 0
        if found < 0:
            unmatched.append(turn)
            continue
        segments += [*_match_ends(unmatched, text[start:found], _changed), _same(turn)]
        unmatched, start = [], found + len(turn.text)
    return segments + _match_ends(unmatched, text[start:], _changed)


def _changed(turns: Sequence[Turn], text: str) -> list[Segment]:
    if not text:
        return []
    if not turns:
        return [Segment(text, "writer")]
    by = turns[0].by if len({turn.by for turn in turns}) == 1 else "writer"
    return [Segment(text, by, turns[0])]


def _same(turn: Turn) -> Segment:
    return Segment(turn.text, turn.by, turn)
