"""Evaluation: measures a lorebook's soft prompts, compared with no prompt and the text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from softlore.context.compose import ContextLike
from softlore.errors import ConfigError, UnknownPromptError
from softlore.lore import Entry, Lorebook
from softlore.lore.study import as_line
from softlore.measure.conditioning import (
    ConditioningEvaluator,
    FidelityEvaluator,
    fidelity_evaluators,
)
from softlore.measure.material import FIDELITY, gather
from softlore.measure.results import CONDITIONINGS, EntryResult, Evaluation, Measures
from softlore.measure.stories import StoryEvaluator
from softlore.model import FrozenModel
from softlore.prompts import Context, SoftPrompt

COMPANY = 4  # most prompts that are measured together
STORY_CONDITIONINGS = ("none", "text", "soft")
TEXT_SHARE = 0.6  # of the progress shown: what is measured without prompts
OnProgress = Callable[[float, str], None]  # share done, and what is being done
Job = tuple[str, ContextLike, Sequence[str]]  # which of CONDITIONINGS, what it is, of which entries


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
    present, missing = _with_prompts(book, prompts)
    for entry in present:
        model.check_prompt(prompts[entry.name])
    report = on_progress or (lambda done, doing: None)
    report(0.0, "unrelated text")
    evaluator = LorebookEvaluator(
        model,
        present,
        seed=seed,
        stories=stories,
        story_tokens=story_tokens,
        distances=distances,
        story=story,
    )
    evaluator.measure_text(lambda done, doing: report(done * TEXT_SHARE, doing))
    return evaluator.measure_prompts(
        prompts, missing, lambda done, doing: report(TEXT_SHARE + done * (1 - TEXT_SHARE), doing)
    )


class LorebookEvaluator:
    """Measures the entries of a lorebook, in two parts.

    What needs no prompts can be measured before they are trained. It takes about as long as what is
    measured with them.

    Args:
        book: all of its entries are measured.
        seed, stories, story_tokens, distances, story: see `evaluate`.
        passages: about each entry for fidelity, and unrelated ones for drift.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        model: FrozenModel,
        book: Lorebook,
        *,
        seed: int = 0,
        stories: int = 12,
        story_tokens: int = 60,
        distances: Sequence[int] = (0, 64, 256),
        story: str | None = None,
        passages: int = FIDELITY,
    ) -> None:
        start = time.monotonic()
        distances = check_settings(stories, story_tokens, distances)
        self.book = book.resolved()
        self.settings = {
            "seed": seed,
            "stories": stories,
            "story_tokens": story_tokens,
            "distances": distances,
            "story": "given" if story is not None else "sampled",
        }
        entries = list(self.book)
        material = gather(model, max(distances), seed, story, passages)
        self._model, self._seed, self._passages = model, seed, passages
        self._texts = {entry.name: plain_text(entry) for entry in entries if entry.text}
        self._evaluator = ConditioningEvaluator(model, material, distances)
        self._fidelities: dict[str, FidelityEvaluator] = {}
        self._stories = StoryEvaluator(model, material, entries, stories, story_tokens, seed)
        self._companies = _companies([entry.name for entry in entries])
        self._measured: dict[str, dict[str, Measures | None]] = {
            entry.name: dict.fromkeys(CONDITIONINGS) for entry in entries
        }
        self._seconds = time.monotonic() - start

    def measure_text(self, on_progress: OnProgress | None = None) -> None:
        """Measures all without lore, and with their plain text, alone and in company."""
        jobs: list[Job] = [("none", "", [entry.name for entry in self.book])]
        jobs += [("text", text, [name]) for name, text in self._texts.items()]
        for company in self._companies:
            if all(name in self._texts for name in company):
                jobs.append(("texts", "".join(self._texts[name] for name in company), company))
        self._measure(jobs, on_progress)

    def measure_prompts(
        self,
        prompts: Mapping[str, SoftPrompt],
        missing: Sequence[str] = (),
        on_progress: OnProgress | None = None,
    ) -> Evaluation:
        """Measures all with their soft prompts, alone and in company; returns both parts.

        Args:
            prompts: by the names of the entries.
            missing: names of entries that have no prompt, for the record.

        Raises:
            PromptMismatchError: a prompt of another model.
        """
        jobs: list[Job] = [("soft", prompts[entry.name], [entry.name]) for entry in self.book]
        for company in self._companies:
            jobs.append(("company", Context(prompts[name] for name in company), company))
        self._measure(jobs, on_progress)
        companies = {name: company for company in self._companies for name in company}
        keywords = self._stories.keywords if self.settings["stories"] else {}
        results = [
            EntryResult(
                name,
                prompts[name].kind,
                companies.get(name, []),
                keywords.get(name, []),
                measured,
            )
            for name, measured in self._measured.items()
        ]
        book, model = self.book.name, self._model.name
        return Evaluation(book, model, self.settings, results, list(missing), self._seconds)

    def _measure(self, jobs: Sequence[Job], on_progress: OnProgress | None) -> None:
        """Measures the entries of each job with its conditioning; None where it does not fit."""
        start = time.monotonic()
        report = on_progress or (lambda done, doing: None)
        steps = len(jobs) + 2
        if not self._fidelities:
            report(0.5 / steps, "passages about the lore")
            texts = [(entry, self._texts.get(entry.name, "")) for entry in self.book]
            self._fidelities = fidelity_evaluators(self._model, texts, self._seed, self._passages)
        for number, (kind, conditioning, names) in enumerate(jobs):
            report((number + 1) / steps, names[0] if len(names) == 1 else f"{len(names)} entries")
            measured = self._evaluator.measure([self.book[name] for name in names], conditioning)
            for name, measures in zip(names, measured, strict=True):
                if measures is not None:
                    fidelity = self._fidelities[name].measure(conditioning)
                    measures = replace(measures, fidelity=fidelity)
                self._measured[name][kind] = measures
        if self.settings["stories"]:
            report(1 - 1 / steps, "stories")
            self._add_stories(jobs)
        report(1.0, "done")
        self._seconds += time.monotonic() - start

    def _add_stories(self, jobs: Sequence[Job]) -> None:
        """Measures stories of all entries with all conditionings that fit, in one batch."""
        fitting = [
            (kind, name, conditioning)
            for kind, conditioning, names in jobs
            if kind in STORY_CONDITIONINGS
            for name in names
            if self._measured[name][kind] is not None
        ]
        written = self._stories.measure([(name, before) for _, name, before in fitting])
        for (kind, name, _), stories in zip(fitting, written, strict=True):
            measures = self._measured[name][kind]
            self._measured[name][kind] = measures and replace(measures, stories=stories)


def _with_prompts(book: Lorebook, prompts: Mapping[str, SoftPrompt]) -> tuple[Lorebook, list[str]]:
    """The lorebook of those entries that have a prompt, and the names of the others."""
    entries = [entry for entry in book if entry.name in prompts]
    missing = [entry.name for entry in book if entry.name not in prompts]
    if not entries:
        raise UnknownPromptError(
            f"none of the {len(book)} entries of lorebook {book.name!r} has a prompt there; "
            f"expected some of {', '.join(map(repr, missing))}; train them first, or name the "
            "folder that holds them"
        )
    return book.model_copy(update={"entries": entries}), missing


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
    return as_line(entry.text)


def _companies(names: Sequence[str]) -> list[list[str]]:
    """Groups of equal size, at most `COMPANY`, in the lorebook's order; none of one alone."""
    groups = math.ceil(len(names) / COMPANY)
    sizes = [len(names) // groups + (i < len(names) % groups) for i in range(groups)]
    companies: list[list[str]] = []
    start = 0
    for size in sizes:
        companies += [list(names[start : start + size])] if size > 1 else []
        start += size
    return companies
