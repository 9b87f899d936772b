"""Assertions: what must be true of a prompt, and of what was written after it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from softlore.control.hard.templates import Template
from softlore.errors import ConfigError
from softlore.lore.validation import describe, nearest

LONGEST_SEARCHED = 100_000  # characters of output that a pattern is tried on
SIMILAR = 0.6


@dataclass(frozen=True)
class PatternMatch:
    """What an assertion looks at.

    Attributes:
        output: what was written.
        variables: the case's.
        measure: by name, computed when it is asked for: perplexity of the output; recall and
            drift of the prompt; lore keywords in the output.
    """

    output: str
    variables: dict[str, Any]
    measure: Callable[[str], float | None]


@dataclass(frozen=True)
class Verdict:
    """Whether an assertion held, what was found, and the number it went by, if any."""

    passed: bool
    reason: str
    value: float | None = None


def _contains(found: PatternMatch, wanted: str, _: float | None) -> Verdict:
    return Verdict(wanted in found.output, "found" if wanted in found.output else "not found")


def _icontains(found: PatternMatch, wanted: str, _: float | None) -> Verdict:
    inside = wanted.casefold() in found.output.casefold()
    return Verdict(inside, "found" if inside else "not found")


def _equals(found: PatternMatch, wanted: str, _: float | None) -> Verdict:
    same = found.output.strip() == wanted.strip()
    return Verdict(same, "equal" if same else "another text")


def _regex(found: PatternMatch, wanted: str, _: float | None) -> Verdict:
    match = re.search(wanted, found.output[:LONGEST_SEARCHED])
    return Verdict(match is not None, f"matches {match[0]!r:.60}" if match else "no match")


def _similarity(found: PatternMatch, wanted: str, threshold: float | None) -> Verdict:
    least = SIMILAR if threshold is None else threshold
    ratio = difflib.SequenceMatcher(None, wanted.split(), found.output.split()).ratio()
    return Verdict(ratio >= least, f"similarity {ratio:.2f}, at least {least:g} wanted", ratio)


def _at_most(name: str) -> Callable[[PatternMatch, str, float | None], Verdict]:
    def check(found: PatternMatch, wanted: str, _: float | None) -> Verdict:
        value = found.measure(name)
        if value is None:
            return Verdict(False, f"{name} can't be measured here")
        return Verdict(
            value <= float(wanted), f"{name} {value:.3g}, at most {wanted} wanted", value
        )

    return check


def _keywords(found: PatternMatch, wanted: str, _: float | None) -> Verdict:
    value = found.measure("keywords")
    if value is None:
        return Verdict(False, "no entry, so no keywords")
    told = f"{value:g} lore keywords, at least {wanted} wanted"
    return Verdict(value >= float(wanted), told, value)


def _python(found: PatternMatch, wanted: str, _: float | None) -> Verdict:
    names = {**found.variables, "output": found.output}
    try:
        held = bool(eval(compile(wanted, "<assertion>", "eval"), {}, names))  # noqa: S307
    except Exception as error:  # noqa: BLE001 - whatever the user's own line does
        return Verdict(False, f"{type(error).__name__}: {error}")
    return Verdict(held, f"{wanted} is {held}")


# Name -> the check, and whether its value is a number.
KINDS: dict[str, tuple[Callable[[PatternMatch, str, float | None], Verdict], bool]] = {
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
    """One line of an experiment's `assert`, such as `{not-contains: pink, weight: 2}`."""

    kind: str
    value: Template
    negated: bool = False
    weight: float = 1.0
    threshold: float | None = None

    @property
    def label(self) -> str:
        return f"not-{self.kind}" if self.negated else self.kind

    @classmethod
    def of(cls, data: Any, place: int) -> Assertion:
        """Reads an assertion.

        Raises:
            ConfigError: it is none.
        """
        what = f"assertion {place}"
        if not isinstance(data, dict):
            raise ConfigError(f"{what} is {describe(data)}; expected a mapping, as {{contains: x}}")
        kinds = [key for key in data if key not in _OPTIONS]
        known = [*KINDS, *(f"not-{kind}" for kind in KINDS)]
        if len(kinds) != 1 or kinds[0] not in known:
            name = next((key for key in kinds if key not in known), None)
            hint = nearest(str(name), known) if name is not None else ""
            raise ConfigError(
                f"{what} has {', '.join(map(repr, kinds)) or 'no kind'}; expected one of "
                f"{', '.join(KINDS)}, or one of them after 'not-'{hint}"
            )
        key, options = kinds[0], {name: data[name] for name in _OPTIONS if name in data}
        for name, value in options.items():
            if (
                not isinstance(value, int | float)
                or isinstance(value, bool)
                or not 0 <= value < 1e9
            ):
                raise ConfigError(
                    f"{what} has the {name} {value!r:.60}; expected a number from 0 up; change it"
                )
        kind, value = key.removeprefix("not-"), data[key]
        if KINDS[kind][1] and not _is_number(value):
            raise ConfigError(f"{what} ({key}) is {describe(value)}; expected a number; change it")
        if not isinstance(value, str | int | float):
            raise ConfigError(f"{what} ({key}) is {describe(value)}; expected text; change it")
        if kind == "regex":
            try:
                re.compile(str(value))
            except re.error as error:
                raise ConfigError(
                    f"{what} has the pattern {value!r:.60}, which is none ({error}); mend it"
                ) from error
        template = Template(str(value), what) if kind not in ("regex", "python") else None
        return cls(kind, template or _Literal(str(value)), key != kind, **options)

    def check(self, found: PatternMatch) -> Verdict:
        """Whether it holds."""
        wanted = self.value.render(found.variables)
        verdict = KINDS[self.kind][0](found, wanted, self.threshold)
        return replace(verdict, passed=verdict.passed != self.negated)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Literal(Template):
    """A pattern or a line of Python, whose braces are its own."""

    def __init__(self, source: str) -> None:
        self.source = source

    def render(self, variables: Any) -> str:
        return self.source
