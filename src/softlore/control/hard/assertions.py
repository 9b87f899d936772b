"""Assertions: checks of a hard prompt and of the text that was generated after it.

An assertion that cannot be checked does not hold, and neither does its negation.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from softlore.control.hard.templates import Template
from softlore.errors import ConfigError, ContextError, EngineError
from softlore.lore.patterns import compile_python_pattern
from softlore.lore.validation import describe, nearest

PATTERN_SECONDS = 2.0  # limit of one search for a pattern
SIMILAR = 0.6
LIKELY = 0.5  # that a judge finds the right answer
MAX_CHOICES = 9  # of a question for a judge


def _no_judge(question: str, choices: Sequence[str]) -> Sequence[float]:
    raise EngineError("there is no judge; expected a model that answers; give one")


@dataclass(frozen=True)
class AssertionInput:
    """What an assertion checks.

    Attributes:
        output: the generated text.
        variables: of the case.
        measure: computes a measure by name: perplexity of the output, recall and drift of the
            prompt, lore keywords in the output; None where it can't be measured.
        judge: the probabilities of a question's choices, by a model.
    """

    output: str
    variables: dict[str, Any]
    measure: Callable[[str], float | None]
    judge: Callable[[str, Sequence[str]], Sequence[float]] = _no_judge


@dataclass(frozen=True)
class Verdict:
    """Whether an assertion holds, why, and the number that it compares, if any."""

    passed: bool
    reason: str
    value: float | None = None


class _NotCheckedError(Exception):
    """An assertion cannot be checked; the message says why."""


Check = Callable[[AssertionInput, str, "Assertion"], Verdict]  # case, and the value, rendered
JUDGED = "judge"  # by a model: has choices


def _contains(case: AssertionInput, expected: str, _: Assertion) -> Verdict:
    return _found(expected, case.output)


def _icontains(case: AssertionInput, expected: str, _: Assertion) -> Verdict:
    return _found(expected.casefold(), case.output.casefold())


def _found(expected: str, output: str) -> Verdict:
    if not expected:
        raise _NotCheckedError("the text to look for is empty, and every output contains that")
    inside = expected in output
    return Verdict(inside, "found" if inside else "not found")


def _equals(case: AssertionInput, expected: str, _: Assertion) -> Verdict:
    same = case.output.strip() == expected.strip()
    return Verdict(same, "equal" if same else "another text")


def _regex(case: AssertionInput, expected: str, _: Assertion) -> Verdict:
    pattern, problem = compile_python_pattern(expected)
    if problem:
        raise _NotCheckedError(f"the pattern is invalid: {problem}")
    try:
        match = pattern.search(case.output, timeout=PATTERN_SECONDS)
    except (TimeoutError, MemoryError):
        raise _NotCheckedError(
            f"the search was given up after {PATTERN_SECONDS:g} s; make the pattern simpler"
        ) from None
    return Verdict(match is not None, f"matches {match[0]!r:.60}" if match else "no match")


def _similarity(case: AssertionInput, expected: str, of: Assertion) -> Verdict:
    least = SIMILAR if of.threshold is None else of.threshold
    ratio = difflib.SequenceMatcher(None, expected.split(), case.output.split()).ratio()
    return Verdict(ratio >= least, f"similarity {ratio:.2f}, expected at least {least:g}", ratio)


def _at_most(name: str) -> Check:
    def check(case: AssertionInput, expected: str, _: Assertion) -> Verdict:
        value = _measured(case, name)
        reason = f"{name} {value:.3g}, expected at most {expected}"
        return Verdict(value <= float(expected), reason, value)

    return check


def _keywords(case: AssertionInput, expected: str, _: Assertion) -> Verdict:
    value = _measured(case, "keywords")
    reason = f"{value:g} lore keywords, expected at least {expected}"
    return Verdict(value >= float(expected), reason, value)


def _measured(case: AssertionInput, name: str) -> float:
    value = case.measure(name)
    if value is None or math.isnan(value):
        raise _NotCheckedError(f"{name} can't be measured here")
    return value


def _python(case: AssertionInput, expected: str, _: Assertion) -> Verdict:
    names = {**case.variables, "output": case.output}
    try:
        result = bool(eval(compile(expected, "<assertion>", "eval"), {}, names))  # noqa: S307
    except (Exception, SystemExit) as error:
        raise _NotCheckedError(f"{type(error).__name__}: {error}") from error
    return Verdict(result, f"{expected} is {result}")


def _judged(case: AssertionInput, question: str, of: Assertion) -> Verdict:
    """Whether the first of the choices is likely enough."""
    least = LIKELY if of.threshold is None else of.threshold
    if not question.strip():
        raise _NotCheckedError("the question is empty")
    try:
        chances = case.judge(question, of.choices)
    except (ContextError, EngineError) as error:
        raise _NotCheckedError(str(error)) from error
    if math.isnan(chances[0]):
        raise _NotCheckedError("the judge gives no probabilities")
    told = ", ".join(f"{c} {p:.2f}" for c, p in zip(of.choices, chances, strict=True))
    asked = " ".join(question.split())
    reason = f"{asked[:60]!r}: {told}; expected {of.choices[0]} at least {least:g}"
    return Verdict(chances[0] >= least, reason, chances[0])


# By name: the check, and whether its value is a number.
KINDS: dict[str, tuple[Check, bool]] = {
    "contains": (_contains, False),
    "icontains": (_icontains, False),
    "equals": (_equals, False),
    "regex": (_regex, False),
    "similarity": (_similarity, False),
    "perplexity": (_at_most("perplexity"), True),
    "recall": (_at_most("recall"), True),
    "drift": (_at_most("drift"), True),
    "keywords": (_keywords, True),
    "python": (_python, False),
    JUDGED: (_judged, False),
}
_OPTIONS = ("weight", "threshold")
_CHOICES = "choices"


@dataclass(frozen=True)
class Assertion:
    """One line of an experiment's `assert`, such as `{not-contains: pink, weight: 2}`.

    Attributes:
        template: of the value; None for patterns and Python, whose braces are their own.
        source: the value as it was given.
        choices: of a question for a judge; the first is expected.
    """

    kind: str
    template: Template | None
    source: str
    negated: bool = False
    weight: float = 1.0
    threshold: float | None = None
    choices: tuple[str, ...] = ("yes", "no")

    @property
    def label(self) -> str:
        return f"not-{self.kind}" if self.negated else self.kind

    @classmethod
    def parse(cls, data: Any, number: int) -> Assertion:
        """Reads an assertion from plain data.

        Args:
            number: its place in the list, for error messages.

        Raises:
            ConfigError: the data is no valid assertion.
        """
        what = f"assertion {number}"
        if not isinstance(data, dict):
            raise ConfigError(f"{what} is {describe(data)}; expected a mapping, as {{contains: x}}")
        key = _parse_kind(data, what)
        options: dict[str, Any] = {
            name: _parse_option(data[name], name, what) for name in _OPTIONS if name in data
        }
        kind, value = key.removeprefix("not-"), data[key]
        if _CHOICES in data:
            options[_CHOICES] = _parse_choices(data[_CHOICES], kind, what)
        _check_threshold(options.get("threshold"), kind, what)
        if KINDS[kind][1] and not _is_number(value):
            raise ConfigError(f"{what} ({key}) is {describe(value)}; expected a number; change it")
        if not isinstance(value, str | int | float):
            raise ConfigError(f"{what} ({key}) is {describe(value)}; expected text; change it")
        if kind == "regex":
            _check_pattern(str(value), what)
        template = Template(str(value), what) if kind not in ("regex", "python") else None
        return cls(kind, template, str(value), key != kind, **options)

    def check(self, case: AssertionInput) -> Verdict:
        """Checks the assertion. One that cannot be checked does not hold, negated or not."""
        variables = {**case.variables, "output": case.output}
        expected = self.template.render(variables) if self.template else self.source
        try:
            verdict = KINDS[self.kind][0](case, expected, self)
        except _NotCheckedError as error:
            return Verdict(False, f"not checked: {error}")
        return replace(verdict, passed=verdict.passed != self.negated)


def _parse_kind(data: dict[Any, Any], what: str) -> str:
    """The key of an assertion that names its kind, with or without "not-"."""
    kinds = [key for key in data if key not in (*_OPTIONS, _CHOICES)]
    known = [*KINDS, *(f"not-{kind}" for kind in KINDS)]
    if len(kinds) != 1 or kinds[0] not in known:
        name = next((key for key in kinds if key not in known), None)
        hint = nearest(str(name), known) if name is not None else ""
        raise ConfigError(
            f"{what} has {', '.join(map(repr, kinds)) or 'no kind'}; expected one of "
            f"{', '.join(KINDS)}, or one of them after 'not-'{hint}"
        )
    return str(kinds[0])


def _parse_option(value: Any, name: str, what: str) -> float:
    if not _is_number(value) or not 0 <= value < 1e9:
        raise ConfigError(
            f"{what} has the {name} {value!r:.60}; expected a number from 0 up; change it"
        )
    return float(value)


def _parse_choices(value: Any, kind: str, what: str) -> tuple[str, ...]:
    """The choices of a question; YAML reads `yes` and `no` as true and false."""
    words = {True: "yes", False: "no"}
    given = value if isinstance(value, list) else []
    choices = [words[one] if isinstance(one, bool) else str(one).strip() for one in given]
    plain = all(isinstance(one, str | int | float) for one in given)
    if kind != JUDGED or not 2 <= len(choices) <= MAX_CHOICES or not plain or not all(choices):
        raise ConfigError(
            f"{what} ({kind}) has the choices {value!r:.80}; expected a list of 2 to {MAX_CHOICES} "
            "answers to a `judge`'s question, the right one first; remove or change it"
        )
    for first, second in itertools.permutations(choices, 2):
        if second.casefold().startswith(first.casefold()):
            raise ConfigError(
                f"{what} ({kind}) has the choices {first!r:.40} and {second!r:.40}; expected none "
                "that begins another, as a model's answer would be taken for both; change one"
            )
    if strange := [one for one in choices if "{{" in one or not one.isprintable()]:
        raise ConfigError(
            f"{what} ({kind}) has the choice {strange[0]!r:.60}; expected plain words in a line, "
            "as choices are no templates; change it"
        )
    return tuple(choices)


def _check_threshold(threshold: float | None, kind: str, what: str) -> None:
    if threshold is not None and (kind not in ("similarity", JUDGED) or threshold > 1):
        raise ConfigError(
            f"{what} ({kind}) has the threshold {threshold:g}; expected one from 0 to 1, of a "
            "similarity or a judge; remove or change it"
        )


def _check_pattern(pattern: str, what: str) -> None:
    _, problem = compile_python_pattern(pattern)
    if problem:
        raise ConfigError(
            f"{what} has the pattern {pattern!r:.60}, which is invalid ({problem}); expected a "
            "regular expression of Python's `re`; fix it"
        )


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and not math.isnan(value)
