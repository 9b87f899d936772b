"""A scan: the rounds in which a story calls up entries, a method a step. See `activation.py`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from softlore.context.keys import Keys, ScannedTexts, Watch, read_keys
from softlore.context.timers import Timers
from softlore.errors import ConfigError
from softlore.lore import Entry


@dataclass(frozen=True)
class ScanSettings:
    """How stories are searched, where an entry does not say it itself.

    Attributes:
        scan_depth: how many of the last messages are searched; 0: only the text of entries.
        case_sensitive: whether keys must match in upper and lower case.
        match_whole_words: whether a key that is a single word must stand as one. SillyTavern's own
            default is False; but then "AI" is found in "ain't".
        recursive: whether the text of active entries is searched too.
        max_rounds: the most rounds of a scan: 1 is no recursion; 0 is no limit, and a scan still
            ends, since every entry enters once.
    """

    scan_depth: int = 2
    case_sensitive: bool = False
    match_whole_words: bool = True
    recursive: bool = True
    max_rounds: int = 0

    def __post_init__(self) -> None:
        for name in ("scan_depth", "max_rounds"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ConfigError(
                    f"{name} is {value!r:.60}; expected a whole number, 0 or more; change it"
                )
        for name in ("case_sensitive", "match_whole_words", "recursive"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name} is {value!r:.60}; expected True or False; choose one")


def draw(seed: int, messages: int, *names: str) -> float:
    """A number from 0 up to 1, the same whenever it is asked for."""
    return random.Random(repr((seed, messages, *names))).random()


@dataclass(eq=False)
class Candidate:
    """An enabled entry in a scan: what is known of it before, and what has been found out."""

    entry: Entry
    place: int
    keys: Keys
    secondary: Keys
    depth: int  # how many messages are searched
    sticky: int  # for how many messages more
    waits: str  # why its time has not come
    found: tuple[str, str] | None = None  # a key, and why it calls the entry up
    reason: str = ""
    key: str | None = None
    round: int = 0
    why_not: str = ""

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Who enters first: sticky ones, then by descending order."""
        return (not self.sticky, -self.entry.order, self.place)

    @property
    def groups(self) -> list[str]:
        """A group may be several, with commas between."""
        return [name.strip() for name in self.entry.group.split(",") if name.strip()]


@dataclass(frozen=True)
class _Batch:
    """Texts that were new in one round: messages, the last first, or what entries say."""

    texts: ScannedTexts
    speakers: Sequence[str] | None = None

    def reason(self, key: str, place: int) -> str:
        if self.speakers is not None:
            return f"called up by entry {self.speakers[place]!r}: key {key!r} in its text"
        return f"key {key!r} " + (f"{count(place)} back" if place else "in the last message")


@dataclass
class Scan:
    """One scan.

    Attributes:
        everyone: the enabled entries, as given.
        active: those that have entered, in the order they did.
        spent: what they cost.
        watch: which keys took too long.
    """

    entries: Sequence[Entry]
    messages: Sequence[str]
    scanning: ScanSettings
    timers: Timers
    seed: int
    cost: Callable[[Entry], int]
    budget: float
    everyone: list[Candidate] = field(default_factory=list)
    active: list[Candidate] = field(default_factory=list)
    spent: int = 0
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        self.everyone = [self._candidate(i, e) for i, e in enumerate(self.entries) if e.enabled]
        self._waiting = list(self.everyone)  # neither active nor out of luck
        self._windows: dict[int, _Batch] = {}  # the last messages, by how many
        self._spoken: list[_Batch] = []  # what entries say, by the round in which they entered
        self._round = 0
        self._level = 0  # entries delayed until recursion beyond this level wait
        self._full = ""  # the entry that did not fit the budget

    def _candidate(self, place: int, entry: Entry) -> Candidate:
        def own(value: bool | None, given: bool) -> bool:
            return given if value is None else value

        case = own(entry.case_sensitive, self.scanning.case_sensitive)
        whole = own(entry.match_whole_words, self.scanning.match_whole_words)
        secondary = entry.secondary_keys if entry.selective else []
        now, waits = len(self.messages), ""
        if entry.delay > now:
            waits = f"too early: the story has {count(now)}, and it asks for {entry.delay}"
        elif left := self.timers.cooldown_left(entry, now):
            waits = f"cooling down for {count(left)} more"
        return Candidate(
            entry,
            place,
            keys=read_keys(tuple(entry.keys), case, whole),
            secondary=read_keys(tuple(secondary), case, whole),
            depth=self.scanning.scan_depth if entry.scan_depth is None else entry.scan_depth,
            sticky=self.timers.sticky_left(entry, now),
            waits=waits,
        )

    def run(self) -> None:
        """Every round, until nothing new enters and no level is left."""
        levels = sorted({c.entry.delay_until_recursion for c in self.everyone} - {0})
        while True:
            self._round += 1
            new = self._afford(self._lucky(self._one_of_each_group(self._call())))
            self.active += new
            if self._full or not self.scanning.recursive:
                return
            speakers = [c.entry for c in new if not c.entry.prevent_recursion]
            if self._round == self.scanning.max_rounds:
                return
            if not speakers and (self._round == 1 or not levels):
                return
            if levels and (not speakers or not self._level):
                self._level = levels.pop(0)
            texts = ScannedTexts([entry.text for entry in speakers])
            self._spoken.append(_Batch(texts, [entry.name for entry in speakers]))

    def _call(self) -> list[Candidate]:
        """Those called up in this round and let in by all but chance, the first to enter first."""
        called = []
        for candidate in self._waiting:
            self._search(candidate)
            entry, sticky = candidate.entry, candidate.sticky
            delayed = entry.delay_until_recursion > self._level
            if (delayed or (entry.exclude_recursion and self._round > 1)) and not sticky:
                continue
            why_not = candidate.waits
            if entry.constant:
                candidate.reason = "constant"
            elif sticky:
                candidate.reason = f"sticky for {count(sticky)} more"
            elif candidate.found:
                candidate.key, candidate.reason = candidate.found
                why_not = why_not or self._refused(candidate)
            else:
                continue
            candidate.why_not = why_not
            if not why_not:
                called.append(candidate)
        return sorted(called, key=lambda candidate: candidate.rank)

    def _search(self, candidate: Candidate) -> None:
        """Looks for the keys in what is new since the round before."""
        if candidate.found or candidate.entry.constant or candidate.sticky:
            return
        batch = self._batches(candidate)[-1]
        found = candidate.keys.find(batch.texts, self.watch)
        if found:
            first = min(found)
            key = candidate.entry.keys[first]
            candidate.found = (key, batch.reason(key, found[first]))

    def _batches(self, candidate: Candidate) -> list[_Batch]:
        """All that is searched for the candidate's keys, by round."""
        depth = candidate.depth
        if depth not in self._windows:
            window = self.messages[-depth:] if depth else []
            self._windows[depth] = _Batch(ScannedTexts(window[::-1]))
        return [self._windows[depth], *self._spoken]

    def _refused(self, candidate: Candidate) -> str:
        """Why the secondary keys do not let the entry in; empty if they do."""
        keys = candidate.secondary
        if not keys.size:
            return ""
        found: set[int] = set()
        for batch in self._batches(candidate):
            found |= keys.find(batch.texts, self.watch).keys()
        some, every = bool(found), len(found) == keys.size
        refused, why = {
            "and_any": (not some, "none of its secondary keys is there"),
            "and_all": (not every, "not all of its secondary keys are there"),
            "not_any": (some, "one of its secondary keys is there"),
            "not_all": (every, "all of its secondary keys are there"),
        }[candidate.entry.selective_logic]
        return why if refused else ""

    def _one_of_each_group(self, called: list[Candidate]) -> list[Candidate]:
        """Leaves one of a group: all that are sticky, if any; none, if one is active already."""
        groups: dict[str, list[Candidate]] = {}
        for candidate in called:
            for name in candidate.groups:
                groups.setdefault(name, []).append(candidate)
        # Groups with sticky ones first: who loses to those takes no part in another group.
        in_turn = sorted(groups, key=lambda name: not any(c.sticky for c in groups[name]))
        kept = dict.fromkeys(called)
        for name in in_turn:
            members = [c for c in groups[name] if c in kept]
            held = [c for c in self.active if name in c.groups]
            winners = [c for c in members if c.sticky]
            if members and not winners and not held:
                winners = [self._winner(name, members)]
            for loser in members:
                if loser not in winners:
                    winner = (winners or held)[0].entry.name
                    loser.why_not = f"lost in group {name!r} to {winner!r}"
                    del kept[loser]
        return list(kept)

    def _winner(self, group: str, members: list[Candidate]) -> Candidate:
        """The first by order of those that override, else one drawn by weight."""

        def wait(candidate: Candidate) -> float:
            # Of events that each come at their own rate, the first is any with odds like its rate.
            drawn = draw(self.seed, len(self.messages), group, candidate.entry.name)
            weight = candidate.entry.group_weight
            return -math.log1p(-drawn) / weight if weight else math.inf

        overriding = [c for c in members if c.entry.group_override]
        return overriding[0] if overriding else min(members, key=wait)

    def _lucky(self, called: list[Candidate]) -> list[Candidate]:
        """Those that win the draw of probability; who loses it is out for the whole scan."""
        lost = set()
        for candidate in called:
            percent = candidate.entry.probability
            if percent < 100 and not candidate.sticky:
                drawn = draw(self.seed, len(self.messages), candidate.entry.name)
                if drawn * 100 >= percent:
                    candidate.why_not = f"lost the draw of probability ({percent:g}%)"
                    lost.add(candidate)
        self._waiting = [c for c in self._waiting if c not in lost]
        return [c for c in called if c not in lost]

    def _afford(self, called: list[Candidate]) -> list[Candidate]:
        """Those that the budget has room for."""
        new = []
        for candidate in called:
            entry, price = candidate.entry, self.cost(candidate.entry)
            if self._full and not entry.ignore_budget:
                candidate.why_not = (
                    f"budget: nothing enters after {self._full!r}, which did not fit"
                )
            elif self.spent + price > self.budget and not entry.ignore_budget:
                left = max(0, self.budget - self.spent)
                candidate.why_not = f"budget: costs {price}, and {left} of {self.budget} are left"
                self._full = entry.name
            else:
                self.spent += price
                candidate.round = self._round
                new.append(candidate)
        entered = set(new)
        self._waiting = [c for c in self._waiting if c not in entered]
        return new


def count(messages: int) -> str:
    """A number of messages, in words."""
    return f"{messages} message" if messages == 1 else f"{messages} messages"
