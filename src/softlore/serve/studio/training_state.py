"""One training: what it trains, how far it is, and its curves."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from softlore.serve.studio.curves import Curve

State = Literal["waiting", "preparing", "running", "paused", "done", "stopped", "failed"]
OVER = ("done", "stopped", "failed")


@dataclass
class Training:
    """A training; changed and read under `changed`, which tells those who wait.

    Attributes:
        book, entries: names of the lorebook, and of what is trained of it.
        settings: of the trainer, as they were asked for.
        wanted: what the thread is to do at the next update: "pause", "stop", "keep" or nothing.
        queued: since when it waits, seconds.
        step: updates of the whole set.
        done: share of all updates that are behind, 0 to 1.
        seconds: that it has run.
    """

    id: str
    created: float
    book: str
    entries: list[str]
    settings: dict[str, Any]
    state: State = "waiting"
    message: str = ""
    step: int = 0
    done: float = 0.0
    seconds: float = 0.0
    curves: dict[str, Curve] = field(default_factory=dict)
    wanted: str = ""
    queued: float = 0.0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def new(
        cls, book: str, entries: list[str], settings: dict[str, Any], changed: threading.Condition
    ) -> Training:
        now = time.time()
        return cls(secrets.token_hex(8), now, book, entries, settings, queued=now, changed=changed)

    def become(self, state: State, message: str = "") -> None:
        """Takes another state; what was wanted is done then."""
        with self.changed:
            self.state, self.message = state, message
            if state != "preparing":
                self.wanted = "" if state != "running" else self.wanted
            if state == "done":
                self.done = 1.0
            self.changed.notify_all()

    def last(self, entry: str) -> int:
        """The last update of an entry that has a point."""
        with self.changed:
            return self.curves[entry].last if entry in self.curves else 0

    def went(
        self, step: int, done: float, seconds: float, points: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Takes in an update."""
        with self.changed:
            self.step, self.done = step, done
            self.seconds += seconds
            for name, point in points.items():
                self.curves.setdefault(name, Curve()).add(**point)

    def told(self, curves: bool = False) -> dict[str, Any]:
        """As the page gets it."""
        with self.changed:
            found: dict[str, Any] = {
                "id": self.id,
                "book": self.book,
                "entries": list(self.entries),
                "state": self.state,
                "message": self.message,
                "step": self.step,
                "done": round(self.done, 4),
                "seconds": round(self.seconds, 1),
                "settings": dict(self.settings),
            }
            if curves:
                found["curves"] = {name: curve.told() for name, curve in self.curves.items()}
            return found

    def points_after(self, known: dict[str, int]) -> list[dict[str, Any]]:
        """Points later than the updates of each entry that are known; these are then known."""
        with self.changed:
            found = []
            for name, curve in self.curves.items():
                found += [{"entry": name, **one} for one in curve.after(known.get(name, 0))]
                known[name] = curve.last
            return found
