"""How a training goes: loss, recall and drift of an entry by its updates, bounded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

MOST_POINTS = 1000
NAMES = ("loss", "recall", "drift")


@dataclass
class Curve:
    """Points of one entry. Of too many every second is left out, but for those with a recall."""

    step: list[int] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)
    recall: list[float | None] = field(default_factory=list)
    drift: list[float | None] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.step[-1] if self.step else 0

    def add(self, step: int, **values: float | None) -> None:
        """A point; one that is not later than the last is passed over."""
        if step <= self.last:
            return
        self.step.append(step)
        for name in NAMES:
            value = values.get(name)
            sound = value is not None and math.isfinite(value)
            getattr(self, name).append(round(float(value or 0), 5) if sound else None)
        if len(self.step) > MOST_POINTS:
            self._thin()

    def after(self, step: int) -> list[dict[str, Any]]:
        """The points later than an update, what they do not have left out."""
        start = next((i for i, one in enumerate(self.step) if one > step), len(self.step))
        return [self._point(i) for i in range(start, len(self.step))]

    def told(self) -> dict[str, list[Any]]:
        """All of it, as plain lists."""
        return {name: list(getattr(self, name)) for name in ("step", *NAMES)}

    @classmethod
    def from_told(cls, data: Any) -> Curve:
        """From what `told` gave; what is odd is passed over."""
        curve = cls()
        if isinstance(data, dict):
            lists = [data.get(name) for name in ("step", *NAMES)]
            if all(isinstance(one, list) for one in lists):
                for step, *values in zip(*lists, strict=False):
                    if type(step) is int and all(isinstance(v, float | int | None) for v in values):
                        curve.add(step, **dict(zip(NAMES, values, strict=True)))
        return curve

    def _point(self, place: int) -> dict[str, Any]:
        values = {name: getattr(self, name)[place] for name in NAMES}
        return {"step": self.step[place]} | {k: v for k, v in values.items() if v is not None}

    def _thin(self) -> None:
        last = len(self.step) - 1
        kept = [
            i
            for i in range(len(self.step))
            if i % 2 == 0 or i == last or self.recall[i] is not None
        ]
        if len(kept) > MOST_POINTS * 3 // 4:  # nearly all have a recall
            kept = [i for i in range(len(self.step)) if i % 2 == 0 or i == last]
        for name in ("step", *NAMES):
            values = getattr(self, name)
            values[:] = [values[i] for i in kept]
