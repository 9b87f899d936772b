"""Finds the names that recur in a story, by plain rules, with the sentences they come from.

A name is a run of capitalised words ("Captain Oswin", "the Gate of Dawn") that stands inside of
sentences too, where a capital is no mere beginning; or a noun that speaks ("said the fox"), which
is how fairy tales name their people. Words that also come in lower case are no names. Scripts
without capitals (Chinese, Arabic, Hindi, Thai and others) have no names by these rules, and
languages that capitalise every noun (German) have things among them: `NameFinder.notes` says so.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from softlore.lore.keywords import STOP_WORDS
from softlore.lore.sentences import is_complete, starts

LEAST = 3  # mentions of a name
SPEAKS = 2  # times that a noun must speak
OWN_SHARE = 0.7  # of a word's mentions in one longer name: from there on it is short for that
LOWER_SHARE = 0.5  # of a word's mentions in lower case, from which on it is no name
NOUN_CAPITALS = 0.18  # of words inside of sentences that are capitalised, where every noun is
WRAPPED = 0.4  # of lines that end inside of a sentence, from which on line breaks are spaces
CASELESS = 0.3  # of letters without case, from which on names are missed

_WORD = re.compile(r"[^\W\d_]+(?:[’'\-‐][^\W\d_]+)*\.?")
_WRAPPED = re.compile(r"[^\W\d_][,;]?\n[^\W\d_]")
_TITLES = frozenset(
    """
    mr mrs ms miss dr st sir lady lord king queen prince princess captain colonel general major
    sergeant lieutenant professor doctor father mother brother sister uncle aunt aunty old young
    saint baron count countess duke duchess emperor empress master mistress madam madame monsieur
    mademoiselle herr frau fräulein señor señora don doña inspector judge little the
    """.split()
)
_LINKS = frozenset(
    "of the de del della di da do dos du des la le les von van der den y e und zu al el ibn".split()
)
_NO_NAMES = STOP_WORDS | frozenset(
    """
    a ah aha alas amen an as at aye be bye by certainly christmas come dear don't english exactly
    farewell forward fie french german go god good goodbye goodness greek ha hallo hark hello help
    hence hey hi hm ho hullo hurrah hush i i'll i'm i've i'd if in indeed is isn't it latin let's
    listen lo maybe moreover mum my nay nevertheless no nonsense o of oh oho ok okay on one or
    otherwise ow please poor pray really roman sh silence so sorry spanish stop suddenly sure surely
    ta tell thank thanks that's there's they're to truly two ugh up us wait we welcome well what's
    who's won't yeah yea aren't can't couldn't didn't doesn't hasn't haven't he he'd he'll he's she
    she'd she'll she's wasn't we'll we're we've weren't wouldn't you'd you'll you're you've me him
    majesty highness sire chapter part book volume section page act scene prologue epilogue preface
    contents title author
    monday tuesday wednesday thursday friday saturday sunday january february march april june july
    august september october november december
    """.split()
)
# Those who speak: "said the old fox", "the fox answered".
_SAYS = (
    "said|says|asked|asks|answered|cried|replied|shouted|whispered|called|exclaimed|muttered|"
    "growled|laughed|sighed|thought|told"
)
_SPEAKERS = (
    re.compile(rf"\b(?:{_SAYS}) the ((?:[a-z]+ )?[a-z]+)\b(?! (?:of|and))"),
    re.compile(rf"\b[Tt]he ((?:[a-z]+ )?[a-z]+) (?:{_SAYS})\b"),
)
_NOT_SPEAKERS = STOP_WORDS | frozenset("same latter former two three others voice end".split())


@dataclass
class RecurringName:
    """A name that recurs in a story.

    Attributes:
        keys: the name, and its other forms.
        sentences: of the text, by number, those that mention it, in order.
        parts: of the story (turns), by number, those that do.
    """

    name: str
    keys: list[str]
    sentences: list[int] = field(default_factory=list)
    parts: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Sentence:
    """A sentence of a story, and the part of the story that it begins in."""

    text: str
    part: int


class NameFinder:
    """Finds the names that recur in a story.

    Args:
        parts: the texts that the story consists of, such as its turns.

    Attributes:
        sentences: of the story, in order.
        names: those that recur, the ones with the most sentences first.
        notes: what the rules cannot do for this text, in sentences.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self.sentences = list(_sentences(parts))
        self.notes: list[str] = []
        self._lower: Counter[str] = Counter()
        self._upper: Counter[str] = Counter()  # inside of sentences
        self._inside = self._capitals = 0  # words inside of sentences, and the capitalised ones
        runs = [run for number, one in enumerate(self.sentences) for run in self._runs(number, one)]
        self._note_scripts()
        self.names = self._recurring(runs)

    def _runs(self, number: int, sentence: Sentence) -> Iterator[_Run]:
        """The runs of capitalised words in a sentence. Counts words in lower case besides."""
        words = list(_WORD.finditer(sentence.text))
        place = 0
        while place < len(words):
            word, begins = _bare(words[place]), _begins(sentence.text, words[place].start())
            if not word[:1].isupper():
                self._lower[word.casefold()] += 1
                self._inside += not begins
                place += 1
                continue
            end = place + 1
            while _goes_on(sentence.text, words, end):
                end += 1
            while not _bare(words[end - 1])[:1].isupper():  # "of", "the" at its end
                end -= 1
            run = [_bare(match) for match in words[place:end]]
            self._inside += len(run) - begins
            self._capitals += len(run) - begins
            self._upper.update(run[begins:])
            if not (len(run) > 3 and all(len(w) > 1 and w.isupper() for w in run)):  # a headline
                yield _Run(tuple(run), number, begins)
            place = end

    def _note_scripts(self) -> None:
        letters = [c for one in self.sentences for c in one.text[:200] if c.isalpha()]
        if letters and sum(c.lower() == c.upper() for c in letters) > CASELESS * len(letters):
            self.notes.append(
                "Names are found by their capitals, and this text is in a script that has none."
            )
        elif self._inside > 200 and self._capitals > NOUN_CAPITALS * self._inside:
            self.notes.append(
                "Every noun of this text seems to have a capital, so that things are among the "
                "names."
            )

    def _recurring(self, runs: Sequence[_Run]) -> list[RecurringName]:
        cleaned = self._without_heads([run for one in runs if (run := self._clean(one)).words])
        # Of words that begin a sentence, those that are a name elsewhere or never in lower case.
        named = {word for run in cleaned if not run.begins for word in run.words}
        named |= {run.words[0] for run in cleaned if run.begins and len(run.words) > 1}
        begun = Counter(run.words[0] for run in cleaned if run.begins)
        sure = named | {word for word, count in begun.items() if count >= LEAST}
        mentions: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for run in cleaned:
            if run.words[0] in sure:
                mentions[run.words].append(run.sentence)
        names = [*_merged(mentions), *self._speakers()]
        for name in names:
            name.parts = {self.sentences[number].part for number in name.sentences}
        found = [name for name in names if len(name.sentences) >= LEAST]
        return sorted(found, key=lambda name: -len(name.sentences))

    def _without_heads(self, runs: Sequence[_Run]) -> list[_Run]:
        """Runs without a first word of the sentence that is no part of the name: "Puis Élodie"."""
        heads: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
        for run in runs:
            heads[run.words if not run.begins else run.words[1:]].add(
                "" if not run.begins else run.words[0]
            )
        cleaned = []
        for run in runs:
            head, tail = run.words[0], run.words[1:]
            loose = run.begins and tail and head.casefold() not in _TITLES
            if loose and not self._upper[head] and (len(heads[tail]) > 1 or "" in heads[tail]):
                run = _Run(tail, run.sentence, False)
            cleaned.append(run)
        return cleaned

    def _clean(self, run: _Run) -> _Run:
        """A run without words at its ends that are no part of a name."""
        words = list(run.words)
        begins = run.begins
        if begins and words[1:2] == ["the"] and not self._upper[words[0]]:  # "Meanwhile the Giant"
            words, begins = words[2:], False
        while words and not self._is_name(words[0], titled=len(words) > 1):
            words.pop(0)
            while words and words[0].casefold() in _LINKS and not words[0][:1].isupper():
                words.pop(0)
            begins = False
        while words and not self._is_name(words[-1], titled=False):
            if words[-2:-1] and words[-2].casefold() in _LINKS:  # "Alexander the Great"
                break
            words.pop()
        if words and words[-1].casefold() in _TITLES and len(words) == 1:
            lower = self._lower[words[0].casefold()]
            words = [] if lower or words[0].casefold() == "the" else words
        return _Run(tuple(words), run.sentence, begins)

    def _is_name(self, word: str, titled: bool) -> bool:
        """Whether a capitalised word may be a part of a name. `titled`: a title before one."""
        small = word.casefold()
        if small in _TITLES and small != "the":
            return titled or not self._lower[small]
        if small in _NO_NAMES or len(word) < 2 or small.replace("’", "'") in _NO_NAMES:
            return False
        return self._lower[small] <= LOWER_SHARE * (self._upper[word] + 1)

    def _speakers(self) -> Iterator[RecurringName]:
        """Nouns in lower case that speak: "the fox"."""
        spoken: Counter[str] = Counter()
        for one in self.sentences:
            for pattern in _SPEAKERS:
                for match in pattern.finditer(one.text):
                    noun = match[1].split()[-1]
                    if noun not in _NOT_SPEAKERS and len(noun) > 2:
                        spoken[noun] += 1
        for noun, times in spoken.items():
            if times >= SPEAKS:
                whole = re.compile(rf"\b{noun}\b", re.IGNORECASE)
                at = [n for n, one in enumerate(self.sentences) if whole.search(one.text)]
                yield RecurringName(noun, [noun], at)


@dataclass(frozen=True)
class _Run:
    """Capitalised words in a row; whether they begin a sentence."""

    words: tuple[str, ...]
    sentence: int
    begins: bool


def _sentences(parts: Sequence[str]) -> Iterator[Sentence]:
    """The sentences of a story; one may go on over several parts."""
    text = "".join(parts)
    lines = text.count("\n")
    if sum(1 for _ in _WRAPPED.finditer(text)) > WRAPPED * lines:
        text = re.sub(r"(?<!\n)\n(?!\n)", " ", text)  # a sentence goes on over lines
    ends: list[int] = []
    for part in parts:
        ends.append((ends[-1] if ends else 0) + len(part))
    start = number = 0
    for end in [*starts(text), len(text)]:
        sentence = " ".join(text[start:end].split())
        while number < len(ends) - 1 and ends[number] <= start:
            number += 1
        if sentence:
            yield Sentence(sentence, number)
        start = end


def _bare(match: re.Match[str]) -> str:
    """A word without a possessive 's and without a full stop."""
    return re.sub(r"[’']s?\.?$|\.$", "", match.group())


def _begins(text: str, start: int) -> bool:
    """Whether a word begins a sentence, a quotation included."""
    before = text[:start].rstrip(" \t")
    if not before:
        return True
    if before[-1] in "\"'“‘«„([*_—–:":
        return True
    return is_complete(before)


def _goes_on(text: str, words: Sequence[re.Match[str]], place: int) -> bool:
    """Whether a run of capitalised words goes on with a word: nothing but a space is between."""
    if place >= len(words):
        return False
    before, word = words[place - 1], words[place]
    between = text[before.end() : word.start()]
    stop = before.group().endswith(".") and _bare(before).casefold() not in _TITLES
    if between != " " or stop or re.search(r"[’']s?$", before.group()):
        return False
    if word.group()[:1].isupper():
        return True
    small = word.group().casefold()
    if small not in _LINKS or place + 1 >= len(words):
        return False
    return _goes_on(text, words, place + 1)


def _merged(mentions: dict[tuple[str, ...], list[int]]) -> list[RecurringName]:
    """Names with their shorter forms among their keys: "Captain Oswin" and "Oswin"."""
    longer: defaultdict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for words, at in mentions.items():
        for word in {w for w in words if len(words) > 1 and w.casefold() not in _TITLES | _LINKS}:
            longer[word][words] += len(at)
    forms: defaultdict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for words in mentions:
        target = words
        if len(words) == 1 and longer[words[0]]:
            full, count = longer[words[0]].most_common(1)[0]
            if count >= OWN_SHARE * longer[words[0]].total():
                target = full
        elif len(words) > 1:  # "Captain Oswin" and "old Captain Oswin", "Dr Oswin"
            tail = words[-1]
            same = [w for w in longer[tail] if set(_own(w)) == set(_own(words))]
            target = max(same or [words], key=lambda w: (len(mentions[w]), w))
        forms[target].append(words)
    merged = []
    for full, shorter in forms.items():
        at = sorted({number for words in shorter for number in mentions[words]})
        keys = [" ".join(words) for words in sorted(shorter, key=lambda w: (-len(w), w))]
        name = " ".join(full)
        if len(mentions[full]) == 1 and len(full) > 1 and len(shorter) > 1:
            name = max(shorter, key=lambda words: len(mentions[words]))[-1]  # a full name, once
        alone = [word for word in _own(full) if word.casefold() not in _LINKS]
        if len(alone) == 1 and longer[alone[0]][full] >= OWN_SHARE * longer[alone[0]].total():
            keys.append(alone[0])  # "Captain Oswin" may be called Oswin
        merged.append(RecurringName(name, list(dict.fromkeys([name, *keys])), at))
    return merged


def _own(words: Sequence[str]) -> list[str]:
    """The words of a name that are no titles."""
    return [word for word in words if word.casefold() not in _TITLES]
