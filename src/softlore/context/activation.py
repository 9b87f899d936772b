"""Activation: which entries of World Info a story calls up, by the rules that SillyTavern set.

A scan goes round by round. In each, of the entries that are enabled and not yet active,

1. constant and sticky ones, and those with a key in the text searched, are called up;
2. those whose time has not come (delay, cooldown) or whose secondary keys say no are passed over;
3. of each group, one is left;
4. probability is drawn;
5. by descending order, those enter that the budget has room for.

The first round searches the last messages; the text of the entries that entered is searched by the
next one as well, until nothing new enters. Entries delayed until recursion join in from the second
round on: the lowest level first, each next one when a round has brought nothing new.

Everything here is pure: the same story, settings and seed give the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

from softlore.context.scan import Candidate, Scan, ScanSettings
from softlore.context.timers import Timers
from softlore.errors import ConfigError, ContextError
from softlore.lore import Entry
from softlore.lore.entry import Role


@dataclass(frozen=True)
class ActiveEntry:
    """An entry that is used, the reason in plain words, the key that called it, and the round."""

    entry: Entry
    reason: str
    key: str | None
    round: int


@dataclass(frozen=True)
class SkippedEntry:
    """An entry that was called up and is not used, and why, in plain words."""

    entry: Entry
    why: str


@dataclass(frozen=True)
class BadKey:
    """A key that matches nothing, being no valid regular expression or taking too long."""

    entry: Entry
    key: str
    why: str


@dataclass(frozen=True)
class Activation:
    """What a scan found.

    Attributes:
        active: the entries used, in the order of insertion: by ascending `order`, then as given.
        passed: those called up but not used, in the same order.
        bad_keys: keys that could not be searched for.
        timers: to be handed to the next scan.
        cost: what the active entries cost together; 0 without a budget.
    """

    active: list[ActiveEntry]
    passed: list[SkippedEntry]
    bad_keys: list[BadKey]
    timers: Timers
    cost: int


@dataclass
class EntryPlacement:
    """Active entries by where they go, each list in the order of insertion.

    Attributes:
        at_depth: by how many messages before the end of the story, and who says it; in the order
            of the text, the deepest first.
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
    scanning: ScanSettings | None = None,
    timers: Timers | None = None,
    *,
    seed: int = 0,
    cost: Callable[[Entry], int] | None = None,
    budget: int | None = None,
) -> Activation:
    """Finds the entries that a story calls up.

    Args:
        entries: a lorebook, or entries of several; timers and draws know them by name.
        messages: the story so far, the oldest message first.
        scanning: settings of the program; None: the defaults.
        timers: what the scan before this one gave; None: none yet.
        seed: of the draws by probability and by weight. They depend on the number of messages and
            on names besides, so that the same story gives the same draws.
        cost: what an entry costs, in tokens.
        budget: in each round entries enter by descending order until one does not fit; from then
            on none but those with `ignore_budget` enter, and recursion stops.

    Raises:
        ConfigError: a cost without a budget or the other way round, or a budget below 0.
        ContextError: `messages` is a single text.
    """
    if isinstance(messages, str):
        raise ContextError("messages is one text; expected a list of texts; write [text]")
    if (cost is None) != (budget is None):
        raise ConfigError("cost and budget go together; give both, or neither")
    if budget is not None and not budget >= 0:
        raise ConfigError(f"budget is {budget!r:.60}; expected 0 or more; change it")
    scan = Scan(
        list(entries),
        messages,
        scanning or ScanSettings(),
        timers or Timers(),
        seed,
        cost or (lambda entry: 0),
        math.inf if budget is None else budget,
    )
    scan.run()
    inserted = sorted(scan.everyone, key=lambda c: (c.entry.order, c.place))
    used = set(scan.active)
    return Activation(
        [ActiveEntry(c.entry, c.reason, c.key, c.round) for c in inserted if c in used],
        [SkippedEntry(c.entry, c.why_not) for c in inserted if c not in used and c.why_not],
        [BadKey(c.entry, *bad) for c in scan.everyone for bad in _bad_keys(c, scan.watch.slow)],
        scan.timers.after(scan.entries, (c.entry for c in scan.active), len(messages)),
        scan.spent,
    )


def _bad_keys(candidate: Candidate, slow: dict[str, str]) -> list[tuple[str, str]]:
    """The keys of a candidate that match nothing, each with the reason."""
    found: list[tuple[str, str]] = []
    for keys in (candidate.keys, candidate.secondary):
        found += keys.wrong
        found += [(key, slow[key]) for key, _, _ in keys.patterns if key in slow]
    return found


def place_entries(active: Iterable[ActiveEntry]) -> EntryPlacement:
    """Sorts active entries by where they go."""
    places = EntryPlacement()
    depths: dict[tuple[int, Role], list[ActiveEntry]] = {}
    for one in sorted(active, key=lambda one: one.entry.order):
        entry = one.entry
        if entry.position == "at_depth":
            depths.setdefault((entry.depth, entry.role), []).append(one)
        else:
            listed: list[ActiveEntry] = getattr(places, entry.position)
            listed.append(one)
    roles = get_args(Role)
    for depth, role in sorted(depths, key=lambda at: (-at[0], roles.index(at[1]))):
        places.at_depth[depth, role] = depths[depth, role]
    return places
