"""Stories as the page gets them."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from softlore.errors import SoftloreError
from softlore.serve.studio.open_stories import OpenStory
from softlore.story import Branch, Story, StoryLibrary, Turn
from softlore.story.composing import ContextPlan

ENDING = 80  # characters
SETTINGS = (
    "memory",
    "note",
    "note_depth",
    "note_template",
    "seed",
    "sampling",
    "context_tokens",
    "budget",
)


def story_told(one: OpenStory) -> dict[str, Any]:
    """A story: its turns, settings, branches, and what can be done with it."""
    story = one.story
    turns, branches, settings = story.turns, story.branches(), story.settings
    marked = {turn.id for turn in story.kept()}
    tries = _tries(story, turns, branches)
    return {
        "name": story.name,
        "turns": [_turn_told(turn, turn.id in marked, tries[turn.id]) for turn in turns],
        "settings": {name: getattr(settings, name) for name in SETTINGS} | {"book": one.book},
        "undoable": story.undoable,
        "redoable": story.redoable,
        "branches": [
            {"turn": b.id, "turns": b.turns, "ending": b.words, "here": b.current} for b in branches
        ],
        "soft": one.soft(),
        "notes": one.notes(),
    }


def plan_told(plan: ContextPlan) -> dict[str, Any]:
    """What the model reads next, part by part."""
    return {
        "limit": plan.limit,
        "reserved": plan.reserved,
        "parts": [
            {"kind": part.kind, "name": part.name, "tokens": part.tokens} for part in plan.parts
        ],
        "forgotten": plan.forgotten,
        "not_used": plan.not_used,
        "tokens": plan.tokens,
    }


class StoryList:
    """The stories of a folder, a line each; a file is looked into once until it changes."""

    def __init__(self, stories: StoryLibrary) -> None:
        self._stories = stories
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Any, dict[str, Any]]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """The newest first. Raises StorageError for the folder."""
        with self._lock:
            known, self._known = self._known, {}
            for name in self._stories.names():
                path = self._stories.folder / f"{name}.story"
                stamp = _stamp(path)
                if not stamp or name not in known or known[name][0] != stamp:
                    known[name] = stamp, self._row(name)
                changed = max((at for at, _ in stamp), default=0) / 1e9
                time = datetime.fromtimestamp(changed, UTC).isoformat(timespec="milliseconds")
                self._known[name] = stamp, known[name][1] | {"changed": time}
            rows = [row for _, row in self._known.values()]
        return sorted(rows, key=lambda row: str(row["changed"]), reverse=True)

    def _row(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = {"name": name, "turns": 0, "words": 0, "ending": ""}
        try:
            with self._stories.open(name) as story:
                text = story.text
                ending = " ".join(text[-4 * ENDING :].split())[-ENDING:]
                return row | {"turns": len(story), "words": len(text.split()), "ending": ending}
        except SoftloreError as error:
            return row | {"error": str(error)}


def _turn_told(turn: Turn, marked: bool, tries: list[int]) -> dict[str, Any]:
    told = {"id": turn.id, "by": turn.by, "text": turn.text, "marked": marked, "tries": tries}
    finish = turn.data.get("finish") if turn.by == "model" else None
    return told | ({"finish": finish} if isinstance(finish, str) else {})


def _tries(story: Story, turns: list[Turn], branches: list[Branch]) -> dict[int, list[int]]:
    """By turn, the turns that follow the same one; only where a branch leaves are there others."""
    leaving = {branch.shared for branch in branches if branch.turns > branch.shared}
    return {
        turn.id: [one.id for one in story.alternatives(turn)] if place in leaving else [turn.id]
        for place, turn in enumerate(turns)
    }


def _stamp(path: Path) -> tuple[tuple[int, int], ...]:
    """When a story's file and what SQLite keeps beside it were changed, and their sizes."""
    found = []
    for one in (path, Path(f"{path}-wal")):
        try:
            status = os.stat(one)
        except OSError:
            continue
        if status.st_size:
            found.append((status.st_mtime_ns, status.st_size))
    return tuple(found)
