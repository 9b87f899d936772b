"""Samplers: from logits to the next token, by transformers' logits processors and our own."""

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
from softlore.decode.samplers.sampler import Sampler, sample_each
from softlore.decode.samplers.steps import build_steps
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
from softlore.settings import STEPS, SamplingParams, kobold_order

__all__ = [
    "STEPS",
    "BannedLogitsProcessor",
    "BannedStringsLogitsProcessor",
    "CountLogitsProcessor",
    "DRYLogitsProcessor",
    "DynamicTemperatureLogitsProcessor",
    "MirostatLogitsProcessor",
    "PenalizedLogitsProcessor",
    "RangedRepetitionLogitsProcessor",
    "Sampler",
    "SamplingParams",
    "SmoothingLogitsProcessor",
    "SparingLogitsProcessor",
    "TailFreeLogitsProcessor",
    "TopALogitsProcessor",
    "TopNSigmaLogitsProcessor",
    "XTCLogitsProcessor",
    "build_steps",
    "kobold_order",
    "sample_each",
]
