"""Timers of sticky and cooldown, as a story stores them with each turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from softlore.errors import ContextError
from softlore.lore import Entry


@dataclass(frozen=True)
class Timers:
    """When entries with `sticky` or `cooldown` were triggered, by name, in messages of the story.

    ::

        messages   at ──────────▶ at + sticky ──────────▶ at + sticky + cooldown
                       sticky                  cooldown

    An entry triggered when the story has `at` messages is sticky while the story has more than `at`
    and fewer than `at + sticky`, then cools down for `cooldown` messages. A timer is ignored while
    the story has `at` messages or fewer, so that a turn that is undone or retried leaves no trace.
    """

    triggered: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Returns the timers that `to_dict` wrote. Raises ContextError for any other data."""
        if not isinstance(data, Mapping):
            raise ContextError(f"timers are {data!r:.60}; expected names with message counts")
        for name, at in data.items():
            if not isinstance(name, str) or type(at) is not int or at < 0:
                raise ContextError(
                    f"the timer of {name!r:.60} is {at!r:.60}; expected a count of messages by "
                    "an entry's name"
                )
        return cls(dict(data))

    def to_dict(self) -> dict[str, int]:
        """Returns the timers as JSON can hold them."""
        return dict(self.triggered)

    def sticky_left(self, entry: Entry, messages: int) -> int:
        """Returns for how many more messages the entry is sticky; 0 if it is not."""
        at = self.triggered.get(entry.name, messages)
        return max(0, at + entry.sticky - messages) if at < messages else 0

    def cooldown_left(self, entry: Entry, messages: int) -> int:
        """Returns for how many more messages the entry cools down; 0 if it does not."""
        at = self.triggered.get(entry.name, messages)
        if at >= messages or self.sticky_left(entry, messages):
            return 0
        return max(0, at + entry.sticky + entry.cooldown - messages)

    def after(self, entries: Iterable[Entry], active: Iterable[Entry], messages: int) -> Self:
        """Returns the timers after a scan at this length of the story, with its active entries.

        Timers of entries that are not given are retained: their lorebook may be loaded again.
        """
        ended = {
            entry.name
            for entry in entries
            if entry.name in self.triggered
            and not self.sticky_left(entry, messages)
            and not self.cooldown_left(entry, messages)
        }
        remaining = self.triggered.items()
        triggered = {name: at for name, at in remaining if at < messages and name not in ended}
        for entry in active:
            if entry.sticky or entry.cooldown:
                triggered.setdefault(entry.name, messages)
        return type(self)(triggered)
