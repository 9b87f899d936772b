"""Lore keywords: words of an entry that are rare in stories unless the model knows the entry."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from softlore.lore.entry import Entry

# Words that say nothing about a subject. Those of other languages are excluded where they are in
# the stories that the bare model writes (`known`).
STOP_WORDS = frozenset(
    """
    about above across after again against ago all almost alone along already also although always
    among and another any anybody anyone anything are around ask asked asks away back because
    became become becomes been before began begin begins behind being below beneath beside between
    beyond both bring brought but call called came can cannot carried carries carry come comes
    could cried cries cry day days did does doing done down during each either else enough even
    ever every everybody everyone everything far felt few find first for found from full gave get
    give given gives goes going gone good got great had half has have having her here hers herself
    him himself his how however into its itself just keep keeps kept knew know known knows last
    laid least left less let like little long look looked looks made make makes making many may
    might mine more most much must myself near nearly never next nobody none nor not nothing now
    off often old once one ones only onto other others our out over own people perhaps place put
    quite rather round said same saw say says see seem seemed seems seen sees set shall she should
    side since sit sits some somebody someone something sometimes soon stand stands stay still
    stood such take taken takes than that the their them themselves then there therefore these
    they thing things think this those though thought three through till time times together told
    too took towards two under until upon use used uses very want wanted wants was way well went
    were what when where whether which while who whole whom whose why will with within without
    would year years yes yet you young your yours
    """.split()
)
_WORD = re.compile(r"[^\W\d_]+(?:[’'-][^\W\d_]+)*")
SHORTEST = 3  # letters of a keyword


@dataclass(frozen=True)
class KeywordCounts:
    """Lore keywords in stories."""

    a_story: float  # different keywords per story, on average
    share: float  # of the stories that contain at least one, 0 to 1


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without a possessive 's."""
    matches = (match.group().casefold().replace("’", "'") for match in _WORD.finditer(text))
    return [word.removesuffix("'s") for word in matches]


def lore_keywords(entry: Entry, known: Collection[str] = ()) -> list[str]:
    """Returns the keywords of an entry, in the order of its text and responses.

    They are all words but short ones, `STOP_WORDS`, the entry's name and `known` words, such as
    those in stories of the bare model or in the opening.
    """
    lore = [entry.text, *(response for block in entry.blocks for response in block.responses)]
    excluded = {*STOP_WORDS, *words(entry.name), *known}
    distinct = dict.fromkeys(word for text in lore for word in words(text))
    return [word for word in distinct if len(word) >= SHORTEST and word not in excluded]


def count_keywords(stories: Sequence[str], keywords: Collection[str]) -> KeywordCounts:
    """Counts the keywords in stories, given without their openings."""
    counts = [len(set(keywords).intersection(words(story))) for story in stories]
    if not counts:
        return KeywordCounts(0.0, 0.0)
    return KeywordCounts(sum(counts) / len(counts), sum(map(bool, counts)) / len(counts))
