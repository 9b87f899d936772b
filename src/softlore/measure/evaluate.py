"""All measures of a lorebook's prompts, beside those of no prompt and of the plain text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from softlore.context.compose import ContextLike
from softlore.errors import ConfigError, UnknownPromptError
from softlore.lore import Entry, Lorebook
from softlore.lore.keywords import lore_keywords, words
from softlore.measure import score
from softlore.measure.conditioning import ConditioningEvaluator
from softlore.measure.material import Ids, Material, gather, lore_passages, passage_tokens
from softlore.measure.results import EntryResult, Evaluation, Measures
from softlore.measure.stories import judge, story_openings, write_stories
from softlore.model import FrozenModel
from softlore.prompts import Context, SoftPrompt

COMPANY = 4  # most prompts that stand together
TELLERS = ("none", "text", "soft")  # heads that write stories
OnProgress = Callable[[float, str], None]  # share done, and what is being done
Heads = dict[str, ContextLike | None]


def evaluate(
    model: FrozenModel,
    book: Lorebook,
    prompts: Mapping[str, SoftPrompt],
    *,
    seed: int = 0,
    stories: int = 12,
    story_tokens: int = 60,
    distances: Sequence[int] = (0, 64, 256),
    story: str | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Measures a lorebook's soft prompts, each by itself and in company.

    Args:
        prompts: by the names of the entries; entries without one are left out, and said to be.
        seed: of every draw; none of them is one of training's.
        stories: how many each head writes for each entry; 0 for none.
        story_tokens: how long they are.
        distances: tokens of story between head and call.
        story: text for distances and drift, in place of what the bare model writes.
        on_progress: called with the share that is done and a word on what comes next.

    Raises:
        UnknownPromptError: no entry has a prompt.
        PromptMismatchError: a prompt of another model.
        ConfigError: a setting out of range.
    """
    distances = check_settings(stories, story_tokens, distances)
    start = time.monotonic()
    entries = [entry for entry in book if entry.name in prompts]
    missing = [entry.name for entry in book if entry.name not in prompts]
    if not entries:
        raise UnknownPromptError(
            f"none of the {len(book)} entries of lorebook {book.name!r} has a prompt there; "
            f"expected some of {', '.join(map(repr, missing))}; train them first, or name the "
            "folder that holds them"
        )
    tell = on_progress or (lambda done, doing: None)
    tell(0.0, "unrelated text")
    material = gather(model, max(distances), seed, story)
    found = {entry.name: prompts[entry.name] for entry in entries}
    work = _Work(model, material, distances, seed, found)
    results = []
    for number, entry in enumerate(entries):
        tell((number + 0.5) / (len(entries) + 1.5), entry.name)
        results.append(work.measure(entry))
    if stories:
        tell(1 - 1 / (len(entries) + 1.5), "stories")
        results = _with_stories(
            model, material, entries, results, found, stories, story_tokens, seed
        )
    tell(1.0, "done")
    settings = {
        "seed": seed,
        "stories": stories,
        "story_tokens": story_tokens,
        "distances": list(distances),
        "story": "given" if story is not None else "sampled",
    }
    seconds = time.monotonic() - start
    return Evaluation(book.name, model.name, settings, results, missing, seconds)


def check_settings(stories: int, story_tokens: int, distances: Sequence[int]) -> list[int]:
    """The distances in order.

    Raises:
        ConfigError: a setting out of range.
    """
    for name, value, least in (("stories", stories, 0), ("story_tokens", story_tokens, 1)):
        if value < least:
            raise ConfigError(f"{name} is {value}; expected at least {least}; ask for more")
    if not distances or min(distances) < 0:
        raise ConfigError(
            f"distances are {list(distances)}; expected some, none below 0; such as 0, 64, 256"
        )
    return sorted(set(distances))


def plain_text(entry: Entry) -> str:
    """An entry's text as a hard prompt: on a line of its own, as distillation reads it."""
    return entry.text + ("" if entry.text[-1:].isspace() else "\n")


def conditionings_of(entry: Entry, prompts: Mapping[str, SoftPrompt]) -> Heads:
    """What may stand before an entry's calls: nothing, its text if it has one, its soft prompt."""
    text = plain_text(entry) if entry.text else None
    return {"none": "", "text": text, "soft": prompts[entry.name]}


class _Work:
    """Measures entry by entry, each prompt by itself and among others."""

    def __init__(
        self,
        model: FrozenModel,
        material: Material,
        distances: Sequence[int],
        seed: int,
        prompts: Mapping[str, SoftPrompt],
    ) -> None:
        self.model = model
        self.bench = ConditioningEvaluator(model, material, distances)
        self.seed = seed
        self.prompts = prompts
        self.company = _companies(list(prompts))

    def measure(self, entry: Entry) -> EntryResult:
        """All but the stories."""
        company = self.company[entry.name]
        conditionings = conditionings_of(entry, self.prompts)
        conditionings["company"] = (
            Context(self.prompts[name] for name in company) if company else None
        )
        faithful = self._fidelities(entry, conditionings)
        measured: dict[str, Measures | None] = {}
        for name, conditioning in conditionings.items():
            found = None if conditioning is None else self.bench.measure(entry, conditioning)
            measured[name] = found and replace(found, fidelity=faithful.get(name))
        kind = self.prompts[entry.name].kind
        return EntryResult(entry.name, kind, company, [], measured)

    def _fidelities(self, entry: Entry, conditionings: Heads) -> dict[str, float]:
        """Of each head, how much of what the text does it does."""
        model, text = self.model, conditionings["text"]
        if text is None or not score.fits_after(model, text, passage_tokens(model)):
            return {}
        passages = lore_passages(model, entry, text, self.seed)
        theirs = score.passage_hidden_states(model, text, passages)
        apart = {"text": 0.0}
        for name in ("none", "soft", "company"):
            conditioning = conditionings[name]
            if conditioning is not None and score.fits_after(
                model, conditioning, passage_tokens(model)
            ):
                apart[name] = score.kl(
                    model, theirs, score.passage_hidden_states(model, conditioning, passages)
                )
        whole = apart["none"]
        return {name: 1 - kl / whole for name, kl in apart.items()} if whole > 0 else {}


def _companies(names: Sequence[str]) -> dict[str, list[str]]:
    """Who stands with whom: groups of equal size, at most `COMPANY`, in the lorebook's order."""
    groups = math.ceil(len(names) / COMPANY)
    sizes = [len(names) // groups + (i < len(names) % groups) for i in range(groups)]
    found: dict[str, list[str]] = {}
    start = 0
    for size in sizes:
        group = list(names[start : start + size])
        found |= {name: group if size > 1 else [] for name in group}
        start += size
    return found


def _with_stories(
    model: FrozenModel,
    material: Material,
    entries: Sequence[Entry],
    results: Sequence[EntryResult],
    prompts: Mapping[str, SoftPrompt],
    count: int,
    tokens: int,
    seed: int,
) -> list[EntryResult]:
    """The results with what stories came to that each head began."""
    openings = []
    for entry in entries:
        begun = story_openings(entry)
        openings.append([begun[i % len(begun)] for i in range(count)])
    keywords = [
        lore_keywords(entry, material.known.union(*(words(one) for one in begun)))
        for entry, begun in zip(entries, openings, strict=True)
    ]
    found: list[dict[str, Measures | None]] = [dict(result.conditionings) for result in results]
    for name in TELLERS:
        there = [i for i, conditionings in enumerate(found) if conditionings[name] is not None]
        jobs: list[tuple[ContextLike, list[Ids]]] = []
        for i in there:
            conditioning = conditionings_of(entries[i], prompts)[name]
            jobs.append((conditioning or "", [model.encode(opening) for opening in openings[i]]))
        for i, written in zip(there, write_stories(model, jobs, tokens, seed), strict=True):
            before = found[i][name]
            if before is not None and written is not None:
                told = judge(model, entries[i], openings[i], written, keywords[i])
                found[i][name] = replace(before, stories=told)
    return [
        replace(result, keywords=mine, conditionings=conditionings)
        for result, mine, conditionings in zip(results, keywords, found, strict=True)
    ]
