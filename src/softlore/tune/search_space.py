"""A search space: which training settings a sweep tries, and between which values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from softlore.errors import ConfigError
from softlore.settings import TrainingConfig, table

EXAMPLES = "n_tokens=4..32, learning_rate=0.03..1:log or kind=prefix,embedding"
# What is swept where nothing is said: what changes most in what a prompt can and costs.
DEFAULT = ("n_tokens=4..32:log", "learning_rate=0.02..2:log", "drift_guard=0.25..4:log")
# Not what a score is to be made better by, or without an option to train with it afterwards.
_UNSWEPT = {"story", "seed", "chat"}
_UNSWEPT |= {"distil_passages", "passage_tokens", "max_active", "pairs_per_step"}


class Trial(Protocol):
    """What suggests values: a trial of Optuna."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = ...) -> int:
        """A whole number."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float:
        """A number."""
        ...

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of several."""
        ...


@dataclass(frozen=True)
class SearchSpace:
    """One setting and what it may be: `choices`, or all from `low` to `high`."""

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str | int | float | None, ...] = ()

    def suggest(self, trial: Trial) -> Any:
        """A value of a trial's."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        assert self.low is not None
        assert self.high is not None
        if _type(self.name) is float:
            return trial.suggest_float(self.name, self.low, self.high, log=self.log)
        return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"choices": list(self.choices)}


def parse_space(given: Iterable[str]) -> list[SearchSpace]:
    """Settings to sweep from `NAME=LOW..HIGH`, `NAME=LOW..HIGH:log` and `NAME=a,b,c`.

    Raises:
        ConfigError: no setting of that name, or values that do not fit it.
    """
    space = [_parse(text) for text in given]
    names = [one.name for one in space]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is swept twice; expected each setting once; drop one --param")
    return space


def _parse(text: str) -> SearchSpace:
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not values.strip():
        raise ConfigError(f"--param {text!r:.80} says no values; expected such as {EXAMPLES}")
    if name in _UNSWEPT:
        raise ConfigError(f"{name} is no setting to sweep; expected such as {EXAMPLES}; drop it")
    TrainingConfig.check_name(name)
    found = _range(text, name, values) if ".." in values else _choices(text, name, values)
    for value in found.choices or (found.low, found.high):
        TrainingConfig.of({name: value})  # complains of a value out of bounds
    return found


def _range(text: str, name: str, values: str) -> SearchSpace:
    ends, _, how = values.partition(":")
    low, _, high = ends.partition("..")
    if how not in ("", "log") or _type(name) not in (int, float):
        raise ConfigError(
            f"--param {text!r:.80} is no range of {name}; expected such as {EXAMPLES}; mend it"
        )
    first, last = _number(text, name, low), _number(text, name, high)
    if first >= last or (how and first <= 0):
        what = "above 0 and rising" if how else "rising"
        raise ConfigError(f"--param {text!r:.80} runs the wrong way; expected ends that are {what}")
    return SearchSpace(name, first, last, bool(how))


def _choices(text: str, name: str, values: str) -> SearchSpace:
    parts = [part.strip() for part in values.split(",")]
    choices = tuple(
        None
        if part == "none" and table(TrainingConfig)[name].optional
        else part
        if _type(name) not in (int, float)
        else _number(text, name, part)
        for part in parts
    )
    return SearchSpace(name, choices=choices)


def _type(name: str) -> type:
    """int, float, or another one for what is no number."""
    return table(TrainingConfig)[name].type


def _number(text: str, name: str, value: str) -> int | float:
    try:
        return float(value) if _type(name) is float else int(value)
    except ValueError:
        what = "a number" if _type(name) is float else "a whole number"
        raise ConfigError(
            f"--param {text!r:.80} has {value!r:.40}; expected {what}, such as in {EXAMPLES}"
        ) from None


def options_for(settings: Mapping[str, Any]) -> list[str]:
    """Settings as `softlore train` takes them, such as `--n-tokens 8`; None ones are left out."""
    parts = []
    for name, value in settings.items():
        if value is not None:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            parts += ["--" + name.replace("_", "-"), shown]
    return parts
