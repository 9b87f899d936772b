"""Assertions: checks of a hard prompt and of the text that was generated after it.

An assertion that cannot be checked does not hold, and neither does its negation.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from softlore.control.hard.templates import Template
from softlore.errors import ConfigError
from softlore.lore.patterns import compile_python_pattern
from softlore.lore.validation import describe, nearest

PATTERN_SECONDS = 2.0  # limit of one search for a pattern
SIMILAR = 0.6


@dataclass(frozen=True)
class AssertionInput:
    """What an assertion checks.

    Attributes:
        output: the generated text.
        variables: of the case.
        measure: computes a measure by name: perplexity of the output, recall and drift of the
            prompt, lore keywords in the output; None where it can't be measured.
    """

    output: str
    variables: dict[str, Any]
    measure: Callable[[str], float | None]


@dataclass(frozen=True)
class Verdict:
    """Whether an assertion holds, why, and the number that it compares, if any."""

    passed: bool
    reason: str
    value: float | None = None


class _NotCheckedError(Exception):
    """An assertion cannot be checked; the message says why."""


Check = Callable[[AssertionInput, str, float | None], Verdict]  # case, expected value, threshold


def _contains(case: AssertionInput, expected: str, _: float | None) -> Verdict:
    return _found(expected, case.output)


def _icontains(case: AssertionInput, expected: str, _: float | None) -> Verdict:
    return _found(expected.casefold(), case.output.casefold())


def _found(expected: str, output: str) -> Verdict:
    if not expected:
        raise _NotCheckedError("the text to look for is empty, and every output contains that")
    inside = expected in output
    return Verdict(inside, "found" if inside else "not found")


def _equals(case: AssertionInput, expected: str, _: float | None) -> Verdict:
    same = case.output.strip() == expected.strip()
    return Verdict(same, "equal" if same else "another text")


def _regex(case: AssertionInput, expected: str, _: float | None) -> Verdict:
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


def _similarity(case: AssertionInput, expected: str, threshold: float | None) -> Verdict:
    least = SIMILAR if threshold is None else threshold
    ratio = difflib.SequenceMatcher(None, expected.split(), case.output.split()).ratio()
    return Verdict(ratio >= least, f"similarity {ratio:.2f}, expected at least {least:g}", ratio)


def _at_most(name: str) -> Check:
    def check(case: AssertionInput, expected: str, _: float | None) -> Verdict:
        value = _measured(case, name)
        reason = f"{name} {value:.3g}, expected at most {expected}"
        return Verdict(value <= float(expected), reason, value)

    return check


def _keywords(case: AssertionInput, expected: str, _: float | None) -> Verdict:
    value = _measured(case, "keywords")
    reason = f"{value:g} lore keywords, expected at least {expected}"
    return Verdict(value >= float(expected), reason, value)


def _measured(case: AssertionInput, name: str) -> float:
    value = case.measure(name)
    if value is None or math.isnan(value):
        raise _NotCheckedError(f"{name} can't be measured here")
    return value


def _python(case: AssertionInput, expected: str, _: float | None) -> Verdict:
    names = {**case.variables, "output": case.output}
    try:
        result = bool(eval(compile(expected, "<assertion>", "eval"), {}, names))  # noqa: S307
    except (Exception, SystemExit) as error:
        raise _NotCheckedError(f"{type(error).__name__}: {error}") from error
    return Verdict(result, f"{expected} is {result}")


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
}
_OPTIONS = ("weight", "threshold")


@dataclass(frozen=True)
class Assertion:
    """One line of an experiment's `assert`, such as `{not-contains: pink, weight: 2}`.

    Attributes:
        template: of the value; None for patterns and Python, whose braces are their own.
        source: the value as it was given.
    """

    kind: str
    template: Template | None
    source: str
    negated: bool = False
    weight: float = 1.0
    threshold: float | None = None

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
        options = {name: _parse_option(data[name], name, what) for name in _OPTIONS if name in data}
        kind, value = key.removeprefix("not-"), data[key]
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
        expected = self.template.render(case.variables) if self.template else self.source
        try:
            verdict = KINDS[self.kind][0](case, expected, self.threshold)
        except _NotCheckedError as error:
            return Verdict(False, f"not checked: {error}")
        return replace(verdict, passed=verdict.passed != self.negated)


def _parse_kind(data: dict[Any, Any], what: str) -> str:
    """The key of an assertion that names its kind, with or without "not-"."""
    kinds = [key for key in data if key not in _OPTIONS]
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


def _check_threshold(threshold: float | None, kind: str, what: str) -> None:
    if threshold is not None and (kind != "similarity" or threshold > 1):
        raise ConfigError(
            f"{what} ({kind}) has the threshold {threshold:g}; expected one from 0 to 1, of a "
            "similarity; remove or change it"
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
