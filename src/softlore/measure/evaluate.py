"""Evaluation: measures a lorebook's soft prompts, compared with no prompt and the text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from softlore.context.compose import ContextLike
from softlore.errors import ConfigError, UnknownPromptError
from softlore.lore import Entry, Lorebook
from softlore.measure.conditioning import ConditioningEvaluator, FidelityEvaluator
from softlore.measure.material import gather
from softlore.measure.results import CONDITIONINGS, EntryResult, Evaluation, Measures
from softlore.measure.stories import StoryEvaluator
from softlore.model import FrozenModel
from softlore.prompts import Context, SoftPrompt

COMPANY = 4  # most prompts that are measured together
STORY_CONDITIONINGS = ("none", "text", "soft")
OnProgress = Callable[[float, str], None]  # share done, and what is being done
Conditionings = dict[str, ContextLike]  # by name, see CONDITIONINGS


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
        prompts: by the names of the entries; entries without one are skipped and listed as missing.
        seed: of every draw; independent of training's draws.
        stories: sampled for each entry and conditioning; 0 for none.
        story_tokens: length of each.
        distances: tokens of story between conditioning and call.
        story: text for distances and drift, in place of samples of the bare model.
        on_progress: called with the share that is done and what is being done.

    Raises:
        UnknownPromptError: no entry has a prompt.
        PromptMismatchError: a prompt of another model.
        ConfigError: a setting out of range.
    """
    distances = check_settings(stories, story_tokens, distances)
    book, start = book.resolved(), time.monotonic()
    report = on_progress or (lambda done, doing: None)
    report(0.0, "unrelated text")
    entries, missing = _with_prompts(book, prompts)
    prompts = {entry.name: prompts[entry.name] for entry in entries}
    material = gather(model, max(distances), seed, story)
    evaluator = ConditioningEvaluator(model, material, distances)
    companies = _companies(list(prompts))
    texts = {entry.name: plain_text(entry) for entry in entries if entry.text}
    conditionings, measured = {}, {}
    for number, entry in enumerate(entries):
        name = entry.name
        report((number + 0.5) / (len(entries) + 1.5), name)
        conditionings[name] = _conditionings(name, texts, prompts, companies[name])
        measured[name] = _measure_entry(evaluator, entry, conditionings[name], seed)
    story_evaluator = StoryEvaluator(model, material, entries, stories, story_tokens, seed)
    if stories:
        report(1 - 1 / (len(entries) + 1.5), "stories")
        _add_stories(story_evaluator, conditionings, measured)
    report(1.0, "done")
    settings = {
        "seed": seed,
        "stories": stories,
        "story_tokens": story_tokens,
        "distances": list(distances),
        "story": "given" if story is not None else "sampled",
    }
    keywords = story_evaluator.keywords if stories else {}
    results = [
        EntryResult(name, prompts[name].kind, companies[name], keywords.get(name, []), measures)
        for name, measures in measured.items()
    ]
    seconds = time.monotonic() - start
    return Evaluation(book.name, model.name, settings, results, missing, seconds)


def _with_prompts(
    book: Lorebook, prompts: Mapping[str, SoftPrompt]
) -> tuple[list[Entry], list[str]]:
    """The entries that have a prompt, and the names of those that have none."""
    entries = [entry for entry in book if entry.name in prompts]
    missing = [entry.name for entry in book if entry.name not in prompts]
    if not entries:
        raise UnknownPromptError(
            f"none of the {len(book)} entries of lorebook {book.name!r} has a prompt there; "
            f"expected some of {', '.join(map(repr, missing))}; train them first, or name the "
            "folder that holds them"
        )
    return entries, missing


def check_settings(stories: int, story_tokens: int, distances: Sequence[int]) -> list[int]:
    """Checks settings of a measurement; returns the distances in order, each once.

    Raises:
        ConfigError: a setting out of range.
    """
    for name, value, least in (("stories", stories, 0), ("story_tokens", story_tokens, 1)):
        if value < least:
            raise ConfigError(f"{name} is {value}; expected at least {least}; raise it")
    if not distances or min(distances) < 0:
        raise ConfigError(
            f"distances are {list(distances)}; expected one or more, none below 0; give "
            "some, such as 0, 64, 256"
        )
    return sorted(set(distances))


def plain_text(entry: Entry) -> str:
    """An entry's text as a hard prompt: a line of its own, as in distillation."""
    return entry.text + ("" if entry.text[-1:].isspace() else "\n")


def _conditionings(
    name: str,
    texts: Mapping[str, str],
    prompts: Mapping[str, SoftPrompt],
    company: Sequence[str],
) -> Conditionings:
    """What is put before an entry's calls, see `CONDITIONINGS`."""
    conditionings: Conditionings = {"none": ""}
    if name in texts:
        conditionings["text"] = texts[name]
    conditionings["soft"] = prompts[name]
    if company and all(other in texts for other in company):
        conditionings["texts"] = "".join(texts[other] for other in company)
    if company:
        conditionings["company"] = Context(prompts[name] for name in company)
    return conditionings


def _measure_entry(
    evaluator: ConditioningEvaluator, entry: Entry, conditionings: Conditionings, seed: int
) -> dict[str, Measures | None]:
    """All measures but stories', by conditioning; None for one that is absent or does not fit."""
    text = str(conditionings.get("text", ""))
    fidelities = FidelityEvaluator(evaluator.model, entry, text, seed)
    measured: dict[str, Measures | None] = dict.fromkeys(CONDITIONINGS)
    for name, conditioning in conditionings.items():
        measures = evaluator.measure(entry, conditioning)
        measured[name] = measures and replace(measures, fidelity=fidelities.measure(conditioning))
    return measured


def _companies(names: Sequence[str]) -> dict[str, list[str]]:
    """Groups of equal size, at most `COMPANY`, in the lorebook's order; none for a prompt alone."""
    groups = math.ceil(len(names) / COMPANY)
    sizes = [len(names) // groups + (i < len(names) % groups) for i in range(groups)]
    companies: dict[str, list[str]] = {}
    start = 0
    for size in sizes:
        group = list(names[start : start + size])
        companies |= {name: group if size > 1 else [] for name in group}
        start += size
    return companies


def _add_stories(
    evaluator: StoryEvaluator,
    conditionings: Mapping[str, Conditionings],
    measured: Mapping[str, dict[str, Measures | None]],
) -> None:
    """Adds the measures of stories, in place. Each conditioning's stories are one batch."""
    for name in STORY_CONDITIONINGS:
        fitting = {
            entry: conditionings[entry][name]
            for entry, measures in measured.items()
            if measures[name] is not None
        }
        for entry, stories in evaluator.measure(fitting).items():
            measures = measured[entry][name]
            measured[entry][name] = measures and replace(measures, stories=stories)
