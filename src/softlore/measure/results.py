"""What an evaluation found, as dataclasses and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from softlore.lore.keywords import Hits
from softlore.measure.copying import Copy

# What stands before the calls: nothing, the entry's text, its soft prompt, or its soft prompt
# among those of other entries.
HEADS = ("none", "text", "soft", "company")


@dataclass(frozen=True)
class StoryMeasures:
    """What stories came to that a head began.

    Attributes:
        copy: what they repeat of the responses (or of the text, where there are none).
        lore_words: the lore keywords in them.
        perplexity: how likely the bare model finds them; lower is likelier.
        distinct: share of their token pairs that are different ones.
        first: the first of them, with its opening; not picked.
    """

    copy: Copy
    lore_words: Hits
    perplexity: float | None
    distinct: float | None
    first: str


@dataclass(frozen=True)
class Measures:
    """What one head does for one entry; None where it was not or could not be measured.

    Attributes:
        tokens: how much of the context the head takes.
        recall: NLL of the responses, nats a token, by tokens of story between head and call.
        held_out: the same of the held-out calls, at no distance.
        drift: KL to the bare model on unrelated text, nats a token.
        fidelity: how much of what the text does the head does, 1 being all of it.
        stories: None for a head that wrote none.
    """

    tokens: int
    recall: dict[int, float | None]
    held_out: float | None = None
    drift: float | None = None
    fidelity: float | None = None
    stories: StoryMeasures | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "recall": {str(distance): value for distance, value in self.recall.items()},
            "held_out": self.held_out,
            "drift": self.drift,
            "fidelity": self.fidelity,
            "stories": None if self.stories is None else asdict(self.stories),
        }


@dataclass(frozen=True)
class EntryResult:
    """An entry's measures by head; None for a head that it lacks, or that does not fit.

    Attributes:
        company: the entries whose prompts stand together under the head "company", this one too.
        keywords: the lore keywords that stories were searched for.
    """

    name: str
    kind: str
    company: list[str]
    keywords: list[str]
    conditionings: dict[str, Measures | None]

    def to_dict(self) -> dict[str, Any]:
        conditionings = {name: one and one.to_dict() for name, one in self.conditionings.items()}
        return {
            "name": self.name,
            "kind": self.kind,
            "company": self.company,
            "keywords": self.keywords,
            "heads": conditionings,
        }


@dataclass(frozen=True)
class Evaluation:
    """All that was measured of a lorebook's prompts.

    Attributes:
        settings: seed, distances, stories and story tokens.
        missing: entries without a prompt; they were left out.
        seconds: how long it took.
    """

    lorebook: str
    model: str
    settings: dict[str, Any]
    entries: list[EntryResult]
    missing: list[str]
    seconds: float

    @property
    def distances(self) -> list[int]:
        return list(self.settings["distances"])

    def total(self) -> dict[str, Measures | None]:
        """The mean over the entries, by head; each figure over those that have it."""
        by_head = {
            conditioning: [entry.conditionings.get(conditioning) for entry in self.entries]
            for conditioning in HEADS
        }
        return {
            conditioning: _average([one for one in all_of if one], self.distances)
            for conditioning, all_of in by_head.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `json.dumps`; figures rounded, and null where there is none."""
        whole = {
            "lorebook": self.lorebook,
            "model": self.model,
            "settings": self.settings,
            "total": {
                conditioning: one and one.to_dict() for conditioning, one in self.total().items()
            },
            "entries": [entry.to_dict() for entry in self.entries],
            "missing": self.missing,
            "seconds": self.seconds,
        }
        cleaned: dict[str, Any] = _clean(whole)
        return cleaned


def _average(all_of: Sequence[Measures], distances: Iterable[int]) -> Measures | None:
    if not all_of:
        return None
    return Measures(
        tokens=round(sum(one.tokens for one in all_of) / len(all_of)),
        recall={d: _mean(one.recall.get(d) for one in all_of) for d in distances},
        held_out=_mean(one.held_out for one in all_of),
        drift=_mean(one.drift for one in all_of),
        fidelity=_mean(one.fidelity for one in all_of),
        stories=_average_stories([one.stories for one in all_of if one.stories]),
    )


def _average_stories(all_of: Sequence[StoryMeasures]) -> StoryMeasures | None:
    if not all_of:
        return None
    share = _mean(one.copy.share for one in all_of)
    hits = [one.lore_words for one in all_of]
    return StoryMeasures(
        copy=Copy(max(one.copy.run for one in all_of), share),
        lore_words=Hits(
            sum(one.a_story for one in hits) / len(hits), sum(one.share for one in hits) / len(hits)
        ),
        perplexity=_mean(one.perplexity for one in all_of),
        distinct=_mean(one.distinct for one in all_of),
        first="",
    )


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
