"""One scan of a story for the entries it activates, a method per step. See `activation.py`."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from softlore.context.keys import (
    IndexedKey,
    Keys,
    KeySearch,
    KeySettings,
    PatternSearch,
    ScannedTexts,
    prepare_book,
)
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


@dataclass(eq=False, slots=True)
class Candidate:
    """An enabled entry in a scan."""

    entry: Entry
    number: int  # among the enabled entries given
    keys: Keys
    secondary: Keys
    depth: int  # how many messages are searched
    sticky: int  # for how many more messages it is sticky
    blocked: str  # why its delay or cooldown excludes it; empty if they do not
    reason: str = ""  # why it is triggered; empty before it is
    key: str | None = None  # the first of its keys in the texts
    round: int = 0  # in which it became active
    skipped: str = ""  # why it was triggered and is not active; empty otherwise
    done: bool = False  # it is active, or cannot become so any more
    secondary_places: set[int] = field(default_factory=set)  # of the secondary keys found
    searched: int = 0  # batches of texts that were searched for its secondary patterns

    @property
    def groups(self) -> list[str]:
        """An entry may be in several groups, separated by commas."""
        return [name.strip() for name in self.entry.group.split(",") if name.strip()]


class Scan:
    """A scan. `candidates` are the enabled entries, `active` those that became active, by time.

    A round looks only at candidates for which something may have changed: those with a key in its
    texts, those whose recursion level is reached, and those that lost in a group to one that did
    not become active. So the time of a scan is linear in the texts that are searched.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        messages: Sequence[str],
        settings: ScanSettings,
        timers: Timers,
        seed: int,
    ) -> None:
        self.messages, self.settings, self.timers, self.seed = messages, settings, timers, seed
        enabled = [entry for entry in entries if entry.enabled]
        book = prepare_book(tuple(self._key_settings(entry) for entry in enabled))
        self.candidates = [
            self._candidate(i, entry, book.keys[2 * i], book.keys[2 * i + 1])
            for i, entry in enumerate(enabled)
        ]
        self.active: list[Candidate] = []
        self.search = PatternSearch()
        self._keys = KeySearch(book.index)
        self.may_have_bad_keys = [self.candidates[i] for i in book.may_be_bad]
        self._with_patterns = [self.candidates[i] for i in book.with_patterns]
        self._texts: list[ScannedTexts] = []  # messages, then texts of entries by round
        self._by_level: dict[int, list[Candidate]] = {}  # triggered, and too early in recursion
        self._by_group: dict[str, list[Candidate]] = {}  # active
        self._losers: list[tuple[Candidate, Candidate]] = []  # in groups, with who won
        self._round = 0
        self._level = 0  # the highest `delay_until_recursion` that may be triggered

    def _key_settings(self, entry: Entry) -> KeySettings:
        case, words = entry.case_sensitive, entry.match_whole_words
        return KeySettings(
            tuple(entry.keys),
            tuple(entry.secondary_keys) if entry.selective else (),
            self.settings.case_sensitive if case is None else case,
            self.settings.match_whole_words if words is None else words,
        )

    def _candidate(self, number: int, entry: Entry, keys: Keys, secondary: Keys) -> Candidate:
        now, blocked, reason, sticky = len(self.messages), "", "", 0
        depth = self.settings.scan_depth if entry.scan_depth is None else entry.scan_depth
        if entry.delay > now:
            blocked = f"too early: the story has {_count(now)}; its delay is {entry.delay}"
        if entry.name in self.timers.triggered:
            sticky = self.timers.sticky_left(entry, now)
            if not blocked and (cooldown := self.timers.cooldown_left(entry, now)):
                blocked = f"cooling down for {_count(cooldown)} more"
        if entry.constant:
            reason = "constant"
        elif sticky:
            reason = f"sticky for {_count(sticky)} more"
        return Candidate(entry, number, keys, secondary, depth, sticky, blocked, reason)

    def run(self) -> None:
        """Runs rounds until no entry becomes active and no recursion level remains."""
        levels = sorted({c.entry.delay_until_recursion for c in self.candidates} - {0})
        deepest = max((c.depth for c in self.candidates), default=0)
        texts = ScannedTexts(self.messages[-deepest:][::-1] if deepest else [])
        due = dict.fromkeys(c for c in self.candidates if c.reason)
        while True:
            self._round += 1
            self._texts.append(texts)
            due.update(dict.fromkeys(self._search_keys(texts)))
            again: list[Candidate] = []
            triggered = [c for c in due if self._may_become_active(c, again)]
            new = self._draw_probability(self._one_per_group(triggered))
            self._add_active(new)
            if not self.settings.recursive or self._round == self.settings.max_rounds:
                return
            sources = [c.entry for c in new if not c.entry.prevent_recursion]
            if not sources and (self._round == 1 or not levels):
                return
            if levels and (not sources or not self._level):
                self._level = levels.pop(0)
                again += self._by_level.pop(self._level, [])
            due = dict.fromkeys([*again, *self._losers_to_inactive()])
            texts = ScannedTexts([e.text for e in sources], [e.name for e in sources])

    def _may_become_active(self, candidate: Candidate, again: list[Candidate]) -> bool:
        """Step 2: whether timers, recursion and secondary keys allow a triggered candidate.

        One that must be looked at in the next round whatever its texts hold is added to `again`.
        """
        entry = candidate.entry
        if candidate.done:
            return False
        if not candidate.sticky:
            if entry.exclude_recursion and self._round > 1:
                candidate.done = True
                return False
            if entry.delay_until_recursion > self._level:
                self._by_level.setdefault(entry.delay_until_recursion, []).append(candidate)
                return False
        candidate.done = bool(candidate.blocked)
        candidate.skipped = candidate.blocked or self._secondary_problem(candidate)
        if candidate.skipped and not candidate.done and candidate.secondary.patterns:
            again.append(candidate)
        return not candidate.skipped

    def _search_keys(self, texts: ScannedTexts) -> list[Candidate]:
        """Step 1: searches texts for the keys of all; returns the triggered that have one there."""
        recursion = bool(texts.entries)
        found: dict[Candidate, dict[int, int]] = {}
        touched: list[Candidate] = []
        for one, back in self._keys.find(texts, self._is_wanted):
            candidate = self.candidates[one.number // 2]
            if not recursion and back >= candidate.depth:
                continue
            if one.number % 2:
                candidate.secondary_places.add(one.key.place)
                touched.append(candidate)
            else:
                found.setdefault(candidate, {})[one.key.place] = back
        self._with_patterns = [c for c in self._with_patterns if not c.reason and not c.done]
        for candidate in self._with_patterns:
            searched = texts.texts if recursion else texts.texts[: candidate.depth]
            if places := candidate.keys.find_patterns(searched, self.search):
                found.setdefault(candidate, {}).update(places)
        for candidate, places in found.items():
            first = min(places)
            candidate.key = key = candidate.entry.keys[first]
            candidate.reason = _reason(key, places[first], texts)
        return [c for c in [*touched, *found] if c.reason and not c.done]

    def _is_wanted(self, one: IndexedKey) -> bool:
        """Whether a plain key may still change something."""
        candidate = self.candidates[one.number // 2]
        if one.number % 2:
            return not candidate.done and one.key.place not in candidate.secondary_places
        return not candidate.reason and not candidate.done

    def _secondary_problem(self, candidate: Candidate) -> str:
        """Why the secondary keys exclude a candidate with a key; empty if they do not."""
        keys, places = candidate.secondary, candidate.secondary_places
        if not keys.size or candidate.key is None:
            return ""
        if keys.patterns:
            for texts in self._texts[candidate.searched :]:
                searched = texts.texts if texts.entries else texts.texts[: candidate.depth]
                places.update(keys.find_patterns(searched, self.search))
            candidate.searched = len(self._texts)
        any_found, all_found = bool(places), len(places) == keys.size
        failed, problem = {
            "and_any": (not any_found, "none of its secondary keys is found"),
            "and_all": (not all_found, "not all of its secondary keys are found"),
            "not_any": (any_found, "one of its secondary keys is found"),
            "not_all": (all_found, "all of its secondary keys are found"),
        }[candidate.entry.selective_logic]
        return problem if failed else ""

    def _one_per_group(self, triggered: list[Candidate]) -> list[Candidate]:
        """Step 3: one of each group: all sticky ones if any; none if one is active already.

        The order is that of activation: sticky ones first, then by descending order.
        """
        triggered = sorted(triggered, key=lambda c: (not c.sticky, -c.entry.order, c.number))
        groups: dict[str, list[Candidate]] = {}
        for candidate in triggered:
            for name in candidate.groups:
                groups.setdefault(name, []).append(candidate)

        def is_decided(name: str) -> bool:
            return name in self._by_group or any(c.sticky for c in groups[name])

        # Groups with active or sticky members first: what loses there does not compete in others.
        remaining = dict.fromkeys(triggered)
        for name in sorted(groups, key=lambda name: not is_decided(name)):
            members = [c for c in groups[name] if c in remaining]
            active = self._by_group.get(name, [])
            winners = [c for c in members if c.sticky]
            if members and not winners and not active:
                winners = [self._group_winner(name, members)]
            for loser in members:
                if loser not in winners:
                    winner = (winners or active)[0]
                    loser.skipped = f"lost in group {name!r} to {winner.entry.name!r}"
                    self._losers.append((loser, winner))
                    del remaining[loser]
        return list(remaining)

    def _losers_to_inactive(self) -> list[Candidate]:
        """Those that lost in a group to one that did not become active; others are out."""
        losers, self._losers = self._losers, []
        for loser, winner in losers:
            loser.done = winner.round > 0
        return [loser for loser, _ in losers if not loser.done]

    def _add_active(self, new: list[Candidate]) -> None:
        self.active += new
        for candidate in new:
            for name in candidate.groups:
                self._by_group.setdefault(name, []).append(candidate)

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
            candidate.done = True
            if sure or draw(self.seed, len(self.messages), entry.name) * 100 < percent:
                candidate.round = self._round
                new.append(candidate)
            else:
                candidate.skipped = f"lost the draw of probability ({percent:g}%)"
        return new


def _reason(key: str, place: int, texts: ScannedTexts) -> str:
    """Why a key triggers its entry: the text that it is in."""
    if texts.entries:
        return f"triggered by entry {texts.entries[place]!r}: key {key!r} in its text"
    return f"key {key!r} {f'{_count(place)} back' if place else 'in the last message'}"


def _count(messages: int) -> str:
    return f"{messages} message" if messages == 1 else f"{messages} messages"
