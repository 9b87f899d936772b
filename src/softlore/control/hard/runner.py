"""Running an experiment: every case rendered, written on and judged, what is known from a cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softlore.control.hard.assertions import Assertion, PatternMatch, Verdict
from softlore.control.hard.experiment import Experiment
from softlore.control.hard.templates import Template
from softlore.decode import SamplingParams, generate
from softlore.disk import write_atomically
from softlore.errors import ConfigError, ContextError, StorageError
from softlore.lore import Entry
from softlore.measure import count_hits, drift, lore_keywords, perplexity, recall
from softlore.measure.score import fits
from softlore.model import FrozenModel
from softlore.tune.teacher import unrelated_passages

PASSAGES, PASSAGE_TOKENS = 12, 48  # unrelated text that drift is measured on
LARGEST_CACHED = 1 << 22  # bytes of one cached answer


@dataclass(frozen=True)
class Case:
    """One prompt, rendered, with a model, a combination of variables and a sample's number."""

    prompt: str
    model: str
    variables: dict[str, Any]
    sample: int
    text: str
    opening: str

    @property
    def plain(self) -> dict[str, Any]:
        """The variables as templates and assertions see them: an entry by its fields."""
        return plain_variables(self.variables)

    @property
    def shown(self) -> dict[str, str]:
        """The variables as a table shows them; an entry by its name."""
        return {
            name: value.name if isinstance(value, Entry) else str(value)
            for name, value in self.variables.items()
        }


@dataclass(frozen=True)
class Outcome:
    """What a case came to.

    Attributes:
        tokens: of the prompt.
        verdicts: one an assertion, with its label.
        score: weighted share of the assertions that held; 1 where there are none.
    """

    case: Case
    output: str
    tokens: int
    verdicts: list[tuple[str, Verdict]]
    score: float
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        case = self.case
        return {
            "prompt": case.prompt,
            "model": case.model,
            "variables": case.shown,
            "sample": case.sample,
            "text": case.text,
            "tokens": self.tokens,
            "opening": case.opening,
            "output": self.output,
            "assertions": [{"assertion": name, **asdict(v)} for name, v in self.verdicts],
            "score": round(self.score, 4),
            "passed": self.passed,
        }


def plain_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables with each entry by its fields."""
    return {k: v.data() if isinstance(v, Entry) else v for k, v in variables.items()}


class OutputCache:
    """Answers by what they depend on, a file each; what can't be read is made anew."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.hits = 0

    def get(self, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The answer under `key` (plain data), made if it is not there."""
        if self.folder is None:
            return make()
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{name}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if path.stat().st_size <= LARGEST_CACHED:
                answer = json.loads(path.read_bytes())["answer"]
                self.hits += 1
                return answer
        answer = make()
        with contextlib.suppress(StorageError, OSError):  # a cache that can't be kept is no fault
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"answer": answer}).encode())
        return answer


def run_experiment(
    experiment: Experiment,
    load: Callable[[str], FrozenModel],
    cache: OutputCache | None = None,
    allow_python: bool = False,
) -> Iterator[Outcome]:
    """Runs all cases, model by model, and yields each as it is done.

    Args:
        load: a model by its name.
        allow_python: evaluate `python` assertions, which may do anything.

    Raises:
        ConfigError: before anything is run, where the experiment can't be.
    """
    assertions = experiment.assertions()
    if not allow_python and any(one.kind == "python" for one in assertions):
        raise ConfigError(
            "the experiment has a `python` assertion, which may do anything on this machine; "
            "expected your leave; read the file, and give --allow-python if you trust it"
        )
    try:
        SamplingParams.of(experiment.sampling)
    except ConfigError as error:
        raise ConfigError(f"`sampling` of the experiment can't be used: {error}") from error
    cases = list(_cases(experiment))
    cache = cache or OutputCache(None)
    for name in dict.fromkeys(case.model for case in cases):
        bench = _CaseRunner(experiment, load(name), cache)
        for case in cases:
            if case.model == name:
                yield bench.run(case, assertions, experiment.threshold)


def count_cases(experiment: Experiment) -> int:
    """How many cases an experiment has."""
    return sum(1 for _ in _cases(experiment))


def _cases(experiment: Experiment) -> Iterator[Case]:
    templates = experiment.templates()
    opening = Template(experiment.opening, "the opening")
    combinations = list(experiment.combinations())
    for model in experiment.models:
        for variables in combinations:
            plain = plain_variables(variables)
            for prompt, template in templates.items():
                text, told = template.render(plain), opening.render(plain)
                for sample in range(experiment.samples):
                    yield Case(prompt, model, variables, sample, text, told)


class _CaseRunner:
    """One model, and what is asked of it; every answer goes through the cache."""

    def __init__(self, experiment: Experiment, model: FrozenModel, cache: OutputCache) -> None:
        self.experiment, self.model, self.cache = experiment, model, cache
        sketch = json.dumps(model.fingerprint("embedding"), sort_keys=True, default=str)
        whole = f"{sketch}/{model.tokenizer_fingerprint}/{model.dtype}"
        self.identity = hashlib.sha256(whole.encode()).hexdigest()
        self._passages: list[list[int]] | None = None

    def run(self, case: Case, assertions: list[Assertion], threshold: float) -> Outcome:
        output = self._written(case)
        found = PatternMatch(output, case.plain, lambda name: self._measure(name, case, output))
        verdicts = [(one, one.check(found)) for one in assertions]
        whole = sum(one.weight for one, _ in verdicts)
        held = sum(one.weight for one, verdict in verdicts if verdict.passed)
        score = held / whole if whole else 1.0
        tokens = len(self.model.encode(case.text))
        named = [(one.label, verdict) for one, verdict in verdicts]
        return Outcome(case, output, tokens, named, score, score >= threshold)

    def _written(self, case: Case) -> str:
        experiment = self.experiment
        # A case's draws depend on what is tried, and not on what else is.
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
        return str(self.cache.get(key, lambda: self._write(case, seed)))

    def _write(self, case: Case, seed: int) -> str:
        read = case.text + case.opening
        experiment = self.experiment
        try:
            return generate(self.model, read, experiment.tokens, seed=seed, **experiment.sampling)
        except ContextError as error:
            raise ConfigError(f"prompt {case.prompt!r}, {case.shown}: {error}") from error

    def _measure(self, name: str, case: Case, output: str) -> float | None:
        model, entry = self.model, case.variables.get("entry")
        made: dict[str, Callable[[], float | None]] = {
            "perplexity": lambda: perplexity(
                model, [(model.encode(case.opening) or model.bos, model.encode(output))]
            ),
            "drift": lambda: drift(model, case.text, self._unrelated()) if case.text else 0.0,
            "recall": lambda: self._recall(case, entry),
            "keywords": lambda: self._keywords(output, entry),
        }
        key = {
            "answer": name,
            "model": self.identity,
            "prompt": case.text,
            "output": output,
            "opening": case.opening,
            "entry": entry.data() if isinstance(entry, Entry) else None,
            "seed": self.experiment.seed,
        }
        answer = self.cache.get(key, made[name])
        return float(answer) if isinstance(answer, int | float) else None

    def _recall(self, case: Case, entry: Any) -> float | None:
        if not isinstance(entry, Entry) or not entry.blocks:
            return None
        if not fits(self.model, case.text, entry.blocks):
            return None
        return recall(self.model, case.text, entry.blocks)

    def _keywords(self, output: str, entry: Any) -> float | None:
        if not isinstance(entry, Entry):
            return None
        return count_hits([output], lore_keywords(entry)).a_story

    def _unrelated(self) -> list[list[int]]:
        if self._passages is None:
            seed = self.experiment.seed + 1
            self._passages = unrelated_passages(self.model, None, PASSAGES, PASSAGE_TOKENS, seed)
        return self._passages
