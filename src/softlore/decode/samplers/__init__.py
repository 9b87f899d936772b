"""From logits to the next token: transformers' processors in one order, then a seeded draw."""

from softlore.decode.samplers.bans import (
    BannedLogitsProcessor,
    BannedStringsLogitsProcessor,
    SparingLogitsProcessor,
)
from softlore.decode.samplers.chooser import Chooser, choose_each
from softlore.decode.samplers.dry import DRYLogitsProcessor
from softlore.decode.samplers.mirostat import MirostatLogitsProcessor
from softlore.decode.samplers.penalties import (
    CountLogitsProcessor,
    PenalizedLogitsProcessor,
    RangedRepetitionLogitsProcessor,
)
from softlore.decode.samplers.settings import STEPS, Sampling, kobold_order
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

__all__ = [
    "STEPS",
    "BannedLogitsProcessor",
    "BannedStringsLogitsProcessor",
    "Chooser",
    "CountLogitsProcessor",
    "DRYLogitsProcessor",
    "DynamicTemperatureLogitsProcessor",
    "MirostatLogitsProcessor",
    "PenalizedLogitsProcessor",
    "RangedRepetitionLogitsProcessor",
    "Sampling",
    "SmoothingLogitsProcessor",
    "SparingLogitsProcessor",
    "TailFreeLogitsProcessor",
    "TopALogitsProcessor",
    "TopNSigmaLogitsProcessor",
    "XTCLogitsProcessor",
    "choose_each",
    "kobold_order",
]
