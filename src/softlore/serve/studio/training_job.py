"""A training job of the studio: what it trains, its state, and its curves."""

from __future__ import annotations

import bisect
import math
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from softlore.tune.losses import curve_names

State = Literal["waiting", "preparing", "running", "paused", "done", "stopped", "failed"]
Request = Literal["", "pause", "stop", "finish"]
FINISHED = ("done", "stopped", "failed")
MAX_POINTS = 1000  # of a curve
FIELDS = ("step", "loss", "recall", "drift")  # of a point
VALUES = (*curve_names(), "recall")


class Point(NamedTuple):
    """Values of an entry at an update, in nats a token; None for those that were not measured."""

    step: int
    loss: float | None
    recall: float | None
    drift: float | None


@dataclass
class Curve:
    """Loss, recall and drift of one entry by update, at most MAX_POINTS of them.

    When there are too many, every second point is dropped, except those with a recall, which is
    measured seldom.
    """

    points: list[Point] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        return self.points[-1].step if self.points else 0

    def add(self, step: int, **values: float | None) -> None:
        """Appends a point. Does nothing if `step` is not after the last one."""
        if step > self.last_step:
            self.points.append(Point(step, *(rounded(values.get(n)) for n in FIELDS[1:])))
        if len(self.points) > MAX_POINTS:
            self._thin()

    def points_after(self, step: int) -> list[dict[str, Any]]:
        """The points after an update, each without the values that were not measured."""
        first = bisect.bisect_right(self.points, step, key=lambda point: point.step)
        return [
            {name: value for name, value in zip(FIELDS, point, strict=True) if value is not None}
            for point in self.points[first:]
        ]

    def to_dict(self) -> dict[str, list[Any]]:
        """The points as a list of each value."""
        return {name: [getattr(p, name) for p in self.points] for name in FIELDS}

    @classmethod
    def from_dict(cls, data: Any) -> Curve:
        """The inverse of `to_dict`; invalid points are skipped."""
        curve = cls()
        columns = [data.get(name) for name in FIELDS] if isinstance(data, dict) else [None]
        if all(isinstance(column, list) for column in columns):
            for step, *values in zip(*columns, strict=False):
                if type(step) is int and all(isinstance(v, float | int | None) for v in values):
                    curve.add(step, **dict(zip(FIELDS[1:], values, strict=True)))
        return curve

    def _thin(self) -> None:
        even = [p for i, p in enumerate(self.points) if i % 2 == 0 or p is self.points[-1]]
        measured = [p for p in self.points if p.recall is not None]
        points = sorted({*even, *measured}, key=lambda point: point.step)
        # Only every second one if nearly all have a recall.
        self.points = points if len(points) <= MAX_POINTS * 3 // 4 else even


def rounded(value: object) -> float | None:
    """A measured value as it is sent; None where there is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(float(value), 5)


@dataclass
class TrainingJob:
    """A training of entries of one lorebook.

    Read and changed by several threads while they hold `changed`, which is notified of each new
    state::

        waiting → preparing → running → done │ stopped │ failed
           ↑          └──────────┴────→ paused
           └───────── resume ─────────────┘

    Attributes:
        book, entries: names of the lorebook and of its entries that are trained.
        settings: training settings of the request.
        minutes: that it may take, its preparation included; None for no limit.
        request: what the training thread does after the current update.
        queued: when it was put in the queue, seconds since the epoch.
        step: updates of the whole set of prompts so far.
        done: share of all updates that have been made, 0 to 1.
        seconds: running time.
        seconds_left: until the last update, if no entry stops early; None if it is not known.
    """

    id: str
    created: float
    book: str
    entries: list[str]
    settings: dict[str, Any]
    minutes: float | None = None
    state: State = "waiting"
    message: str = ""
    step: int = 0
    done: float = 0.0
    seconds: float = 0.0
    seconds_left: float | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    request: Request = ""
    queued: float = 0.0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def new(
        cls,
        book: str,
        entries: list[str],
        settings: dict[str, Any],
        minutes: float | None,
        changed: threading.Condition,
    ) -> TrainingJob:
        id, now = secrets.token_hex(8), time.time()
        return cls(id, now, book, entries, settings, minutes, queued=now, changed=changed)

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    @property
    def ending(self) -> bool:
        """Whether it has been asked to stop for good."""
        return self.request in ("stop", "finish")

    def become(self, state: State, message: str = "") -> None:
        """Enters a state. Clears the request unless the job is starting."""
        with self.changed:
            self.state, self.message = state, message
            if state not in ("preparing", "running"):
                self.request = ""
            if state != "running":
                self.seconds_left = None
            if state == "done":
                self.done = 1.0
            self.changed.notify_all()

    def last_step(self, entry: str) -> int:
        """The last update of an entry that has a point on its curve."""
        with self.changed:
            return self.curves[entry].last_step if entry in self.curves else 0

    def record(
        self,
        step: int,
        done: float,
        seconds: float,
        points: Mapping[str, Mapping[str, Any]],
        left: float | None = None,
    ) -> None:
        """Records an update that took `seconds`, with `left` until the last one.

        `points` are by entry, as `Curve.add` takes.
        """
        with self.changed:
            self.step, self.done, self.seconds_left = step, done, left
            self.seconds += seconds
            for name, point in points.items():
                self.curves.setdefault(name, Curve()).add(**point)

    def to_dict(self, curves: bool = False) -> dict[str, Any]:
        with self.changed:
            steps = self.step / self.done if 0 < self.done < 1 else self.step
            data: dict[str, Any] = {
                "id": self.id,
                "book": self.book,
                "entries": list(self.entries),
                "state": self.state,
                "message": self.message,
                "step": self.step,
                "steps": round(steps),  # if no entry stops early
                "done": round(self.done, 4),
                "seconds": round(self.seconds, 1),
                "seconds_left": self.seconds_left and round(self.seconds_left, 1),
                "settings": dict(self.settings),
                "minutes": self.minutes,
            }
            if curves:
                data["curves"] = {name: curve.to_dict() for name, curve in self.curves.items()}
            return data

    def points_after(self, sent: dict[str, int]) -> list[dict[str, Any]]:
        """Points after the updates `sent`, by entry, which is advanced to the last ones."""
        with self.changed:
            points = []
            for name, curve in self.curves.items():
                new = curve.points_after(sent.get(name, 0))
                points += [{"entry": name, **point} for point in new]
                sent[name] = curve.last_step
            return points
