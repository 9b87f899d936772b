"""What a sweep tries: its search space, and a trial's training and scores."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from softlore.errors import ConfigError
from softlore.lore import Entry, Lorebook
from softlore.measure import evaluate, recall
from softlore.measure.gain import gain_blocks
from softlore.measure.results import Measures
from softlore.measure.score import fits
from softlore.model import FrozenModel
from softlore.prompts import SoftPrompt
from softlore.settings import TrainingConfig, table
from softlore.tune.losses import LOSSES
from softlore.tune.trainer import WorldInfoTrainer

EXAMPLES = "n_tokens=4..32, learning_rate=0.03..1:log or kind=prefix,embedding"
# Swept by default: what changes most in a prompt's strength and cost.
DEFAULT = (
    "n_tokens=4..32:log",
    "learning_rate=0.02..2:log",
    *(f"{loss.weight}={loss.swept}" for loss in LOSSES.values() if loss.swept),
)
# Not to be fitted to a score, or without an option to train with afterwards.
_UNSWEPT = {"story", "seed", "chat"}
_UNSWEPT |= {"distil_passages", "passage_tokens", "max_active", "pairs_per_step"}


@dataclass(frozen=True)
class SearchSpace:
    """One setting and its values: `choices`, or all from `low` to `high`."""

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str | int | float | None, ...] = ()

    def suggest(self, trial: Any) -> Any:
        """A value that a trial of Optuna suggests."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        assert self.low is not None
        assert self.high is not None
        if _type_of(self.name) is float:
            return trial.suggest_float(self.name, self.low, self.high, log=self.log)
        return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"choices": list(self.choices)}


def parse_space(params: Iterable[str]) -> list[SearchSpace]:
    """Parses `NAME=LOW..HIGH`, `NAME=LOW..HIGH:log` and `NAME=a,b,c`.

    Raises:
        ConfigError: no setting of that name, or values that do not fit it.
    """
    space = [_parse(text) for text in params]
    names = [setting.name for setting in space]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ConfigError(
            f"{repeated} is swept twice; expected each setting once; drop one --param"
        )
    return space


def _parse(text: str) -> SearchSpace:
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not values.strip():
        raise ConfigError(f"--param {text!r:.80} says no values; expected such as {EXAMPLES}")
    if name in _UNSWEPT:
        raise ConfigError(
            f"{name} cannot be swept; expected a setting of how a prompt is trained, such as "
            f"{EXAMPLES}; leave this --param out"
        )
    TrainingConfig.check_name(name)
    setting = (_parse_range if ".." in values else _parse_choices)(text, name, values)
    for value in setting.choices or (setting.low, setting.high):
        TrainingConfig.of({name: value})  # raises for a value out of bounds
    return setting


def _parse_range(text: str, name: str, values: str) -> SearchSpace:
    ends, _, scale = values.partition(":")
    low, _, high = ends.partition("..")
    if scale not in ("", "log") or _type_of(name) not in (int, float):
        raise ConfigError(
            f"--param {text!r:.80} is not a range of {name}; expected such as {EXAMPLES}; fix it"
        )
    first, last = _parse_number(text, name, low), _parse_number(text, name, high)
    if first >= last or (scale and first <= 0):
        what = "above 0 and rising" if scale else "rising"
        raise ConfigError(f"--param {text!r:.80} runs the wrong way; expected ends that are {what}")
    return SearchSpace(name, first, last, bool(scale))


def _parse_choices(text: str, name: str, values: str) -> SearchSpace:
    optional = table(TrainingConfig)[name].optional

    def parse(part: str) -> str | int | float | None:
        if part == "none" and optional:
            return None
        return _parse_number(text, name, part) if _type_of(name) in (int, float) else part

    return SearchSpace(name, choices=tuple(parse(part.strip()) for part in values.split(",")))


def _parse_number(text: str, name: str, value: str) -> int | float:
    number = _type_of(name)
    try:
        return float(value) if number is float else int(value)
    except ValueError:
        what = "a number" if number is float else "a whole number"
        raise ConfigError(
            f"--param {text!r:.80} has {value!r:.40}; expected {what}, such as in {EXAMPLES}"
        ) from None


def _type_of(name: str) -> type:
    """int, float, or another type for a setting that is not a number."""
    return table(TrainingConfig)[name].type


def options_for(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options of `softlore train`, such as `--n-tokens 8`, without those of None."""
    options = []
    for name, value in settings.items():
        if value is not None:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            options += ["--" + name.replace("_", "-"), shown]
    return options


# trials ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """What settings lead to, as a mean over the entries.

    Attributes:
        recall: NLL of held-out calls' responses, nats a token, alone and in company; of the
            entry's own calls, or its text's sentences, if it has none.
        drift: KL to the bare model on unrelated text, nats a token, alone and in company.
        seconds: duration of the training.
    """

    recall: float
    drift: float
    seconds: float

    def score(self, drift_weight: float) -> float:
        """What a sweep minimizes: recall plus drift by its weight."""
        return self.recall + drift_weight * self.drift


def try_settings(
    model: FrozenModel,
    book: Lorebook,
    settings: Mapping[str, Any],
    distances: Sequence[int],
    seed: int,
) -> dict[str, float]:
    """Trains a book with some settings, in memory, and returns the fields of `Scores`."""
    start = time.monotonic()
    prompts = WorldInfoTrainer(model, entries=book.entries, **settings).train()
    seconds = time.monotonic() - start
    evaluation = evaluate(model, book, prompts, seed=seed, stories=0, distances=distances)
    recalls: list[float | None] = []
    drifts: list[float | None] = []
    for result in evaluation.entries:
        measured = [result.conditionings.get(name) for name in ("soft", "company")]
        drifts += [measures.drift for measures in measured if measures is not None]
        of_entry = [_recall(measures) for measures in measured if measures is not None]
        if of_entry.count(None) == len(of_entry):
            of_entry = [_recall_of_text(model, book[result.name], prompts[result.name])]
        recalls += of_entry
    return asdict(Scores(_mean(recalls), _mean(drifts), seconds))


def _recall(measures: Measures) -> float | None:
    """Of held-out calls; of the entry's own, over all distances, if there are none."""
    values = [value for value in measures.recall.values() if value is not None]
    mean = sum(values) / len(values) if values else None
    return mean if measures.held_out is None else measures.held_out


def _recall_of_text(model: FrozenModel, entry: Entry, prompt: SoftPrompt) -> float | None:
    """Of the sentences of an entry that has a text only."""
    blocks = gain_blocks(entry)
    return recall(model, prompt, blocks) if blocks and fits(model, prompt, blocks) else None


def _mean(values: Sequence[float | None]) -> float:
    """The mean of those that were measured; NaN, which fails the trial, if none was."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
