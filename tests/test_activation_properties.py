"""Activation of random books in random stories, compared with a slow reference."""

import json
import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from plain_scan import find_keys, plain_activate
from softlore.context import ScanSettings, Timers, activate, place_entries
from softlore.context.keys import Folding, KeyIndex, KeySearch, ScannedTexts, fold, prepare_keys
from softlore.context.scan import draw
from softlore.lore import Entry, Lorebook, check

WORDS = ["ab", "Ab", "abc", "b", "b-c", "cab"]
KEYS = [*WORDS, "ab b", "B C", "/^ab/", "/AB|cab/i", "/(/", "/b/zz"]


def random_text(rng):
    return " ".join(rng.choices(WORDS, k=rng.randint(0, 3)))


def random_book(rng):
    """Entries with random fields, so that the rules interact often."""

    def pick(*values):
        return rng.choice(values)

    def keys(most):
        return rng.choices(KEYS, k=rng.randint(0, most))

    return [
        Entry(
            name=f"entry {i}",
            keys=keys(3),
            text=random_text(rng) or "c",
            enabled=pick(True, True, True, False),
            constant=pick(True, False, False),
            secondary_keys=pick([], keys(2)),
            selective=pick(True, True, False),
            selective_logic=pick("and_any", "and_all", "not_any", "not_all"),
            order=rng.randint(0, 3),
            position=pick("before_char", "after_char", "at_depth", "outlet"),
            depth=rng.randint(0, 2),
            role=pick("system", "user", "assistant"),
            scan_depth=pick(None, 0, 1, 3),
            case_sensitive=pick(None, True, False),
            match_whole_words=pick(None, True, False),
            probability=pick(100, 100, 100, 50, 0),
            ignore_budget=pick(True, False, False, False),
            exclude_recursion=pick(True, False, False, False),
            prevent_recursion=pick(True, False, False, False),
            delay_until_recursion=pick(0, 0, 0, 1, 2, 5),
            group=pick("", "", "g", "h", "g, h"),
            group_override=pick(True, False, False),
            group_weight=pick(0, 1, 100),
            sticky=pick(0, 0, 2, 4),
            cooldown=pick(0, 0, 2, 4),
            delay=pick(0, 0, 0, 2),
        )
        for i in range(rng.randint(1, 10))
    ]


def random_settings(rng):
    return ScanSettings(
        scan_depth=rng.randint(0, 3),
        case_sensitive=rng.random() < 0.5,
        match_whole_words=rng.random() < 0.5,
        recursive=rng.random() < 0.8,
        max_rounds=rng.choice([0, 0, 0, 1, 2, 3]),
    )


def random_stories(rng):
    """A growing story; sometimes messages are undone."""
    messages = []
    for _ in range(8):
        if rng.random() < 0.2:
            messages = messages[: -rng.randint(1, 3)]
        messages = messages + [random_text(rng) for _ in range(rng.randint(0, 2))]
        yield messages


seeds = st.integers(0, 2**32)
texts = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)


# The reference


def matches(key, text, case, whole):
    if key == "/^ab/":
        return text.startswith("ab")
    if key == "/AB|cab/i":
        return "ab" in text.lower()
    if key == "/(/":
        return False
    if not case:
        key, text = key.lower(), text.lower()
    if not whole or " " in key:
        return key in text
    spaced = f" {text} "
    return any(
        spaced[i:].startswith(key)
        and not spaced[i - 1].isalnum()
        and not spaced[i + len(key)].isalnum()
        for i in range(1, len(spaced) - len(key))
    )


class Reference:
    """Applies all rules from the start: what is active, by round, and what is skipped."""

    def __init__(self, book, messages, scanning, called, seed):
        self.book, self.messages, self.scanning, self.seed = book, messages, scanning, seed
        self.n = len(messages)
        self.called = {name: at for name, at in called.items() if at < self.n}
        self.round_of, self.key_of, self.skipped = {}, {}, set()
        self.rounds = []  # the entries that entered, by round
        self.lost = set()
        self.run()

    def sticky(self, entry):
        at = self.called.get(entry.name)
        return at is not None and self.n < at + entry.sticky

    def cools(self, entry):
        at = self.called.get(entry.name)
        ended = at is not None and self.n >= at + entry.sticky
        return ended and self.n < at + entry.sticky + entry.cooldown

    def batches(self, entry):
        depth = self.scanning.scan_depth if entry.scan_depth is None else entry.scan_depth
        window = [self.messages[-i] for i in range(1, depth + 1) if i <= self.n]
        said = [[e.text for e in entered if not e.prevent_recursion] for entered in self.rounds]
        return [window, *said]

    def stands(self, entry, key, batch):
        case, whole = entry.case_sensitive, entry.match_whole_words
        case = self.scanning.case_sensitive if case is None else case
        whole = self.scanning.match_whole_words if whole is None else whole
        return any(matches(key, text, case, whole) for text in batch)

    def first_key(self, entry):
        for batch in self.batches(entry):
            for key in entry.keys:
                if self.stands(entry, key, batch):
                    return key
        return None

    def secondary(self, entry):
        if not entry.selective or not entry.secondary_keys:
            return True
        there = [
            any(self.stands(entry, key, batch) for batch in self.batches(entry))
            for key in entry.secondary_keys
        ]
        return {
            "and_any": any(there),
            "and_all": all(there),
            "not_any": not any(there),
            "not_all": not all(there),
        }[entry.selective_logic]

    def run(self):
        levels = sorted({e.delay_until_recursion for e in self.book if e.enabled} - {0})
        level, number = 0, 0
        while True:
            number += 1
            entered = self.one_round(number, level)
            self.rounds.append(entered)
            said = [e for e in entered if not e.prevent_recursion]
            if not self.scanning.recursive or number == self.scanning.max_rounds:
                break
            if said:
                if level == 0 and levels:
                    level = levels.pop(0)
            elif number > 1 and levels:
                level = levels.pop(0)
            else:
                break

    def one_round(self, number, level):
        called = []
        for entry in self.book:
            if not entry.enabled or entry.name in self.round_of or entry.name in self.lost:
                continue
            sticky = self.sticky(entry)
            if not sticky and entry.delay_until_recursion > level:
                continue
            if not sticky and entry.exclude_recursion and number > 1:
                continue
            key = None if entry.constant or sticky else self.first_key(entry)
            if not (entry.constant or sticky or key):
                continue
            self.skipped.add(entry.name)
            if self.n < entry.delay or self.cools(entry):
                continue
            if key and not self.secondary(entry):
                continue
            self.key_of[entry.name] = key
            called.append(entry)
        called.sort(key=lambda e: -e.order)
        called.sort(key=lambda e: not self.sticky(e))
        entered = self.lucky(self.grouped(called))
        self.round_of |= dict.fromkeys((entry.name for entry in entered), number)
        return entered

    def grouped(self, called):
        active = [e for e in self.book if e.name in self.round_of]
        groups = []
        for entry in called:
            groups += [g for g in entry.group.split(", ") if g and g not in groups]

        def members(group):
            return [e for e in called if group in e.group.split(", ")]

        open_groups = []
        for group in groups:
            if any(self.sticky(e) for e in members(group)) or any(
                group in e.group.split(", ") for e in active
            ):
                called = [e for e in called if e not in members(group) or self.sticky(e)]
            else:
                open_groups.append(group)
        for group in open_groups:
            inside = members(group)
            if len(inside) > 1:
                winner = self.winner(group, inside)
                called = [e for e in called if e not in inside or e is winner]
        return called

    def winner(self, group, inside):
        for entry in inside:
            if entry.group_override:
                return entry
        waits = []
        for entry in inside:
            u = draw(self.seed, self.n, group, entry.name)
            waits.append(-math.log1p(-u) / entry.group_weight if entry.group_weight else math.inf)
        return inside[waits.index(min(waits))]

    def lucky(self, called):
        for entry in called:
            drawn = draw(self.seed, self.n, entry.name)
            if drawn >= entry.probability / 100 and not self.sticky(entry):
                self.lost.add(entry.name)
        return [e for e in called if e.name not in self.lost]

    def timers(self):
        running = {
            e.name: self.called[e.name]
            for e in self.book
            if e.name in self.called and (self.sticky(e) or self.cools(e))
        }
        for entry in self.book:
            if entry.name in self.round_of and (entry.sticky or entry.cooldown):
                running.setdefault(entry.name, self.n)
        return running


@settings(max_examples=1000)
@given(seeds)
def test_activation_agrees_with_the_reference(number):
    rng = random.Random(number)
    book, scanning = random_book(rng), random_settings(rng)
    timers, seed = Timers(), rng.randint(0, 9)
    for messages in random_stories(rng):
        rules = Reference(book, messages, scanning, timers.triggered, seed)
        found = activate(book, messages, scanning, timers, seed=seed)
        expected = sorted((e for e in book if e.name in rules.round_of), key=lambda e: e.order)
        assert [one.entry for one in found.active] == expected
        assert [(one.round, one.key) for one in found.active] == [
            (rules.round_of[e.name], rules.key_of[e.name]) for e in expected
        ]
        assert {one.entry.name for one in found.skipped} == rules.skipped - set(rules.round_of)
        assert found.timers.to_dict() == rules.timers()
        again = activate(book, messages, scanning, timers, seed=seed)
        assert again == found
        assert plain_activate(book, messages, scanning, timers, seed) == found
        timers = Timers.from_dict(json.loads(json.dumps(found.timers.to_dict())))


@given(seeds)
def test_every_active_entry_has_one_place_in_order(number):
    rng = random.Random(number)
    book, scanning, messages = random_book(rng), random_settings(rng), list(random_stories(rng))[-1]
    active = activate(book, messages, scanning).active
    places = place_entries(active)
    lists = [ones for ones in vars(places).values() if isinstance(ones, list)]
    lists += places.at_depth.values()
    assert sorted(one.entry.name for ones in lists for one in ones) == sorted(
        one.entry.name for one in active
    )
    for ones in lists:
        assert ones == sorted(ones, key=lambda one: one.entry.order)
    for (depth, role), ones in places.at_depth.items():
        assert all((one.entry.depth, one.entry.role) == (depth, role) for one in ones)
    deepest_first = [-depth for depth, _ in places.at_depth]
    assert deepest_first == sorted(deepest_first)


# Letters of several scripts, marks and signs, so that words begin and end in every way.
letters = st.text(alphabet="aAb艾가é\u0301-' _1❤👩👍🏽🇫🇷\ufe0f\u200d\u20e3", max_size=6)


@settings(max_examples=400)
@given(letters, letters, st.booleans())
def test_a_key_that_is_cut_out_of_a_text_is_found_in_it(before, key, case):
    for text in (f"{before} {key} {before}", key):
        expected = {0: 0} if fold(key.strip(), Folding(case, True)) else {}
        assert find_keys([key], [text], case, False) == expected
        assert find_keys([key.strip()], [text], case, True) == expected


@settings(max_examples=400)
@given(
    st.lists(st.lists(letters, max_size=3), max_size=4),
    st.lists(st.lists(letters, max_size=3), max_size=3),
    st.booleans(),
)
def test_the_index_changes_nothing(books, batches, whole):
    """Keys found together are those found one by one, in the nearest text that holds them."""
    keys = [prepare_keys(tuple(keys), False, whole) for keys in books]
    search = KeySearch(KeyIndex(keys))
    for texts in batches:
        together = {(one.number, one.key.place): i for one, i in search.find(ScannedTexts(texts))}
        apart = {
            (number, place): i
            for number, keys in enumerate(books)
            for place, i in find_keys(keys, texts, False, whole).items()
        }
        assert together == apart


# Anything may be between slashes.
patterns = st.text(alphabet=r"ab()[]{}|*+?^$.\/-:=!<>&~1,ukpL", max_size=10)


@settings(max_examples=400)
@given(patterns, st.text(alphabet="gimsuyvx", max_size=3), texts)
def test_no_key_raises_and_none_hangs(pattern, flags, text):
    key = f"/{pattern}/{flags}"
    book = [Entry(name="one", text="a", keys=[key], secondary_keys=[key])]
    found = activate(book, [text])
    assert all(bad.key == key and bad.why for bad in found.bad_keys)
    assert not (found.active and found.bad_keys)
    # What a check of the lorebook warns of is what activation refuses.
    warned = [line for line in check(Lorebook(name="b", entries=book)) if "matches" in line]
    assert len(warned) == len(found.bad_keys)
    assert all(bad.why in line for bad, line in zip(found.bad_keys, warned, strict=True))
