"""Results of an evaluation, as dataclasses and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from softlore.lore.keywords import KeywordCounts
from softlore.measure.text import Copy

# What is put before the calls: nothing, the entry's text, its soft prompt; its text among those of
# other entries, or its soft prompt among theirs.
CONDITIONINGS = ("none", "text", "soft", "texts", "company")


@dataclass(frozen=True)
class StoryMeasures:
    """Measures of the stories sampled after a conditioning.

    Attributes:
        copy: what they repeat of the responses (or of the text, where there are none).
        lore_words: the lore keywords in them.
        perplexity: under the bare model.
        distinct: share of distinct token pairs, see `measure.text.distinct`.
        first: the first of them, with its opening.
    """

    copy: Copy
    lore_words: KeywordCounts
    perplexity: float | None
    distinct: float | None
    first: str


@dataclass(frozen=True)
class Measures:
    """Measures of one conditioning for one entry; None where it was not or could not be measured.

    Attributes:
        tokens: of the context that the conditioning takes.
        recall: NLL of the responses, nats a token, by tokens of story between conditioning and
            call.
        held_out: the same of the held-out calls, at distance 0.
        drift: KL to the bare model on unrelated text, nats a token.
        fidelity: share of the text's effect that the conditioning has.
        stories: None where none were sampled.
    """

    tokens: int
    recall: dict[int, float | None]
    held_out: float | None = None
    drift: float | None = None
    fidelity: float | None = None
    stories: StoryMeasures | None = None


@dataclass(frozen=True)
class EntryResult:
    """An entry's measures by conditioning; None for one that it lacks, or that does not fit.

    Attributes:
        company: the entries whose prompts are measured together, this one included.
        keywords: the lore keywords that are counted in stories.
    """

    name: str
    kind: str
    company: list[str]
    keywords: list[str]
    conditionings: dict[str, Measures | None]


@dataclass(frozen=True)
class Evaluation:
    """The measures of a lorebook's soft prompts.

    Attributes:
        settings: seed, distances, stories and story tokens.
        missing: entries without a prompt, which were not measured.
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
        """The mean over the entries, by conditioning; each figure over those that have it."""
        return {
            name: _average(
                [measures for e in self.entries if (measures := e.conditionings.get(name))],
                self.distances,
            )
            for name in CONDITIONINGS
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `json.dumps`; figures rounded, and null where there is none."""
        total = {name: measures and asdict(measures) for name, measures in self.total().items()}
        report: dict[str, Any] = _clean(asdict(self) | {"total": total})
        return report


def _average(measures: Sequence[Measures], distances: Iterable[int]) -> Measures | None:
    if not measures:
        return None
    return Measures(
        tokens=round(sum(m.tokens for m in measures) / len(measures)),
        recall={d: _mean(m.recall.get(d) for m in measures) for d in distances},
        held_out=_mean(m.held_out for m in measures),
        drift=_mean(m.drift for m in measures),
        fidelity=_mean(m.fidelity for m in measures),
        stories=_average_stories([m.stories for m in measures if m.stories]),
    )


def _average_stories(stories: Sequence[StoryMeasures]) -> StoryMeasures | None:
    if not stories:
        return None
    hits = [measures.lore_words for measures in stories]
    return StoryMeasures(
        copy=Copy(max(s.copy.run for s in stories), _mean(s.copy.share for s in stories)),
        lore_words=KeywordCounts(
            sum(c.a_story for c in hits) / len(hits), sum(c.share for c in hits) / len(hits)
        ),
        perplexity=_mean(s.perplexity for s in stories),
        distinct=_mean(s.distinct for s in stories),
        first="",
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are present."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _clean(value: Any) -> Any:
    """Plain data with floats rounded, and None in place of infinities and NaN."""
    if isinstance(value, dict):
        return {str(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
