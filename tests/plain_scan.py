"""The plain implementation of a scan, which looks at everything in every round: slow, and obvious.

`softlore.context.scan` must give the same results.
"""

from softlore.context.activation import Activation, ActiveEntry, BadKey, SkippedEntry
from softlore.context.keys import PatternSearch, ScannedTexts, prepare_keys
from softlore.context.scan import Scan, draw


def find_keys(keys, texts, case_sensitive=False, whole_words=True, search=None):
    """The places of the keys found, each with the place of the nearest text that it is in."""
    prepared = prepare_keys(tuple(keys), case_sensitive, whole_words)
    texts = ScannedTexts(texts)
    found = prepared.find_patterns(texts.texts, search or PatternSearch())
    for key in prepared.substrings:
        places = [i for i, text in enumerate(texts.folded(key.folding)) if key.is_in(text)]
        if places:
            found[key.place] = places[0]
    return found


def plain_activate(entries, messages, settings, timers, seed=0):
    scan = PlainScan(entries, messages, settings, timers, seed)
    scan.run()
    ordered = sorted(scan.candidates, key=lambda c: (c.entry.order, c.number))
    active = set(scan.active)
    bad = [
        BadKey(c.entry, key, why)
        for c in scan.candidates
        for keys in (c.keys, c.secondary)
        for key, why in keys.invalid
    ]
    return Activation(
        [ActiveEntry(c.entry, c.reason, c.key, c.round) for c in ordered if c in active],
        [SkippedEntry(c.entry, c.skipped) for c in ordered if c not in active and c.skipped],
        bad,
        timers.after(entries, (c.entry for c in scan.active), len(messages)),
    )


class PlainScan(Scan):
    """Every round looks at all pending candidates, and searches all texts for all of their keys."""

    def run(self):
        self.pending, self.rounds, self.level = list(self.candidates), [], 0
        self.lost_to = {}  # who lost in a group, by the last to whom
        levels = sorted({c.entry.delay_until_recursion for c in self.candidates} - {0})
        while True:
            new = self.drawn(self.one_per_group(self.triggered()))
            self.active += new
            number = len(self.rounds) + 1
            if not self.settings.recursive or number == self.settings.max_rounds:
                return
            sources = [c.entry for c in new if not c.entry.prevent_recursion]
            if not sources and (number == 1 or not levels):
                return
            if levels and (not sources or not self.level):
                self.level = levels.pop(0)
            self.rounds.append(sources)

    def batches(self, candidate):
        messages = self.messages[-candidate.depth :][::-1] if candidate.depth else []
        return [messages, *([entry.text for entry in sources] for sources in self.rounds)]

    def find(self, keys, candidate, texts):
        whole = candidate.entry.match_whole_words
        case = candidate.entry.case_sensitive
        return find_keys(
            keys,
            texts,
            self.settings.case_sensitive if case is None else case,
            self.settings.match_whole_words if whole is None else whole,
            self.search,
        )

    def triggered(self):
        triggered = []
        for candidate in self.pending:
            entry = candidate.entry
            if not candidate.reason:
                self.search_keys(candidate)
            late = entry.exclude_recursion and self.rounds
            excluded = late or entry.delay_until_recursion > self.level
            if candidate.reason and (candidate.sticky or not excluded):
                candidate.skipped = candidate.blocked or self.secondary_problem(candidate)
                if not candidate.skipped:
                    triggered.append(candidate)
        return sorted(triggered, key=lambda c: (not c.sticky, -c.entry.order, c.number))

    def search_keys(self, candidate):
        places = self.find(candidate.entry.keys, candidate, self.batches(candidate)[-1])
        if not places:
            return
        candidate.key = key = candidate.entry.keys[min(places)]
        back = places[min(places)]
        if self.rounds:
            source = self.rounds[-1][back].name
            candidate.reason = f"triggered by entry {source!r}: key {key!r} in its text"
        elif back:
            candidate.reason = f"key {key!r} {back} message{'s' * (back > 1)} back"
        else:
            candidate.reason = f"key {key!r} in the last message"

    def secondary_problem(self, candidate):
        keys = candidate.entry.secondary_keys if candidate.entry.selective else []
        if not keys or candidate.key is None:
            return ""
        places = set()
        for texts in self.batches(candidate):
            places |= self.find(keys, candidate, texts).keys()
        failed, problem = {
            "and_any": (not places, "none of its secondary keys is found"),
            "and_all": (len(places) < len(keys), "not all of its secondary keys are found"),
            "not_any": (bool(places), "one of its secondary keys is found"),
            "not_all": (len(places) == len(keys), "all of its secondary keys are found"),
        }[candidate.entry.selective_logic]
        return problem if failed else ""

    def one_per_group(self, triggered):
        groups = {}
        for candidate in triggered:
            for name in candidate.groups:
                groups.setdefault(name, []).append(candidate)
        active = {name: [c for c in self.active if name in c.groups] for name in groups}
        remaining = list(triggered)
        for decided in (True, False):
            for name, members in groups.items():
                sticky = [c for c in members if c.sticky]
                if bool(sticky or active[name]) is not decided:
                    continue
                left = [c for c in members if c in remaining]
                winners = sticky
                if not decided and left:
                    winners = [self._group_winner(name, left)]
                for loser in [c for c in left if c not in winners]:
                    winner = (winners or active[name])[0]
                    loser.skipped = f"lost in group {name!r} to {winner.entry.name!r}"
                    remaining.remove(loser)
                    if decided:
                        self.pending.remove(loser)
                    else:
                        self.lost_to[loser] = winner
        return remaining

    def drawn(self, triggered):
        new = []
        for candidate in triggered:
            name, percent = candidate.entry.name, candidate.entry.probability
            drawn = draw(self.seed, len(self.messages), name) * 100
            if percent >= 100 or candidate.sticky or drawn < percent:
                candidate.round = len(self.rounds) + 1
                new.append(candidate)
            else:
                candidate.skipped = f"lost the draw of probability ({percent:g}%)"
        out = {*triggered, *(loser for loser, w in self.lost_to.items() if w in new)}
        self.pending = [c for c in self.pending if c not in out]
        return new
