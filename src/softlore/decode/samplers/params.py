"""The settings of all samplers in one place, checked, and the order in which they act."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import LogitsProcessorList

from softlore.errors import ConfigError

if TYPE_CHECKING:
    from softlore.decode.samplers.steps import Step
    from softlore.model import LanguageModel

COLDEST = 1e-4  # below this temperature logits would overflow, and the draw is sure anyway

# The steps from logits to what is drawn from, in their default order.
STEPS = (
    "logit_bias", "banned", "penalized", "repetition_penalty", "presence_frequency",
    "no_repeat_ngram", "dry", "banned_strings", "top_n_sigma", "temperature", "smoothing",
    "top_k", "top_p", "min_p", "typical", "tfs", "top_a", "xtc", "mirostat",
)  # fmt: skip

# KoboldAI's sampler numbers; what koboldcpp does within one of them stays together.
_KOBOLD = (
    ("top_k",),
    ("top_a",),
    ("top_p", "min_p"),
    ("tfs",),
    ("typical",),
    ("temperature", "smoothing", "top_n_sigma"),
    ("repetition_penalty",),
)

# Least and most of every number; a whole one where these are whole.
_LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 10**9),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "typical": (1e-9, 1.0),
    "tfs": (0.0, 1.0),
    "top_a": (0.0, 1.0),
    "top_n_sigma": (0.0, 100.0),
    "dynatemp_range": (0.0, 100.0),
    "dynatemp_exponent": (0.0, 100.0),
    "smoothing": (0.0, 100.0),
    "repetition_penalty": (1e-3, 100.0),
    "repetition_range": (0, 10**9),
    "repetition_slope": (0.0, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "no_repeat_ngram": (0, 10**9),
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (1.0, 100.0),
    "dry_allowed_length": (1, 10**9),
    "dry_range": (0, 10**9),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "mirostat": (0, 2),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 100.0),
    "penalized": (1e-3, 100.0),
}


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Each class that does it names its formula and its source.

    Attributes:
        temperature: 0 (or near it) is greedy: then only biases, penalties and bans count. 1 is
            the model's own probabilities.
        top_k: keep this many likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability.
        min_p: drop tokens below this share of the likeliest one's probability.
        typical: keep the tokens nearest to the expected surprise that together reach this
            probability.
        tfs: tail-free sampling's z; 1 is off.
        top_a: drop tokens below this times the square of the likeliest one's probability.
        top_n_sigma: drop tokens this many standard deviations below the greatest logit; 0 is off.
        dynatemp_range: let the temperature move this far up and down with the entropy.
        dynatemp_exponent: 1 moves it evenly, above 1 keeps it low for longer.
        smoothing: quadratic smoothing's factor; 0 is off.
        repetition_penalty: above 1 makes tokens that already stand in the text less likely.
        repetition_range: over this many of the last tokens only; 0 is the whole text.
        repetition_slope: within the range, how steeply the penalty falls to 1 with distance
            (KoboldAI's); 0 is not at all. Nothing without a range.
        presence_penalty: taken from the logit of a token that stands in the new text.
        frequency_penalty: taken once for every time that it does.
        no_repeat_ngram: let no run of this many tokens come twice; 0 is off.
        dry_multiplier: DRY's penalty on going on with a repetition; 0 is off.
        dry_base: how much it grows with every token that is repeated.
        dry_allowed_length: a repetition of so many tokens bears the first penalty.
        dry_breakers: strings over which no repetition reaches.
        dry_range: look at this many of the last tokens only; 0 is the whole text.
        xtc_probability: how often the top choices are excluded; 0 is off.
        xtc_threshold: a token of at least this probability is a top choice.
        mirostat: 1 or 2, its version; 0 is off. In place of all that cuts tokens off.
        mirostat_tau: the surprise it steers towards, in bits a token.
        mirostat_eta: how fast it does.
        penalized: CTRL's own penalty, θ: above 1 divides the logits of such tokens (its authors'
            choice is 1.2, and near-greedy).
        banned: ids that are never written.
        banned_strings: text that is never written, whatever its case.
        logit_bias: what to add to the logits of ids.
        order: names of `STEPS` in the order in which they are to act. They take the places that
            they have by default among them; the others keep theirs.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 1.0
    min_p: float = 0.0
    typical: float = 1.0
    tfs: float = 1.0
    top_a: float = 0.0
    top_n_sigma: float = 0.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    smoothing: float = 0.0
    repetition_penalty: float = 1.0
    repetition_range: int = 0
    repetition_slope: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_breakers: Sequence[str] = ("\n", ":", '"', "*")
    dry_range: int = 0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    penalized: float = 1.0
    banned: Sequence[int] = ()
    banned_strings: Sequence[str] = ()
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    order: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            _check_number(name, getattr(self, name), low, high)
        for name in ("dry_breakers", "banned_strings"):
            object.__setattr__(self, name, _strings(name, getattr(self, name)))
        object.__setattr__(self, "banned", _ids("banned", self.banned))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "order", _known(self.order))

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The settings given by name, and the defaults for the rest.

        Raises:
            ConfigError: a name that is no sampler's, or a value that does not fit.
        """
        for name in given:
            check_sampler(name)
        return cls(**given)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, always."""
        return self.temperature < COLDEST

    @property
    def places(self) -> tuple[str, ...]:
        """All of `STEPS` in the order in which they act."""
        named = iter(self.order)
        return tuple(next(named) if step in self.order else step for step in STEPS)

    def steps(
        self, model: LanguageModel | None = None, generator: torch.Generator | None = None
    ) -> list[Step]:
        """What the logits go through before the draw, in order, and which ids each step reads.

        Args:
            model: whose ids they are; strings need it.
            generator: of what is drawn on the way (XTC).

        Raises:
            ConfigError: strings without a model, or ids that it does not have.
        """
        from softlore.decode.samplers.steps import build

        return build(self, model, generator)

    def processors(
        self, model: LanguageModel | None = None, generator: torch.Generator | None = None
    ) -> LogitsProcessorList:
        """The same as transformers' processors, which are all handed the whole text there."""
        return LogitsProcessorList([step.processor for step in self.steps(model, generator)])


def kobold_order(numbers: Iterable[int]) -> tuple[str, ...]:
    """KoboldAI's `sampler_order` as names of steps: `[6, 0, 1, 3, 4, 2, 5]` is koboldcpp's own.

    0 top-k, 1 top-a, 2 top-p (and min-p), 3 tail-free, 4 typical, 5 temperature (with smoothing
    and top-n-sigma), 6 repetition penalty.

    Raises:
        ConfigError: a number that is none of these, or comes twice.
    """
    given = list(numbers)
    whole = all(isinstance(n, int) and 0 <= n < len(_KOBOLD) for n in given)
    if not whole or len(set(given)) < len(given):
        raise ConfigError(
            f"sampler order {given!r} can't be used; expected numbers from 0 to "
            f"{len(_KOBOLD) - 1}, each at most once; mend it"
        )
    return tuple(name for n in given for name in _KOBOLD[n])


def check_sampler(name: str) -> None:
    """Raises ConfigError unless it names a field of `Sampling`."""
    known = [field.name for field in fields(SamplingParams)]
    if name not in known:
        raise ConfigError(
            f"there is no sampler {name!r:.60}{near(str(name), known)}; expected one of "
            f"{', '.join(known)}; mend the name, or take it out"
        )


def near(name: str, names: Iterable[str]) -> str:
    """A hint at what was likely meant: " (did you mean 'top_k'?)", or nothing."""
    found = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(map(repr, found))}?)" if found else ""


def _is_number(value: Any, kinds: Any = (int, float)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    whole = isinstance(low, int)
    if not _is_number(value, int if whole else (int, float)) or not low <= value <= high:
        kind = "a whole number from " if whole else ""
        raise ConfigError(f"{name} is {value!r}; expected {kind}{low} to {high}; choose another")


def _strings(name: str, value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    good = isinstance(found, Iterable) and not isinstance(found, Mapping | bytes)
    found = tuple(found) if good else ()
    if not good or not all(isinstance(one, str) and one for one in found):
        raise ConfigError(
            f"{name} is {value!r}; expected strings of at least one character; mend it"
        )
    return found


def _ids(name: str, value: Any) -> tuple[int, ...]:
    found = tuple(value) if isinstance(value, Iterable) else ()
    if not isinstance(value, Iterable) or not all(_is_number(i, int) and i >= 0 for i in found):
        raise ConfigError(f"{name} is {value!r}; expected token ids, whole from 0; mend it")
    return found


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs in the order of ids; an id may be text, as JSON's keys are."""
    try:
        pairs = dict(value)
        found = {int(i) if isinstance(i, str) else i: bias for i, bias in pairs.items()}
        _ids("logit_bias", found)
        if not all(_is_number(bias) and math.isfinite(bias) for bias in found.values()):
            raise ValueError
    except (TypeError, ValueError):  # ConfigError is a ValueError, too
        raise ConfigError(
            f"logit_bias is {value!r}; expected token ids and what to add to the logit of each, "
            "such as {42: -5}; mend it"
        ) from None
    return tuple(sorted((i, float(bias)) for i, bias in found.items()))


def _known(order: Any) -> tuple[str, ...]:
    named = _strings("order", order)
    for name in named:
        if name not in STEPS:
            raise ConfigError(
                f"order names {name!r}{near(name, STEPS)}; expected names out of "
                f"{', '.join(STEPS)}; mend it"
            )
    if len(set(named)) < len(named):
        raise ConfigError(f"order is {order!r}; expected each name at most once; leave one out")
    return named
