"""Measures prompts on data of others, beside the text, nothing, and PEFT's prompts.

    python tools/benchmarks/run.py smollm2 --fairytaleqa FOLDER --limit 5 --out runs/tales.jsonl
    python tools/benchmarks/run.py smollm2 --mctest FOLDER --lorebooks OTHER --seeds 3

Each text is studied without its questions. Five at a time are trained together, at a half, a fifth
and a tenth of their tokens, and measured alone and in company of the four others; the texts, too.
PEFT's prompt tuning and prefix tuning get the same tokens, the passages that softlore trained on,
and the seconds that it took, writing the passages included. With --out, an interrupted run resumes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.readers import Tale, Text, read_fairytaleqa, read_lorebooks, read_mctest
from benchmarks.scoring import mean_figures, score
from measuring import LatestModel, main
from peft_training import train_peft
from real_tables import ABSENT, markdown
from softlore import WorldInfoTrainer
from softlore.compare.harness import Row, run_cases, summarize
from softlore.context.compose import ContextLike
from softlore.errors import ConfigError
from softlore.measure.conditioning import FidelityEvaluator, fidelity_evaluators
from softlore.measure.evaluate import plain_text
from softlore.measure.material import gather
from softlore.measure.stories import StoryEvaluator
from softlore.model import FrozenModel
from softlore.prompts import Context, SoftPrompt
from softlore.tune import TrainingProgress
from softlore.tune.examples import DISTILLED, CallResponse

COMPANY = 5  # texts that are trained and measured together
PEFT = {"PEFT's prompt tuning": "embedding", "PEFT's prefix tuning": "prefix"}
THIRDS = ("beginning", "middle", "end")  # of a text, in which an answer is
TITLES = {
    "tokens": "tokens", "nll": "NLL of the answer", "choice": "choice a token",
    "choice_raw": "choice, raw", "f1": "F1 written", "fidelity": "fidelity",
    "lore_words": "lore words a story", **{f"nll_{third}": f"NLL, {third}" for third in THIRDS},
    "seconds": "seconds a text",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is measured on every group of texts.

    Attributes:
        shares: n: a prompt has 1/n of the text's tokens.
        peft_shares: those of PEFT's prompts.
    """

    steps: int
    shares: Sequence[int]
    peft_shares: Sequence[int]
    stories: int

    @property
    def methods(self) -> list[str]:
        return ["none", "text", *map(_soft, self.shares)]


def _soft(share: int) -> str:
    return f"soft at 1/{share}"


class Bench:
    """One model, seed and group of texts: measures each method alone and in company."""

    def __init__(self, model: FrozenModel, seed: int, texts: Sequence[Text], plan: Plan) -> None:
        self.model, self.seed, self.texts, self.plan = model, seed, texts, plan

    def measure(self, method: str) -> Iterator[Row]:
        """A row for each text, alone and in company; figures are None where it does not fit."""
        if method == "none":
            yield from self._rows(method, dict.fromkeys(self._names, ""))
        elif method == "text":
            alone = {text.name: plain_text(text.entry) for text in self.texts}
            yield from self._both(method, alone, "".join(alone.values()))
            yield from self._sections(alone)
        else:
            yield from self._soft(method, int(method.rpartition("/")[2]))

    def _sections(self, alone: Mapping[str, str]) -> Iterator[Row]:
        """What its own sections do for each question, of a text that is longer than the context."""
        for text in self.texts:
            if text.questions and score(self.model, alone[text.name], text.questions[:1]) is None:
                rows = [
                    row
                    for question in text.questions
                    for row in score(self.model, f"{question.sections}\n", [question]) or []
                ]
                yield self._row(text, "the question's sections alone", rows)

    @property
    def _names(self) -> list[str]:
        return [text.name for text in self.texts]

    # training ----------------------------------------------------------------------------------

    def _soft(self, method: str, share: int) -> Iterator[Row]:
        lengths = [len(self.model.encode(text.entry.text)) for text in self.texts]
        n_tokens = max(1, round(sum(lengths) / len(lengths) / share))
        start = time.monotonic()
        trainer = WorldInfoTrainer(
            self.model,
            entries=[text.entry for text in self.texts],
            seed=self.seed,
            n_tokens=n_tokens,
            max_steps=self.plan.steps,
            patience=None,
            style="none",
            company_size=len(self.texts),
            on_step=_Updates(self.plan.steps),
        )
        prompts: dict[str, SoftPrompt] = trainer.train()
        seconds = (time.monotonic() - start) / len(self.texts)
        yield from self._both(method, prompts, Context(prompts.values()), seconds)
        if share in self.plan.peft_shares and self.plan.steps:
            for name, kind in PEFT.items():
                yield from self._peft(f"{name} at 1/{share}", kind, trainer, n_tokens, seconds)

    def _peft(
        self, label: str, kind: str, trainer: WorldInfoTrainer, n_tokens: int, seconds: float
    ) -> Iterator[Row]:
        say(f"{label}: {seconds:.0f} s for each text")
        made = {}
        for text in self.texts:
            source = trainer.data.examples[text.name].source
            assert source is not None
            passages = [CallResponse(ids, 1) for ids in source.ids if len(ids) > 1]
            in_update = DISTILLED["alone"]
            made[text.name] = train_peft(
                self.model, text.entry, kind, n_tokens, seconds, self.seed,
                examples=passages, in_update=in_update,
            ).prompt  # fmt: skip
        yield from self._rows(label, made, seconds)

    # measuring ---------------------------------------------------------------------------------

    def _both(
        self,
        label: str,
        alone: Mapping[str, ContextLike],
        together: ContextLike,
        seconds: float | None = None,
    ) -> Iterator[Row]:
        yield from self._rows(label, alone, seconds)
        if others := len(self.texts) - 1:
            company = dict.fromkeys(alone, together)
            yield from self._rows(f"{label}, in company of {others}", company, seconds)

    def _rows(
        self, label: str, before: Mapping[str, ContextLike], seconds: float | None = None
    ) -> Iterator[Row]:
        written = self._stories.measure(list(before.items())) if self._stories else []
        stories = dict(zip(before, written, strict=False))
        for text in self.texts:
            conditioning = before[text.name]
            rows = score(self.model, conditioning, text.questions) if text.questions else []
            row = self._row(text, label, rows or [], seconds)
            if text.is_lore:
                row["fidelity"] = self._fidelities[text.name].measure(conditioning)
                of_text = stories.get(text.name)
                row["lore_words"] = of_text and of_text.lore_words.a_story
            if rows is not None:
                row["tokens"] = Context(conditioning).token_count(self.model).total
            yield row

    def _row(
        self, text: Text, label: str, rows: Sequence[Row], seconds: float | None = None
    ) -> Row:
        """The means of what was scored; the other figures are None."""
        return {
            "text": text.name,
            "label": label,
            "questions": len(text.questions),
            **dict.fromkeys(TITLES),
            **mean_figures(rows),
            **{
                f"nll_{third}": mean_figures(_of_third(text, rows, number))["nll"]
                for number, third in enumerate(THIRDS)
            },
            "seconds": seconds,
        }

    @cached_property
    def _stories(self) -> StoryEvaluator | None:
        if not self.plan.stories or not any(text.is_lore for text in self.texts):
            return None
        entries = [text.entry for text in self.texts]
        material = gather(self.model, 0, self.seed)
        return StoryEvaluator(self.model, material, entries, self.plan.stories, 60, self.seed)

    @cached_property
    def _fidelities(self) -> dict[str, FidelityEvaluator]:
        texts = [(text.entry, plain_text(text.entry)) for text in self.texts]
        return fidelity_evaluators(self.model, texts, self.seed)


def _of_third(text: Text, rows: Sequence[Row], third: int) -> list[Row]:
    places = [min(2, int(3 * question.place)) for question in text.questions]
    return [row for row, place in zip(rows, places, strict=False) if place == third]


class _Updates:
    """Says from time to time how far a training is."""

    def __init__(self, steps: int) -> None:
        self.steps, self.said = steps, time.monotonic()

    def __call__(self, progress: TrainingProgress) -> None:
        if time.monotonic() - self.said > 30:
            self.said = time.monotonic()
            left = progress.seconds_left
            rest = "" if left is None else f", about {left:.0f} s left"
            say(f"  update {progress.step} of {self.steps}{rest}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# what is read, and what is printed -------------------------------------------------------------


def _texts(
    model: FrozenModel, tales: Sequence[Tale], tokens: int, limit: int, joined: bool
) -> list[Text]:
    if joined:
        sections = [section for tale in tales for section in tale.sections]
        starts = [0]
        for tale in tales:
            starts.append(starts[-1] + len(tale.sections))
        moved = [
            replace(section, questions=tuple((first + start, q) for first, q in section.questions))
            for tale, start in zip(tales, starts, strict=False)
            for section in tale.sections
        ]
        assert len(moved) == len(sections)
        tales = [Tale("The tales", tuple(moved))]
    texts: list[Text] = []
    for tale in tales:
        for text in tale.cut(tokens, lambda words: len(model.encode(words))):
            texts.append(text)
            if limit and len(texts) == limit:
                return texts
    return texts


def _asked(text: Text, most: int) -> Text:
    """At most so many questions, evenly spaced."""
    count = len(text.questions)
    if not most or count <= most:
        return text
    return replace(text, questions=tuple(text.questions[i * count // most] for i in range(most)))


def _distinct(texts: Sequence[Text]) -> list[Text]:
    """Texts whose names differ: prompts are trained by name."""
    seen: dict[str, int] = {}
    named = []
    for text in texts:
        name = text.name
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            entry = text.entry.model_copy(update={"name": f"{name} ({seen[name]})"})
            text = replace(text, entry=entry)
        named.append(text)
    return named


def table(rows: Sequence[Row]) -> str:
    """Means of each label over texts, with 95 % intervals; columns without a figure left out."""
    means = summarize(rows, "label", "text", list(TITLES))
    used = [c for c in TITLES if any(of_label[c] for of_label in means.values())]
    if sum(f"nll_{third}" in used for third in THIRDS) < len(THIRDS):
        used = [c for c in used if not c.startswith("nll_")]
    lines = []
    for label, of_label in means.items():
        cells = [ABSENT if (mean := of_label[c]) is None else str(mean) for c in used]
        lines.append([label, *cells])
    return markdown(["", *(TITLES[c] for c in used)], lines)


def run(
    model: Annotated[str, "short name, folder, hub id or GGUF file"],
    /,
    *,
    fairytaleqa: Annotated[Path | None, "folder of FairytaleQA's CSV files"] = None,
    mctest: Annotated[Path | None, "folder of MCTest's .tsv and .ans files"] = None,
    lorebooks: Annotated[Path | None, "folder of lorebooks and character cards"] = None,
    limit: Annotated[int, "texts of each data set; 0: all"] = 10,
    questions: Annotated[int, "of each text, at most; 0: all"] = 12,
    tokens: Annotated[int, "of a text: sections are joined up to these; 0: whole tales"] = 400,
    joined: Annotated[bool, "all tales are one text, which is cut by --tokens"] = False,
    shares: Annotated[list[int], "n: prompts of 1/n of the text's tokens"] = [2, 5, 10],  # noqa: B006 - read only
    peft: Annotated[list[int], "those that PEFT's prompts are trained at, too; 0: none"] = [10],  # noqa: B006 - read only
    steps: Annotated[int, "updates of each prompt; 0: the start in closed form"] = 60,
    seeds: Annotated[int, "of everything that is drawn and trained"] = 1,
    stories: Annotated[int, "for each entry of a lorebook"] = 8,
    company: Annotated[int, "texts that are trained and measured together"] = COMPANY,
    dtype: Annotated[str | None, "such as bfloat16"] = None,
    out: Annotated[Path | None, "JSON lines; cases in the file are not measured again"] = None,
) -> None:
    """A Markdown table for each data set."""
    if min(shares) < 1 or company < 1 or steps < 0 or min(limit, questions, tokens, seeds - 1) < 0:
        raise ConfigError(
            f"shares {shares}, company {company}, steps {steps}, limit {limit}, questions "
            f"{questions}, tokens {tokens} or seeds {seeds} is too small; expected 1 or more "
            "(steps, limit, questions and tokens: 0 or more); raise it"
        )
    tales = {}
    if fairytaleqa is not None:
        tales["FairytaleQA"] = read_fairytaleqa(fairytaleqa)
    if mctest is not None:
        tales["MCTest"] = read_mctest(mctest)
    lore = read_lorebooks(lorebooks) if lorebooks is not None else None
    if not tales and lore is None:
        raise ConfigError(
            "no data is given; expected a folder; give --fairytaleqa, --mctest or --lorebooks"
        )
    how = Plan(steps, shares, peft, stories)
    load = LatestModel(dtype)
    sets = {name: _texts(load(model), read, tokens, limit, joined) for name, read in tales.items()}
    if lore is not None:
        sets["lorebooks"] = lore[:limit] if limit else lore
    groups: dict[str, list[Text]] = {}
    cases = []
    settings = f"{steps} updates, {questions} questions, {dtype or 'default'} dtype"
    for name, texts in sets.items():
        texts = [_asked(text, questions) for text in _distinct(texts)]
        for start in range(0, len(texts), company):
            group = texts[start : start + company]
            key = "; ".join(text.name for text in group)
            groups[key] = group
            cases += [
                {"data": name, "model": model, "seed": seed, "group": key, "method": method}
                | {"plan": settings}
                for seed in range(seeds)
                for method in how.methods
            ]
    started = time.monotonic()

    def measure(data: str, model: str, seed: int, group: str, method: str, plan: str) -> list[Row]:
        return list(Bench(load(model), seed, groups[group], how).measure(method))

    def on_progress(share: float, case: str) -> None:
        spent = time.monotonic() - started
        say(f"{share:.0%}, {spent:.0f} s: {case[:160]}")

    rows = run_cases(cases, measure, out, on_progress=on_progress)
    for name in sets:
        of_set = [row for row in rows if row["data"] == name]
        texts_ = len({row["text"] for row in of_set})
        asked = sum(r["questions"] for r in of_set if r["label"] == "none" and r["seed"] == 0)
        print(f"\n### {name}\n\n{texts_} texts, {asked} questions, {seeds} seeds; ± is half a 95 % "
              f"interval over the texts.\n\n{table(of_set)}")  # fmt: skip


if __name__ == "__main__":
    main(__doc__, run)
