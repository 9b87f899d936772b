"""Activation: which entries a story activates, by the rules of SillyTavern's World Info.

A scan runs in rounds. The first searches the last messages of the story for keys, each further one
the texts of the entries that became active in the round before (recursion)::

    messages ──▶ 1 trigger ──▶ 2 timers, secondary keys ──▶ 3 groups ──▶ 4 probability
                    ▲                                                        │
                    └──────── texts of the entries that became active ◀──────┘

In each round, of the entries that are enabled and not yet active,

1. constant and sticky ones, and those with a key in the texts searched, are triggered;
2. those whose delay or cooldown is not over, or whose secondary keys forbid it, are skipped;
3. one entry of each group remains;
4. the others become active with their probability.

The scan ends when a round activates nothing new. Entries with `delay_until_recursion` take part
from the second round on: the lowest level first, the next when a round activated nothing.

All functions are pure: the same story, settings and seed give the same result. Which of the active
entries enter the context is decided by `budget.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

from softlore.context.scan import Candidate, Scan, ScanSettings
from softlore.context.timers import Timers
from softlore.errors import ContextError
from softlore.lore import Entry
from softlore.lore.entry import Role


@dataclass(frozen=True)
class ActiveEntry:
    """An active entry, with the reason, its key in the texts, and the round it became active in."""

    entry: Entry
    reason: str
    key: str | None
    round: int


@dataclass(frozen=True)
class SkippedEntry:
    """An entry that was triggered and is not active, and why."""

    entry: Entry
    why: str


@dataclass(frozen=True)
class BadKey:
    """A key that matches nothing: an invalid regular expression, or one that takes too long."""

    entry: Entry
    key: str
    why: str


@dataclass(frozen=True)
class Activation:
    """The result of a scan: entries in insertion order (ascending `order`, then as given).

    `timers` are those to pass to the next scan.
    """

    active: list[ActiveEntry]
    skipped: list[SkippedEntry]
    bad_keys: list[BadKey]
    timers: Timers


@dataclass
class EntryPlacement:
    """Active entries by position, each list in insertion order.

    Attributes:
        at_depth: by how many messages before the end of the story, and role; the deepest first.
    """

    before_char: list[ActiveEntry] = field(default_factory=list)
    after_char: list[ActiveEntry] = field(default_factory=list)
    note_top: list[ActiveEntry] = field(default_factory=list)
    note_bottom: list[ActiveEntry] = field(default_factory=list)
    examples_top: list[ActiveEntry] = field(default_factory=list)
    examples_bottom: list[ActiveEntry] = field(default_factory=list)
    outlet: list[ActiveEntry] = field(default_factory=list)
    at_depth: dict[tuple[int, Role], list[ActiveEntry]] = field(default_factory=dict)


def activate(
    entries: Iterable[Entry],
    messages: Sequence[str],
    settings: ScanSettings | None = None,
    timers: Timers | None = None,
    *,
    seed: int = 0,
) -> Activation:
    """Returns the entries that a story activates.

    Args:
        entries: a lorebook, or entries of several; timers and draws identify them by name.
        messages: the story so far, the oldest message first.
        settings: None: the defaults.
        timers: those of the scan before this one; None: none yet.
        seed: of the draws by probability and by weight. They also depend on the number of messages
            and on names, so that the same story gives the same draws.

    Raises:
        ContextError: `messages` is a single text.
    """
    if isinstance(messages, str):
        raise ContextError("messages is one text; expected a list of texts; write [text]")
    entries, timers = list(entries), timers or Timers()
    scan = Scan(entries, messages, settings or ScanSettings(), timers, seed)
    scan.run()
    skipped = [c for c in scan.candidates if c.skipped and not c.round]
    return Activation(
        [ActiveEntry(c.entry, c.reason, c.key, c.round) for c in _ordered(scan.active)],
        [SkippedEntry(c.entry, c.skipped) for c in _ordered(skipped)],
        [bad for c in scan.may_have_bad_keys for bad in _bad_keys(c, scan.search.timeouts)],
        timers.after(entries, (c.entry for c in scan.active), len(messages)),
    )


def _ordered(candidates: list[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda c: (c.entry.order, c.number))


def _bad_keys(candidate: Candidate, timeouts: dict[str, str]) -> list[BadKey]:
    problems: list[tuple[str, str]] = []
    for keys in (candidate.keys, candidate.secondary):
        problems += keys.invalid
        problems += [(key, timeouts[key]) for key, _, _ in keys.patterns if key in timeouts]
    return [BadKey(candidate.entry, key, why) for key, why in problems]


def place_entries(active: Iterable[ActiveEntry]) -> EntryPlacement:
    """Sorts active entries by position."""
    placement = EntryPlacement()
    for item in sorted(active, key=lambda item: item.entry.order):
        entry = item.entry
        if entry.position == "at_depth":
            placement.at_depth.setdefault((entry.depth, entry.role), []).append(item)
        else:
            getattr(placement, entry.position).append(item)
    roles = get_args(Role)
    deepest_first = sorted(placement.at_depth, key=lambda at: (-at[0], roles.index(at[1])))
    placement.at_depth = {at: placement.at_depth[at] for at in deepest_first}
    return placement
