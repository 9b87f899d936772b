"""Reflective search: texts are rewritten by what they fail to say, and the Pareto front is kept.

After GEPA (Agrawal et al. 2025, arXiv 2507.19457). Each call and response is a task of its own. The
front holds, for every one of them, the texts that do best on it; a step takes one of these and
proposes others: rewrites by a model that is told which responses are not expected yet, and edits
(such a response as a sentence, words left out, sentences of another text of the front). Proposals
are scored exactly, on all tasks.

    front ──draw by tasks won──▶ text ──its worst tasks──▶ rewrites, edits ──scores──▶ front
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from softlore.control.search.scoring import Scorer
from softlore.control.search.state import Candidate, Scored, SearchState
from softlore.control.search.writers import ModelWriter, Writer
from softlore.errors import ContextOverflowError
from softlore.lore.sentences import sentences

REWRITES, EDITS = 4, 8  # of a step
FAILURES = 3  # tasks that a step is about
DRAWN_FROM = 2  # those are drawn from so many times as many of the worst
MOST_WORDS = 3  # that an edit leaves out
WORDS_A_TOKEN = 0.75  # of English
ASKED = (
    "These are notes for a storyteller:\n\n{text}\n\nWith these notes, the storyteller did not "
    "write:\n{failures}\n\nRewrite the notes so that these are said, too. Keep the rest. Use plain "
    "sentences, in one paragraph of at most {words} words."
)


def reflect_step(scorer: Scorer, state: SearchState, draw: random.Random) -> Scored:
    """Proposes rewrites and edits of a text of the front, scores them, and updates the front."""
    if not state.pool:
        state.pool = [(list(state.ids), scorer.task_losses([state.ids])[0])]
    wins = tasks_won(state.pool)
    parent, losses = draw.choices(state.pool, weights=wins)[0]
    worst = sorted(range(len(losses)), key=lambda i: -losses[i])[: FAILURES * DRAWN_FROM]
    failed = [scorer.facts[i] for i in draw.sample(worst, min(FAILURES, len(worst)))]
    text = scorer.text(parent)
    writer = state.options.writer or ModelWriter(scorer.model)
    rewrites = _rewrites(scorer, writer, text, failed, state.options.n_tokens, draw)
    new = [fitted(scorer, parts, state.options.n_tokens, draw) for parts in rewrites]
    others = [scorer.text(ids) for ids, _ in state.pool if ids != parent]
    known = {tuple(ids) for ids, _ in state.pool}
    for _ in range(EDITS):
        parts = _edited(sentences(text), failed, others, draw)
        new.append(fitted(scorer, parts, state.options.n_tokens, draw))
    proposed = {tuple(ids): list(ids) for ids in new if ids and tuple(ids) not in known}
    candidates = [ids for ids in proposed.values() if scorer.legal(ids)]
    if not candidates:
        return []
    scored = list(zip(candidates, scorer.task_losses(candidates), strict=True))
    state.pool = front([*state.pool, *scored])
    values = [scorer.objective(ids, of_tasks) for ids, of_tasks in scored]
    return list(zip(candidates, values, strict=True))


def tasks_won(pool: Sequence[Candidate]) -> list[int]:
    """How many tasks each text does best on; equal ones go to the first."""
    wins = [0] * len(pool)
    for of_task in zip(*(losses for _, losses in pool), strict=True):
        wins[min(range(len(pool)), key=of_task.__getitem__)] += 1
    return wins


def front(pool: Sequence[Candidate]) -> list[Candidate]:
    """The texts that do best on some task, and the one that does best in all."""
    best = min(pool, key=lambda one: sum(one[1]))
    kept = [one for one, wins in zip(pool, tasks_won(pool), strict=True) if wins or one is best]
    return sorted(kept, key=lambda one: sum(one[1]))


def fitted(scorer: Scorer, parts: Sequence[str], n_tokens: int, draw: random.Random) -> list[int]:
    """The ids of sentences in a line, of which some are left out where they do not fit."""
    parts = [part for part in parts if part.strip()]
    while parts:
        ids = scorer.model.encode(" ".join(" ".join(parts).split()))
        if len(ids) <= n_tokens:
            return ids
        if len(parts) > 1:
            parts.pop(draw.randrange(len(parts)))
        else:
            parts = [" ".join(parts[0].split()[:-1])]
            parts = parts if parts[0] else []
    return []


def _rewrites(
    scorer: Scorer,
    writer: Writer,
    text: str,
    failed: Sequence[str],
    n_tokens: int,
    draw: random.Random,
) -> list[list[str]]:
    """The sentences of rewrites by a model."""
    told = "\n".join(f"- {fact}" for fact in failed)
    words = max(4, int(n_tokens * WORDS_A_TOKEN))
    asked = ASKED.format(text=text, failures=told, words=words)
    try:
        answers, tokens = writer.write(asked, REWRITES, 2 * n_tokens, draw.randrange(2**31))
    except ContextOverflowError:  # the writer reads too little: edits only
        return []
    scorer.count_tokens(tokens)
    paragraphs = (answer.strip().split("\n\n")[0] for answer in answers)
    return [sentences(" ".join(paragraph.split()).strip("\"'“”-* ")) for paragraph in paragraphs]


def _edited(
    parts: list[str], failed: Sequence[str], others: Sequence[str], draw: random.Random
) -> list[str]:
    """A text's sentences, changed somewhere.

    Args:
        failed: responses that are not expected yet, each with its call.
        others: the other texts of the front.
    """
    if not parts:
        return [draw.choice(failed)]
    at = draw.randrange(len(parts))
    match draw.choice(["tell", "replace", "leave out", "join", "order"]):
        case "tell":
            parts.insert(at, draw.choice(failed))
        case "replace":
            parts[at] = draw.choice(failed)
        case "leave out":
            words = parts[at].split() or [""]
            start = draw.randrange(len(words))
            del words[start : start + draw.randint(1, MOST_WORDS)]
            parts[at] = " ".join(words)
        case "join":
            found = sentences(draw.choice(others)) if others else list(failed)
            for part in draw.sample(found, draw.randint(1, len(found))):
                if part not in parts:
                    parts.insert(draw.randint(0, len(parts)), part)
        case "order":
            draw.shuffle(parts)
    return parts


def shorten(scorer: Scorer, ids: Sequence[int], loss: float) -> list[int]:
    """A text without the words that it can do without: the loss rises by no more than `loss`.

    Parts are left out, first halves, then ever smaller ones, down to words (after Zeller's
    delta debugging, 2002); what is left out is not put back. The loss is that by which a search
    chooses its best text.
    """
    words = scorer.text(ids).split()
    kept, most = list(ids), scorer.choosing_loss(ids) + loss
    size = len(words) // 2
    while size:
        at = 0
        while at < len(words) and len(words) > 1:
            fewer = [*words[:at], *words[at + size :]]
            new = scorer.model.encode(" ".join(fewer)) if fewer else []
            if new and scorer.legal(new) and scorer.choosing_loss(new) <= most:
                words, kept = fewer, new
            else:
                at += size
        size //= 2
    return kept
