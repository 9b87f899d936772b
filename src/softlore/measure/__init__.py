"""Measures: recall, drift, fidelity, copy, lore keywords, fluency; and evaluation by them."""

from softlore.lore.keywords import KeywordCounts, count_keywords, lore_keywords
from softlore.measure.evaluate import evaluate
from softlore.measure.losses import fidelity
from softlore.measure.results import EntryResult, Evaluation, Measures, StoryMeasures
from softlore.measure.score import divergence, drift, recall
from softlore.measure.text import Copy, copied, distinct, longest_run, perplexity

__all__ = [
    "Copy",
    "EntryResult",
    "Evaluation",
    "KeywordCounts",
    "Measures",
    "StoryMeasures",
    "copied",
    "count_keywords",
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
