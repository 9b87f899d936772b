"""Scores answers after a conditioning: their likelihood, the choice among others, what is written.

nll         of the right answer, nats a token
choice      whether the right answer is the likeliest a token; choice_raw: as a whole
f1          overlap of tokens of what is written, greedily, and a right answer (as SQuAD)
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from benchmarks.readers import Question
from softlore.compare.harness import Row
from softlore.context import Tree
from softlore.context.compose import ContextLike
from softlore.decode import SamplingParams, sample_ids
from softlore.errors import SoftloreError
from softlore.measure.score import fits_after, token_losses, trunk
from softlore.model import FrozenModel

WRITTEN = 24  # tokens of an answer that is written, at most
AT_ONCE = 16_384  # tokens of context, of all answers that are written side by side
FIGURES = ("nll", "choice", "choice_raw", "f1")


def score(
    model: FrozenModel, conditioning: ContextLike, questions: Sequence[Question]
) -> list[Row] | None:
    """The figures of each question, None where it has no choice; None if it does not fit."""
    calls = [model.encode(question.call) for question in questions]
    ids = [
        [model.encode(f" {answer}", inside=True) for answer in q.choices or q.answers[:1]]
        for q in questions
    ]
    longest = max(
        len(call) + max(WRITTEN, *map(len, answers))
        for call, answers in zip(calls, ids, strict=True)
    )
    try:
        if not fits_after(model, conditioning, longest):
            return None
    except SoftloreError:  # a text that is longer than the context by itself
        return None
    tree = trunk(model, conditioning)
    pairs = [(c, answer) for c, answers in zip(calls, ids, strict=True) for answer in answers]
    losses = iter(token_losses(model, tree, pairs))
    written = _write(model, tree, calls)
    rows = []
    for question, answers, text in zip(questions, ids, written, strict=True):
        of_question = [next(losses) for _ in answers]
        means = [float(loss.mean()) for loss in of_question]
        sums = [float(loss.sum()) for loss in of_question]
        rows.append(
            {
                "nll": means[0],
                "choice": float(means[0] == min(means)) if question.choices else None,
                "choice_raw": float(sums[0] == min(sums)) if question.choices else None,
                "f1": max(overlap(text, answer) for answer in question.answers),
            }
        )
    return rows


def mean_figures(rows: Sequence[Row]) -> Row:
    """The mean of each figure over questions; None where no question has it."""
    return {name: _mean([row[name] for row in rows]) for name in FIGURES}


def overlap(written: str, answer: str) -> float:
    """F1 of the words of two texts, without case, punctuation and articles."""
    a, b = _words(written), _words(answer)
    same = sum((Counter(a) & Counter(b)).values())
    return 2 * same / (len(a) + len(b)) if same else float(a == b)


def _words(text: str) -> list[str]:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _write(model: FrozenModel, tree: Tree, calls: Sequence[list[int]]) -> list[str]:
    """The line that is likeliest after each call."""
    greedy = SamplingParams(temperature=0.0)
    rows = max(1, min(32, AT_ONCE // max(1, tree.start + tree.length)))
    new = sample_ids(model, [(tree, ids) for ids in calls], greedy, WRITTEN, rows_at_once=rows)
    texts = []
    for ids in new:
        ends = [i for i, token in enumerate(ids) if token in model.eos_ids]
        text = model.decode(ids[: ends[0]] if ends else ids).strip()
        texts.append(text.splitlines()[0] if text else "")
    return texts


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
