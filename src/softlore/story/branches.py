"""The ends of a story's branches, each with where it leaves the story as it stands."""

from __future__ import annotations

from collections.abc import Sequence

from softlore.story.store import StoryFile
from softlore.story.turns import ROOT, Branch, Turn, place_of

_WORDS = 60  # characters


def branches_of(file: StoryFile, standing: Sequence[Turn]) -> list[Branch]:
    """All branches, the newest end first; of their texts only the few that tell are read.

    Args:
        standing: the path that the story stands on.
    """
    here = {turn.id for turn in standing}
    lengths = {ROOT: 0}
    leaves: dict[int, None] = {}
    leaving: dict[int, int] = {}  # turn -> the first of its branch that is not `here`
    for number, parent in file.parents():
        lengths[number] = lengths[parent] + 1
        leaves.pop(parent, None)
        leaves[number] = None
        if number not in here:
            leaving[number] = leaving.get(parent, number)
    return [
        _branch(file, leaf, lengths[leaf], leaving.get(leaf), standing) for leaf in reversed(leaves)
    ]


def _branch(
    file: StoryFile, leaf: int, turns: int, leaving: int | None, standing: Sequence[Turn]
) -> Branch:
    last = file.turn(leaf)
    if leaving is None:
        return Branch(leaf, last.created, turns, turns, _words(last.text), True)
    first = file.turn(leaving)
    place = place_of(first.parent, standing)
    shared = 0 if place is None else place + 1
    instead = standing[shared].text if shared < len(standing) else ""
    return Branch(leaf, last.created, turns, shared, _words(first.text, instead), False)


def _words(text: str, instead: str = "") -> str:
    """How `text` begins, from the first word in which it differs from what stands in its place."""
    pairs = enumerate(zip(text, instead, strict=False))
    same = next((n for n, (a, b) in pairs if a != b), min(len(text), len(instead)))
    start = text.rfind(" ", 0, same + 1) + 1
    words = text[start : start + 4 * _WORDS].split() or text[: 4 * _WORDS].split()
    return " ".join(words)[:_WORDS]
