"""One scan of a story for the entries it activates, a method per step. See `activation.py`."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

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
    """An enabled entry in a scan."""

    entry: Entry
    place: int  # among the entries given
    keys: Keys
    secondary: Keys
    depth: int  # how many messages are searched
    sticky: int  # for how many more messages it is sticky
    blocked: str  # why its delay or cooldown excludes it; empty if they do not
    reason: str = ""  # why it is triggered; empty before it is
    key: str | None = None  # the first of its keys in the texts
    round: int = 0  # in which it became active
    skipped: str = ""  # why it was triggered and is not active; empty otherwise

    @property
    def groups(self) -> list[str]:
        """An entry may be in several groups, separated by commas."""
        return [name.strip() for name in self.entry.group.split(",") if name.strip()]


class Scan:
    """A scan. `candidates` are the enabled entries, `active` those that became active, by time."""

    def __init__(
        self,
        entries: Sequence[Entry],
        messages: Sequence[str],
        settings: ScanSettings,
        timers: Timers,
        seed: int,
    ) -> None:
        self.messages, self.settings, self.timers, self.seed = messages, settings, timers, seed
        self.candidates = [self._candidate(i, e) for i, e in enumerate(entries) if e.enabled]
        self.active: list[Candidate] = []
        self.search = PatternSearch()
        self._pending = list(self.candidates)  # neither active nor lost by probability
        self._messages_by_depth: dict[int, ScannedTexts] = {}
        self._entry_texts: list[ScannedTexts] = []  # by the round in which they became active
        self._round = 0
        self._level = 0  # the highest `delay_until_recursion` that may be triggered

    def _candidate(self, place: int, entry: Entry) -> Candidate:
        now, blocked, reason = len(self.messages), "", ""
        case, words, depth = (
            getattr(self.settings if getattr(entry, name) is None else entry, name)
            for name in ("case_sensitive", "match_whole_words", "scan_depth")
        )
        if entry.delay > now:
            blocked = f"too early: the story has {_count(now)}; its delay is {entry.delay}"
        elif cooldown := self.timers.cooldown_left(entry, now):
            blocked = f"cooling down for {_count(cooldown)} more"
        sticky = self.timers.sticky_left(entry, now)
        if entry.constant:
            reason = "constant"
        elif sticky:
            reason = f"sticky for {_count(sticky)} more"
        keys = prepare_keys(tuple(entry.keys), case, words)
        secondary = prepare_keys(
            tuple(entry.secondary_keys if entry.selective else ()), case, words
        )
        return Candidate(entry, place, keys, secondary, depth, sticky, blocked, reason)

    def run(self) -> None:
        """Runs rounds until no entry becomes active and no recursion level remains."""
        levels = sorted({c.entry.delay_until_recursion for c in self.candidates} - {0})
        while True:
            self._round += 1
            new = self._draw_probability(self._one_per_group(self._triggered()))
            self.active += new
            if not self.settings.recursive or self._round == self.settings.max_rounds:
                return
            sources = [c.entry for c in new if not c.entry.prevent_recursion]
            if not sources and (self._round == 1 or not levels):
                return
            if levels and (not sources or not self._level):
                self._level = levels.pop(0)
            texts, names = [entry.text for entry in sources], [entry.name for entry in sources]
            self._entry_texts.append(ScannedTexts(texts, names))

    def _triggered(self) -> list[Candidate]:
        """Steps 1 and 2: the triggered candidates whose timers and secondary keys allow it.

        Sticky entries are first, then by descending order.
        """
        triggered = []
        for candidate in self._pending:
            if not candidate.reason:
                self._search_keys(candidate)
            entry = candidate.entry
            late = entry.exclude_recursion and self._round > 1
            excluded = late or entry.delay_until_recursion > self._level
            if candidate.reason and (candidate.sticky or not excluded):
                candidate.skipped = candidate.blocked or self._secondary_problem(candidate)
                if not candidate.skipped:
                    triggered.append(candidate)
        return sorted(triggered, key=lambda c: (not c.sticky, -c.entry.order, c.place))

    def _search_keys(self, candidate: Candidate) -> None:
        """Searches what is new since the previous round for the keys of a candidate."""
        texts = self._texts(candidate)[-1]
        places = candidate.keys.find(texts, self.search)
        if not places:
            return
        first = min(places)
        key, back = candidate.entry.keys[first], places[first]
        candidate.key = key
        if texts.entries:
            source = texts.entries[back]
            candidate.reason = f"triggered by entry {source!r}: key {key!r} in its text"
        else:
            candidate.reason = (
                f"key {key!r} {f'{_count(back)} back' if back else 'in the last message'}"
            )

    def _texts(self, candidate: Candidate) -> list[ScannedTexts]:
        """All texts that are searched for a candidate's keys: messages, then texts by round."""
        depth = candidate.depth
        if depth not in self._messages_by_depth:
            last = self.messages[-depth:] if depth else []
            self._messages_by_depth[depth] = ScannedTexts(last[::-1])
        return [self._messages_by_depth[depth], *self._entry_texts]

    def _secondary_problem(self, candidate: Candidate) -> str:
        """Why the secondary keys exclude a candidate with a key; empty if they do not."""
        keys = candidate.secondary
        if not keys.size or candidate.key is None:
            return ""
        places: set[int] = set()
        for texts in self._texts(candidate):
            places |= keys.find(texts, self.search).keys()
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
        """The first that overrides the others, else one drawn by weight."""

        def waiting_time(candidate: Candidate) -> float:
            # The shortest of exponential waiting times has rate w with a probability ∝ w.
            drawn = draw(self.seed, len(self.messages), group, candidate.entry.name)
            weight = candidate.entry.group_weight
            return -math.log1p(-drawn) / weight if weight else math.inf

        overriding = [c for c in members if c.entry.group_override]
        return overriding[0] if overriding else min(members, key=waiting_time)

    def _draw_probability(self, triggered: list[Candidate]) -> list[Candidate]:
        """Step 4: those that win their draw. The others are out for the whole scan."""
        new = []
        for candidate in triggered:
            entry, percent = candidate.entry, candidate.entry.probability
            sure = percent >= 100 or candidate.sticky
            if sure or draw(self.seed, len(self.messages), entry.name) * 100 < percent:
                candidate.round = self._round
                new.append(candidate)
            else:
                candidate.skipped = f"lost the draw of probability ({percent:g}%)"
        drawn = set(triggered)
        self._pending = [c for c in self._pending if c not in drawn]
        return new


def _count(messages: int) -> str:
    return f"{messages} message" if messages == 1 else f"{messages} messages"
