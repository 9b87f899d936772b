"""Sampling steps: the logits processors of SamplingParams, in order, and what ids they read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from softlore.decode.samplers.bans import (
    BannedLogitsProcessor,
    BannedStringsLogitsProcessor,
    SparingLogitsProcessor,
)
from softlore.decode.samplers.dry import DRYLogitsProcessor
from softlore.decode.samplers.mirostat import MirostatLogitsProcessor
from softlore.decode.samplers.penalties import (
    CountLogitsProcessor,
    PenalizedLogitsProcessor,
    RangedRepetitionLogitsProcessor,
)
from softlore.decode.samplers.temperature import (
    DynamicTemperatureLogitsProcessor,
    SmoothingLogitsProcessor,
)
from softlore.decode.samplers.truncation import (
    TailFreeLogitsProcessor,
    TopALogitsProcessor,
    TopNSigmaLogitsProcessor,
    XTCLogitsProcessor,
)
from softlore.errors import ConfigError
from softlore.model import LanguageModel
from softlore.model.vocabulary import Vocabulary
from softlore.settings import SamplingParams
from softlore.settings.sampling import MIN_TEMPERATURE


class Step(NamedTuple):
    """A logits processor, and which ids it reads: none, all of the text, or the new ones.

    `own`: it has a state or draws of its own for each text.
    """

    name: str
    processor: LogitsProcessor
    reads: Literal["nothing", "text", "written"] = "nothing"
    own: bool = False

    @property
    def alike(self) -> bool:
        """Whether it treats all rows alike, whatever their text and seed."""
        return self.reads == "nothing" and not self.own


def build_steps(
    sampling: SamplingParams,
    model: LanguageModel | None = None,
    generator: torch.Generator | None = None,
) -> list[Step]:
    """The steps that the logits go through before the draw, in order.

    Args:
        model: whose ids they are; strings need it.
        generator: of random numbers that steps themselves draw (XTC).

    Raises:
        ConfigError: strings without a model, or ids that it does not have.
    """
    if model is not None:
        _check_ids(sampling, model)
    made = [*_bans(sampling, model), *_penalties(sampling, model)]
    if not sampling.greedy:  # the likeliest token is not changed by a temperature or a cut
        made += _temperatures(sampling)
        made += _mirostat(sampling) if sampling.mirostat else _cuts(sampling, generator)
    return sorted(made, key=lambda step: sampling.ordered_steps.index(step.name))


def _bans(sampling: SamplingParams, model: LanguageModel | None) -> Iterator[Step]:
    if sampling.logit_bias:
        biases = [[[i], bias] for i, bias in dict(sampling.logit_bias).items()]
        yield Step("logit_bias", SequenceBiasLogitsProcessor(biases))
    if sampling.banned:
        yield Step("banned", SparingLogitsProcessor(BannedLogitsProcessor(sampling.banned)))
    if sampling.banned_strings:
        strings = BannedStringsLogitsProcessor(
            sampling.banned_strings, _vocabulary("banned_strings", sampling.banned_strings, model)
        )
        yield Step("banned_strings", SparingLogitsProcessor(strings), "written")
    if sampling.no_repeat_ngram:
        once = NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram)
        yield Step("no_repeat_ngram", SparingLogitsProcessor(once), "text")


def _penalties(sampling: SamplingParams, model: LanguageModel | None) -> Iterator[Step]:
    if sampling.penalized != 1.0:
        yield Step("penalized", PenalizedLogitsProcessor(sampling.penalized), "text")
    penalty, last = float(sampling.repetition_penalty), sampling.repetition_range
    if penalty != 1.0 and last:
        ranged = RangedRepetitionLogitsProcessor(penalty, last, sampling.repetition_slope)
        yield Step("repetition_penalty", ranged, "text")
    elif penalty != 1.0:
        yield Step("repetition_penalty", RepetitionPenaltyLogitsProcessor(penalty), "text")
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = CountLogitsProcessor(sampling.presence_penalty, sampling.frequency_penalty)
        yield Step("presence_frequency", counts, "written")
    if sampling.dry_multiplier:
        dry = DRYLogitsProcessor(
            sampling.dry_multiplier,
            sampling.dry_base,
            sampling.dry_allowed_length,
            _breakers(sampling.dry_breakers, model),
            sampling.dry_range,
        )
        yield Step("dry", dry, "text")


def _temperatures(sampling: SamplingParams) -> Iterator[Step]:
    middle, reach = float(sampling.temperature), float(sampling.dynatemp_range)
    if reach:
        low = max(MIN_TEMPERATURE, middle - reach)
        moving = DynamicTemperatureLogitsProcessor(low, middle + reach, sampling.dynatemp_exponent)
        yield Step("temperature", moving)
    elif middle != 1.0:
        yield Step("temperature", TemperatureLogitsWarper(middle))
    if sampling.smoothing:
        yield Step(
            "smoothing", SmoothingLogitsProcessor(sampling.smoothing, sampling.smoothing_curve)
        )


def _mirostat(sampling: SamplingParams) -> Iterator[Step]:
    steering = MirostatLogitsProcessor(
        sampling.mirostat, sampling.mirostat_tau, sampling.mirostat_eta
    )
    yield Step("mirostat", steering, "written")


def _cuts(sampling: SamplingParams, generator: torch.Generator | None) -> Iterator[Step]:
    if sampling.top_n_sigma:
        yield Step("top_n_sigma", TopNSigmaLogitsProcessor(sampling.top_n_sigma))
    if sampling.top_k:
        yield Step("top_k", TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        yield Step("top_p", TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        yield Step("min_p", MinPLogitsWarper(sampling.min_p))
    if sampling.typical < 1.0:
        yield Step("typical", TypicalLogitsWarper(sampling.typical))
    if sampling.tfs < 1.0:
        yield Step("tfs", TailFreeLogitsProcessor(sampling.tfs))
    if sampling.top_a:
        yield Step("top_a", TopALogitsProcessor(sampling.top_a))
    if sampling.xtc_probability:
        excluding = XTCLogitsProcessor(sampling.xtc_probability, sampling.xtc_threshold, generator)
        yield Step("xtc", excluding, own=True)


def _check_ids(sampling: SamplingParams, model: LanguageModel) -> None:
    for name, ids in (("banned", sampling.banned), ("logit_bias", dict(sampling.logit_bias))):
        over = [i for i in ids if i >= model.vocab_size]
        if over:
            raise ConfigError(
                f"{name} holds the id {over[0]}, which {model.name!r} does not have; expected ids "
                f"below {model.vocab_size}; leave it out"
            )


def _vocabulary(name: str, strings: Sequence[str], model: LanguageModel | None) -> Vocabulary:
    if model is None:
        raise ConfigError(
            f"{name} is {tuple(strings)!r}, and there is no model to tokenize it; expected a model "
            "with strings; pass it"
        )
    return model.vocabulary


def _breakers(strings: Sequence[str], model: LanguageModel | None) -> set[int]:
    """Ids of tokens that contain a breaker, and the last id of a breaker of several tokens."""
    ids: set[int] = set()
    for string in strings:
        ids.update(_vocabulary("dry_breakers", strings, model).containing(string))
        if model is not None:
            ids.update(model.encode(string, inside=True)[-1:])
    return ids
