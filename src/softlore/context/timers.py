"""Timers: since when entries are sticky or cooling down, as a story stores them with each turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from softlore.errors import ContextError
from softlore.lore import Entry


@dataclass(frozen=True)
class Timers:
    """When entries with `sticky` or `cooldown` were called up, by name, in messages of the story.

    An entry called up when the story has `at` messages is sticky while it has more than `at` and
    fewer than `at + sticky`; then, or at once if it is not sticky, it cools down for `cooldown`
    messages. What happened at this length or later is as if it had not: a turn that is tried
    again, or undone, leaves no trace.
    """

    called: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """The timers that `data()` gave as plain data.

        Raises:
            ContextError: it holds something else than names with message counts.
        """
        if not isinstance(data, Mapping):
            raise ContextError(f"timers are {data!r:.60}; expected names with message counts")
        for name, at in data.items():
            if not isinstance(name, str) or type(at) is not int or at < 0:
                raise ContextError(
                    f"the timer of {name!r:.60} is {at!r:.60}; expected a count of messages by "
                    "an entry's name"
                )
        return cls(dict(data))

    def data(self) -> dict[str, int]:
        """The timers as JSON can hold them."""
        return dict(self.called)

    def sticky_left(self, entry: Entry, messages: int) -> int:
        """For how many messages more the entry is sticky; 0 if it is not."""
        at = self.called.get(entry.name, messages)
        return max(0, at + entry.sticky - messages) if at < messages else 0

    def cooldown_left(self, entry: Entry, messages: int) -> int:
        """For how many messages more the entry cools down; 0 if it does not."""
        at = self.called.get(entry.name, messages)
        if at >= messages or self.sticky_left(entry, messages):
            return 0
        return max(0, at + entry.sticky + entry.cooldown - messages)

    def after(self, entries: Iterable[Entry], active: Iterable[Entry], messages: int) -> Self:
        """The timers once `active` of all `entries` were used at this length of the story.

        Timers of entries that are not at hand are kept: their lorebook may come back.
        """
        known, running = set(), set()
        for entry in entries:
            known.add(entry.name)
            if self.sticky_left(entry, messages) or self.cooldown_left(entry, messages):
                running.add(entry.name)
        called = {
            name: at
            for name, at in self.called.items()
            if at < messages and (name in running or name not in known)
        }
        for entry in active:
            if entry.sticky or entry.cooldown:
                called.setdefault(entry.name, messages)
        return type(self)(called)
