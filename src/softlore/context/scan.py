"""One scan of a story for the entries it activates, a method per step. See `activation.py`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from softlore.context.keys import Keys, PatternSearch, ScannedTexts, prepare_keys
from softlore.context.timers import Timers
from softlore.lore import Entry
from softlore.settings import Settings, setting

_COUNT = "a whole number, 0 or more"


class ScanSettings(Settings):
    """How stories are scanned, where an entry does not say it itself."""

    scan_depth: int = setting(
        2, "Last messages that are searched; 0: only the text of entries.", ge=0, expected=_COUNT
    )
    case_sensitive: bool = setting(False, "Keys must match in upper and lower case.")
    # SillyTavern's default is False, by which "AI" is found in "ain't".
    match_whole_words: bool = setting(True, "A key of one word must be a word by itself.")
    recursive: bool = setting(True, "The text of active entries is searched too.")
    # Without a limit a scan ends too, since an entry becomes active once.
    max_rounds: int = setting(
        0, "Most rounds of a scan: 1 is no recursion, 0 no limit.", ge=0, expected=_COUNT
    )


def draw(seed: int, messages: int, *names: str) -> float:
    """Returns a random number in [0, 1) that depends on the arguments only."""
    return random.Random(repr((seed, messages, *names))).random()


@dataclass(eq=False)
class Candidate:
    """An enabled entry in a scan.

    Attributes:
        place: among the entries given.
        depth: how many messages are searched.
        sticky: for how many more messages it is sticky.
        blocked: why its delay or cooldown keeps it out; empty if they do not.
        match: the first key that was found, and the reason in words.
        skipped: why it was triggered and is not active; empty otherwise.
    """

    entry: Entry
    place: int
    keys: Keys
    secondary: Keys
    depth: int
    sticky: int
    blocked: str
    match: tuple[str, str] | None = None
    reason: str = ""
    key: str | None = None
    round: int = 0
    skipped: str = ""

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Sorts by who enters first: sticky entries, then by descending order."""
        return (not self.sticky, -self.entry.order, self.place)

    @property
    def groups(self) -> list[str]:
        """An entry may be in several groups, separated by commas."""
        return [name.strip() for name in self.entry.group.split(",") if name.strip()]


@dataclass(frozen=True)
class _RoundTexts:
    """The texts that are new in a round: the messages, last first, or texts of entries.

    `sources` are the names of these entries; None for messages.
    """

    texts: ScannedTexts
    sources: Sequence[str] | None = None

    def reason(self, key: str, place: int) -> str:
        if self.sources is not None:
            return f"triggered by entry {self.sources[place]!r}: key {key!r} in its text"
        return f"key {key!r} " + (f"{count(place)} back" if place else "in the last message")


@dataclass
class Scan:
    """One scan.

    Attributes:
        candidates: the enabled entries, as given.
        active: those that became active, in that order.
        spent: their cost.
        search: knows which regular expressions took too long.
    """

    entries: Sequence[Entry]
    messages: Sequence[str]
    settings: ScanSettings
    timers: Timers
    seed: int
    cost: Callable[[Entry], int]
    budget: float
    candidates: list[Candidate] = field(default_factory=list)
    active: list[Candidate] = field(default_factory=list)
    spent: int = 0
    search: PatternSearch = field(default_factory=PatternSearch)

    def __post_init__(self) -> None:
        self.candidates = [self._candidate(i, e) for i, e in enumerate(self.entries) if e.enabled]
        self._pending = list(self.candidates)  # neither active nor lost by probability
        self._messages_by_depth: dict[int, _RoundTexts] = {}
        self._entry_texts: list[_RoundTexts] = []  # by the round in which they became active
        self._round = 0
        self._level = 0  # the highest `delay_until_recursion` that may be triggered
        self._overflowed = ""  # the entry that did not fit the budget

    def _candidate(self, place: int, entry: Entry) -> Candidate:
        defaults, now, blocked = self.settings, len(self.messages), ""
        case = defaults.case_sensitive if entry.case_sensitive is None else entry.case_sensitive
        words = entry.match_whole_words
        words = defaults.match_whole_words if words is None else words
        if entry.delay > now:
            blocked = f"too early: the story has {count(now)}; its delay is {entry.delay}"
        elif cooldown := self.timers.cooldown_left(entry, now):
            blocked = f"cooling down for {count(cooldown)} more"
        return Candidate(
            entry,
            place,
            keys=prepare_keys(tuple(entry.keys), case, words),
            secondary=prepare_keys(
                tuple(entry.secondary_keys) if entry.selective else (), case, words
            ),
            depth=defaults.scan_depth if entry.scan_depth is None else entry.scan_depth,
            sticky=self.timers.sticky_left(entry, now),
            blocked=blocked,
        )

    def run(self) -> None:
        """Runs the rounds until no entry becomes active and no recursion level is left."""
        levels = sorted({c.entry.delay_until_recursion for c in self.candidates} - {0})
        while True:
            self._round += 1
            triggered = self._one_per_group(self._triggered())
            new = self._within_budget(self._draw_probability(triggered))
            self.active += new
            if self._overflowed or not self.settings.recursive:
                return
            sources = [c.entry for c in new if not c.entry.prevent_recursion]
            if self._round == self.settings.max_rounds:
                return
            if not sources and (self._round == 1 or not levels):
                return
            if levels and (not sources or not self._level):
                self._level = levels.pop(0)
            texts = ScannedTexts([entry.text for entry in sources])
            self._entry_texts.append(_RoundTexts(texts, [entry.name for entry in sources]))

    def _triggered(self) -> list[Candidate]:
        """Step 1 and 2: the triggered candidates whose timers and secondary keys agree, by rank."""
        triggered = []
        for candidate in self._pending:
            self._search_keys(candidate)
            entry, sticky = candidate.entry, candidate.sticky
            delayed = entry.delay_until_recursion > self._level
            if (delayed or (entry.exclude_recursion and self._round > 1)) and not sticky:
                continue
            skipped = candidate.blocked
            if entry.constant:
                candidate.reason = "constant"
            elif sticky:
                candidate.reason = f"sticky for {count(sticky)} more"
            elif candidate.match:
                candidate.key, candidate.reason = candidate.match
                skipped = skipped or self._secondary_problem(candidate)
            else:
                continue
            candidate.skipped = skipped
            if not skipped:
                triggered.append(candidate)
        return sorted(triggered, key=lambda candidate: candidate.rank)

    def _search_keys(self, candidate: Candidate) -> None:
        """Searches what is new since the previous round for the keys of a candidate."""
        if candidate.match or candidate.entry.constant or candidate.sticky:
            return
        texts = self._texts(candidate)[-1]
        if places := candidate.keys.find(texts.texts, self.search):
            first = min(places)
            key = candidate.entry.keys[first]
            candidate.match = (key, texts.reason(key, places[first]))

    def _texts(self, candidate: Candidate) -> list[_RoundTexts]:
        """All texts that are searched for a candidate's keys, by round."""
        depth = candidate.depth
        if depth not in self._messages_by_depth:
            last = self.messages[-depth:] if depth else []
            self._messages_by_depth[depth] = _RoundTexts(ScannedTexts(last[::-1]))
        return [self._messages_by_depth[depth], *self._entry_texts]

    def _secondary_problem(self, candidate: Candidate) -> str:
        """Why the secondary keys keep a candidate out; empty if they do not."""
        keys = candidate.secondary
        if not keys.size:
            return ""
        places: set[int] = set()
        for texts in self._texts(candidate):
            places |= keys.find(texts.texts, self.search).keys()
        any_found, all_found = bool(places), len(places) == keys.size
        failed, problem = {
            "and_any": (not any_found, "none of its secondary keys is found"),
            "and_all": (not all_found, "not all of its secondary keys are found"),
            "not_any": (any_found, "one of its secondary keys is found"),
            "not_all": (all_found, "all of its secondary keys are found"),
        }[candidate.entry.selective_logic]
        return problem if failed else ""

    def _one_per_group(self, triggered: list[Candidate]) -> list[Candidate]:
        """Step 3: one of each group: all sticky ones if any; none if one is active already."""
        groups: dict[str, list[Candidate]] = {}
        for candidate in triggered:
            for name in candidate.groups:
                groups.setdefault(name, []).append(candidate)
        # Groups with sticky entries first: what loses to those does not compete in other groups.
        ordered = sorted(groups, key=lambda name: not any(c.sticky for c in groups[name]))
        remaining = dict.fromkeys(triggered)
        for name in ordered:
            members = [c for c in groups[name] if c in remaining]
            active = [c for c in self.active if name in c.groups]
            winners = [c for c in members if c.sticky]
            if members and not winners and not active:
                winners = [self._group_winner(name, members)]
            for loser in members:
                if loser not in winners:
                    winner = (winners or active)[0].entry.name
                    loser.skipped = f"lost in group {name!r} to {winner!r}"
                    del remaining[loser]
        return list(remaining)

    def _group_winner(self, group: str, members: list[Candidate]) -> Candidate:
        """The first by rank of those that override, else one drawn by weight."""

        def waiting_time(candidate: Candidate) -> float:
            # Of independent exponential waiting times, the one of rate w is the shortest with a
            # probability proportional to w.
            drawn = draw(self.seed, len(self.messages), group, candidate.entry.name)
            weight = candidate.entry.group_weight
            return -math.log1p(-drawn) / weight if weight else math.inf

        overriding = [c for c in members if c.entry.group_override]
        return overriding[0] if overriding else min(members, key=waiting_time)

    def _draw_probability(self, triggered: list[Candidate]) -> list[Candidate]:
        """Step 4: those that win their draw. One that loses it is out for the whole scan."""
        lost = set()
        for candidate in triggered:
            percent = candidate.entry.probability
            if percent < 100 and not candidate.sticky:
                drawn = draw(self.seed, len(self.messages), candidate.entry.name)
                if drawn * 100 >= percent:
                    candidate.skipped = f"lost the draw of probability ({percent:g}%)"
                    lost.add(candidate)
        self._pending = [c for c in self._pending if c not in lost]
        return [c for c in triggered if c not in lost]

    def _within_budget(self, triggered: list[Candidate]) -> list[Candidate]:
        """Step 5: those that the budget has room for."""
        new = []
        for candidate in triggered:
            entry, price = candidate.entry, self.cost(candidate.entry)
            if self._overflowed and not entry.ignore_budget:
                candidate.skipped = (
                    f"budget: nothing enters after {self._overflowed!r}, which did not fit"
                )
            elif self.spent + price > self.budget and not entry.ignore_budget:
                left = max(0, self.budget - self.spent)
                candidate.skipped = f"budget: costs {price}, and {left} of {self.budget} are left"
                self._overflowed = entry.name
            else:
                self.spent += price
                candidate.round = self._round
                new.append(candidate)
        entered = set(new)
        self._pending = [c for c in self._pending if c not in entered]
        return new


def count(messages: int) -> str:
    """Returns "1 message", "2 messages" and so on."""
    return f"{messages} message" if messages == 1 else f"{messages} messages"
