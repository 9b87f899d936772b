"""Hard-prompt experiments: every prompt is rendered, continued by a model and checked."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from softlore.compare.harness import OnProgress, Row, csv_text, run_cases
from softlore.control.hard import Assertion, AssertionInput, Experiment, Judge, Template
from softlore.control.hard.judges import ModelJudge
from softlore.decode import SamplingParams, generate, sample_passages
from softlore.disk import write_atomically
from softlore.errors import ConfigError, ContextError, StorageError
from softlore.lore import Entry
from softlore.lore.study import OPENERS
from softlore.measure import count_keywords, drift, lore_keywords, perplexity, recall
from softlore.measure.score import fits
from softlore.model import FrozenModel
from softlore.tune.topics import bare_tree

PASSAGES, PASSAGE_TOKENS = 12, 48  # unrelated text that drift is measured on
MAX_CACHED_BYTES = 1 << 22  # size of one cached result


@dataclass(frozen=True)
class PromptCase:
    """A rendered prompt with a model, a combination of variables and a sample's number."""

    prompt: str
    model: str
    variables: dict[str, Any]
    sample: int
    text: str
    opening: str

    @property
    def shown(self) -> dict[str, str]:
        """The variables for display; an entry by its name."""
        return {
            name: value.name if isinstance(value, Entry) else str(value)
            for name, value in self.variables.items()
        }


def plain_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables as templates and assertions see them: an entry by its fields."""
    return {k: v.data() if isinstance(v, Entry) else v for k, v in variables.items()}


class OutputCache:
    """Generated texts and measures, by all that they depend on, a file each. Unreadable files are
    replaced.

    Args:
        folder: None for no cache.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The result for `key` (plain data); computed and saved if it is not cached."""
        if self.folder is None:
            return make()
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{name}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if path.stat().st_size <= MAX_CACHED_BYTES:
                return json.loads(path.read_bytes())["answer"]
        answer = make()
        with contextlib.suppress(StorageError, OSError):  # works without the cache, only slower
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"answer": answer}).encode())
        return answer


def run_experiment(
    experiment: Experiment,
    load: Callable[[str], FrozenModel],
    cache: OutputCache | None = None,
    allow_python: bool = False,
    on_progress: OnProgress | None = None,
    judge: Judge | None = None,
) -> list[Row]:
    """Runs all cases, model by model, and returns a row for each.

    A row holds the case (`prompt`, `model`, `variables`, `sample`, `text`, `opening`), `output`,
    the prompt's length (`tokens`), the verdicts (`assertions`), `score` (weighted share of the
    assertions that hold, 1 where there are none) and `passed`.

    Args:
        load: loads a model by name.
        allow_python: evaluate `python` assertions, which can run any code.
        on_progress: called with the share that is done and the next case.
        judge: answers the questions of `judge` assertions; default: the model of each case.

    Raises:
        ConfigError: the experiment is invalid; raised before any case runs.
    """
    assertions = experiment.assertions()
    if not allow_python and any(assertion.kind == "python" for assertion in assertions):
        raise ConfigError(
            "the experiment has a `python` assertion, which can run any code on this machine; "
            "expected permission to run it; read the file, and pass --allow-python if you trust it"
        )
    try:
        SamplingParams.of(experiment.sampling)
    except ConfigError as error:
        raise ConfigError(f"`sampling` of the experiment can't be used: {error}") from error
    cases = list(_cases(experiment))

    @lru_cache(maxsize=1)  # cases come model by model: one model is in memory at a time
    def runner(model: str) -> _CaseRunner:
        return _CaseRunner(experiment, load(model), cache or OutputCache(None), judge)

    def measure(case: int, prompt: str) -> Row:
        return runner(cases[case].model).run(cases[case], assertions)

    numbered = [{"case": number, "prompt": case.prompt} for number, case in enumerate(cases)]
    return run_cases(numbered, measure, on_progress=on_progress)


def _cases(experiment: Experiment) -> Iterator[PromptCase]:
    templates = experiment.templates()
    opening = Template(experiment.opening, "the opening")
    for model, variables in itertools.product(experiment.models, list(experiment.combinations())):
        plain = plain_variables(variables)
        for prompt, template in templates.items():
            text, start = template.render(plain), opening.render(plain)
            for sample in range(experiment.samples):
                yield PromptCase(prompt, model, variables, sample, text, start)


class _CaseRunner:
    """Runs the cases of one model; all generation goes through the cache."""

    def __init__(
        self, experiment: Experiment, model: FrozenModel, cache: OutputCache, judge: Judge | None
    ) -> None:
        self.experiment, self.model, self.cache = experiment, model, cache
        own = ModelJudge(model)
        self.judge, self.identity = judge or own, own.identity

    def run(self, case: PromptCase, assertions: Sequence[Assertion]) -> Row:
        output = self._output(case)
        checked = AssertionInput(
            output,
            plain_variables(case.variables),
            lambda name: self._measure(name, case, output),
            self._judge,
        )
        verdicts = [(assertion, assertion.check(checked)) for assertion in assertions]
        total = sum(assertion.weight for assertion, _ in verdicts)
        passed = sum(assertion.weight for assertion, verdict in verdicts if verdict.passed)
        score = passed / total if total else 1.0
        return {
            "model": case.model,
            "variables": case.shown,
            "sample": case.sample,
            "text": case.text,
            "tokens": len(self.model.encode(case.text)),
            "opening": case.opening,
            "output": output,
            "assertions": [
                {"assertion": assertion.label, **asdict(verdict)} for assertion, verdict in verdicts
            ],
            "score": round(score, 4),
            "passed": score >= self.experiment.threshold,
        }

    def _output(self, case: PromptCase) -> str:
        experiment = self.experiment
        # The draws of a case depend on its own settings only, not on the other cases.
        key = {
            "answer": "text",
            "model": self.identity,
            "read": case.text + case.opening,
            "tokens": experiment.tokens,
            "sampling": experiment.sampling,
            "seed": experiment.seed,
            "sample": case.sample,
        }
        seed = random.Random(f"{experiment.seed}/{case.sample}").randrange(2**31)
        return str(self.cache.get(key, lambda: self._generate(case, seed)))

    def _generate(self, case: PromptCase, seed: int) -> str:
        text, experiment = case.text + case.opening, self.experiment
        try:
            return generate(self.model, text, experiment.tokens, seed=seed, **experiment.sampling)
        except ContextError as error:
            raise ConfigError(f"prompt {case.prompt!r}, {case.shown}: {error}") from error

    def _measure(self, name: str, case: PromptCase, output: str) -> float | None:
        """A measure that an assertion asks for; None where it can't be measured."""
        model, text, opening = self.model, case.text, case.opening
        entry: Entry | None = case.variables.get("entry")
        measures: dict[str, Callable[[], float | None]] = {
            "perplexity": lambda: perplexity(
                model, [(model.encode(opening) or model.bos, model.encode(output))]
            ),
            "drift": lambda: drift(model, text, self._unrelated) if text else 0.0,
            "recall": lambda: self._recall(text, entry),
            "keywords": lambda: _keywords(output, entry),
        }
        key = {
            "answer": name,
            "model": self.identity,
            "prompt": text,
            "output": output,
            "opening": opening,
            "entry": entry and entry.data(),
            "seed": self.experiment.seed,
        }
        answer = self.cache.get(key, measures[name])
        return float(answer) if isinstance(answer, int | float) else None

    def _judge(self, question: str, choices: Sequence[str]) -> list[float]:
        """The chances of a question's choices."""
        key = {
            "answer": "judge",
            "model": self.judge.identity,
            "question": question,
            "choices": list(choices),
        }
        answer = self.cache.get(key, lambda: self.judge.chances(question, choices))
        return [float(chance) for chance in answer]

    def _recall(self, text: str, entry: Entry | None) -> float | None:
        blocks = entry.blocks if entry else []
        return (
            recall(self.model, text, blocks) if blocks and fits(self.model, text, blocks) else None
        )

    @cached_property
    def _unrelated(self) -> list[list[int]]:
        seed = self.experiment.seed + 1
        before = bare_tree(self.model)
        return sample_passages(self.model, before, OPENERS, PASSAGES, PASSAGE_TOKENS, seed)


def _keywords(output: str, entry: Entry | None) -> float | None:
    """Different lore keywords of the entry in the output; None where the entry has none."""
    keywords = lore_keywords(entry) if entry else []
    return count_keywords([output], keywords).a_story if keywords else None


# reports ---------------------------------------------------------------------------------------


def summarize_prompts(rows: Sequence[Row]) -> list[Row]:
    """A row for each prompt and model, the best first: passed cases, mean score and tokens.

    `assertions` has the share of cases in which each assertion holds, `values` the mean of the
    number that it compares, if any.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["prompt"], row["model"]), []).append(row)
    summary = []
    for (prompt, model), group in groups.items():
        verdicts: dict[str, list[Row]] = {}
        for verdict in itertools.chain.from_iterable(row["assertions"] for row in group):
            verdicts.setdefault(verdict["assertion"], []).append(verdict)
        summary.append(
            {
                "prompt": prompt,
                "model": model,
                "cases": len(group),
                "passed": sum(row["passed"] for row in group),
                "score": fmean(row["score"] for row in group),
                "tokens": fmean(row["tokens"] for row in group),
                "assertions": {k: fmean(v["passed"] for v in of_k) for k, of_k in verdicts.items()},
                "values": {k: _mean_value(of_k) for k, of_k in verdicts.items()},
            }
        )
    return sorted(summary, key=lambda row: (-row["score"], row["tokens"]))


def _mean_value(verdicts: Sequence[Row]) -> float | None:
    values = [verdict["value"] for verdict in verdicts if verdict["value"] is not None]
    return fmean(values) if values else None


def experiment_report(experiment: Experiment, rows: Sequence[Row]) -> dict[str, Any]:
    """The summary and all cases, as plain data for `json.dumps`."""
    return {
        "experiment": experiment.name,
        "passed": all(row["passed"] for row in rows),
        "summary": summarize_prompts(rows),
        "cases": list(rows),
    }


def experiment_csv(rows: Sequence[Row]) -> str:
    """A line for each case; a column for each assertion, with 1 where it holds."""
    variables = list(rows[0]["variables"]) if rows else []
    kinds = list(dict.fromkeys(v["assertion"] for row in rows for v in row["assertions"]))
    columns = ["prompt", "model", *variables, "sample", "tokens", "score", "passed", *kinds]
    lines = []
    for row in rows:
        passed = {v["assertion"]: int(v["passed"]) for v in row["assertions"]}
        cells = [row["prompt"], row["model"], *(row["variables"][name] for name in variables)]
        cells += [row["sample"], row["tokens"], f"{row['score']:.4f}", int(row["passed"])]
        lines.append([*cells, *(passed[kind] for kind in kinds), row["output"]])
    return csv_text([*columns, "output"], lines)
