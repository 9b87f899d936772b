"""Measures: recall, drift, copy, fidelity, lore keywords, fluency; and all of them at once."""

from softlore.lore.keywords import Hits, count_hits, lore_keywords
from softlore.measure.copying import Copy, copied, longest_run
from softlore.measure.evaluate import evaluate
from softlore.measure.fluency import distinct, perplexity
from softlore.measure.results import EntryResult, Evaluation, Measures, StoryMeasures
from softlore.measure.score import divergence, drift, fidelity, recall

__all__ = [
    "Copy",
    "EntryResult",
    "Evaluation",
    "Hits",
    "Measures",
    "StoryMeasures",
    "copied",
    "count_hits",
    "distinct",
    "divergence",
    "drift",
    "evaluate",
    "fidelity",
    "longest_run",
    "lore_keywords",
    "perplexity",
    "recall",
]
