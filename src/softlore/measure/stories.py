"""Stories that a model writes after a conditioning, sampled and measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import cycle, islice

from softlore.context import Tree
from softlore.context.compose import ContextLike
from softlore.decode import SamplingParams, draw_seed, sample_ids
from softlore.lore import Entry
from softlore.lore.keywords import count_keywords, lore_keywords, words
from softlore.measure.material import HELD_OUT, Ids, Material
from softlore.measure.results import StoryMeasures
from softlore.measure.score import fits_after, trunk
from softlore.measure.text import copied, distinct, perplexity
from softlore.model import FrozenModel


def story_openings(entry: Entry) -> list[str]:
    """Openings of stories about an entry: its calls, each up to the word that names the entry.

    Held-out calls come first. A call that does not name the entry is used in full; an entry
    without calls is named after "One day,".
    """
    names = [name for name in [entry.name, *entry.keys] if name[:1] != "/"]
    name = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\S*", re.IGNORECASE)
    openings = []
    for block in [*entry.held_out, *entry.blocks]:
        named = name.search(block.call)
        openings.append(block.call[: named.end()].rstrip(",;:") if named else block.call)
    return list(dict.fromkeys(openings)) or [f"One day, {entry.name}"]


def write_stories(
    model: FrozenModel,
    jobs: Sequence[tuple[ContextLike, Sequence[Ids]]],
    tokens: int,
    seed: int,
    draws: Sequence[int] | None = None,
) -> list[list[Ids] | None]:
    """Samples a story after each opening of each (conditioning, openings), in token ids.

    None for a conditioning after which openings and stories do not fit the context.

    Args:
        draws: with the seed, they decide the draws of each job's first story, and the numbers after
            it those of the next ones, so that conditionings can be compared story by story. By
            default the stories are numbered through.
    """
    rows: list[tuple[int, tuple[Tree, Ids], int]] = []
    number = 0
    for job, (conditioning, openings) in enumerate(jobs):
        number = draws[job] if draws is not None else number
        if fits_after(model, conditioning, max(map(len, openings), default=0) + tokens):
            before = trunk(model, conditioning)
            rows += [(job, (before, ids), number + i) for i, ids in enumerate(openings)]
        number += len(openings)
    written: list[list[Ids]] = [[] for _ in jobs]
    params = SamplingParams(temperature=0.8, top_k=40)
    seeds = [draw_seed(HELD_OUT + seed, number) for _, _, number in rows]
    new = sample_ids(model, [context for _, context, _ in rows], params, tokens, seeds)
    for (job, _, _), ids in zip(rows, new, strict=True):
        written[job].append(_until_end(model, ids))
    return [stories or None for stories in written]


class StoryEvaluator:
    """Samples and measures stories about entries, with the same draws for every conditioning.

    Args:
        material: text whose words are no lore keywords.
        count: stories for each entry; 0 for none.
        tokens: length of each, after its opening.
    """

    def __init__(
        self,
        model: FrozenModel,
        material: Material,
        entries: Iterable[Entry],
        count: int,
        tokens: int,
        seed: int,
    ) -> None:
        self.model, self.tokens, self.seed = model, tokens, seed
        self.entries = {entry.name: entry for entry in entries}
        self.openings = {
            name: list(islice(cycle(story_openings(entry)), count))
            for name, entry in self.entries.items()
        }
        self.keywords = {
            name: lore_keywords(entry, material.known.union(*map(words, self.openings[name])))
            for name, entry in self.entries.items()
        }

    def measure(self, jobs: Sequence[tuple[str, ContextLike]]) -> list[StoryMeasures | None]:
        """The measures of the stories of each (entry, conditioning); None if they don't fit.

        All are written in one batch.
        """
        places = {name: place for place, name in enumerate(self.entries)}
        written = write_stories(
            self.model,
            [
                (conditioning, [self.model.encode(opening) for opening in self.openings[name]])
                for name, conditioning in jobs
            ],
            self.tokens,
            self.seed,
            [places[name] * len(self.openings[name]) for name, _ in jobs],
        )
        return [
            self._judge(name, texts) if texts else None
            for (name, _), texts in zip(jobs, written, strict=True)
        ]

    def _judge(self, name: str, written: Sequence[Ids]) -> StoryMeasures:
        """Measures what follows each of an entry's openings."""
        model, entry, openings = self.model, self.entries[name], self.openings[name]
        texts = [model.decode(ids) for ids in written]
        responses = [response for block in entry.blocks for response in block.responses]
        sources = [model.encode(source) for source in responses or [entry.text]]
        pairs = zip(map(model.encode, openings), written, strict=True)
        return StoryMeasures(
            copy=copied(written, sources),
            lore_words=count_keywords(texts, self.keywords[name]),
            perplexity=perplexity(model, list(pairs)),
            distinct=distinct(written),
            first=openings[0] + texts[0],
        )


def _until_end(model: FrozenModel, ids: Ids) -> Ids:
    ends = [i for i, token in enumerate(ids) if token in model.eos_ids]
    return ids[: ends[0]] if ends else ids
