"""Stories that a head begins, and what they came to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from softlore.context import Tree
from softlore.context.compose import ContextLike
from softlore.decode import Sampler, SamplingParams, decode
from softlore.lore import Entry
from softlore.lore.keywords import count_hits
from softlore.measure.copying import copied
from softlore.measure.fluency import distinct, perplexity
from softlore.measure.material import HELD_OUT, Ids
from softlore.measure.results import StoryMeasures
from softlore.measure.score import fits_after, trunk
from softlore.model import FrozenModel

ROWS_AT_ONCE = 64


def story_openings(entry: Entry) -> list[str]:
    """How stories about an entry begin: its calls, each up to the word that names the entry.

    Held-out calls come first. A call that does not name it stands whole; an entry without calls
    is named after "One day,".
    """
    names = [name for name in [entry.name, *entry.keys] if name[:1] != "/"]
    name = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\S*", re.IGNORECASE)
    found = []
    for block in [*entry.held_out, *entry.blocks]:
        named = name.search(block.call)
        found.append(block.call[: named.end()].rstrip(",;:") if named else block.call)
    return list(dict.fromkeys(found)) or [f"One day, {entry.name}"]


def write_stories(
    model: FrozenModel,
    jobs: Sequence[tuple[ContextLike, Sequence[Ids]]],
    tokens: int,
    seed: int,
) -> list[list[Ids] | None]:
    """What the model writes after each (head, openings), a story an opening.

    None for a head after which openings and stories do not fit the context. Draws depend on the
    seed and on the place among the jobs, so that heads can be compared story by story.
    """
    sampling = SamplingParams(temperature=0.8, top_k=40)
    rows: list[tuple[int, Tree]] = []
    for job, (conditioning, openings) in enumerate(jobs):
        if fits_after(model, conditioning, max(map(len, openings), default=0) + tokens):
            before = trunk(model, conditioning)
            rows += [(job, before.then(ids)) for ids in openings]
    written: list[list[Ids]] = [[] for _ in jobs]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        chooser = Sampler(sampling, HELD_OUT + seed + start)
        texts: list[Ids] = [[] for _ in part]
        for step in decode(model, [tree for _, tree in part], chooser, tokens):
            for text, token in zip(texts, step, strict=True):
                text.append(token)
        for (job, _), text in zip(part, texts, strict=True):
            written[job].append(_until_end(model, text))
    return [stories or None for stories in written]


def judge(
    model: FrozenModel,
    entry: Entry,
    openings: Sequence[str],
    written: Sequence[Ids],
    keywords: Sequence[str],
) -> StoryMeasures:
    """What stories came to: `written[i]` is what follows `openings[i]`."""
    texts = [model.decode(ids) for ids in written]
    responses = [response for block in entry.blocks for response in block.responses]
    sources = [model.encode(source) for source in responses or [entry.text]]
    pairs = [(model.encode(opening), ids) for opening, ids in zip(openings, written, strict=True)]
    return StoryMeasures(
        copy=copied(written, sources),
        lore_words=count_hits(texts, keywords),
        perplexity=perplexity(model, pairs),
        distinct=distinct(written),
        first=openings[0] + texts[0],
    )


def _until_end(model: FrozenModel, ids: Ids) -> Ids:
    ends = [i for i, token in enumerate(ids) if token in model.eos_ids]
    return ids[: ends[0]] if ends else ids
