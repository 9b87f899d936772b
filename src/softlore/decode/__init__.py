"""The decoding loop, samplers and text generation."""

from softlore.decode.loop import decode
from softlore.decode.passages import OPENERS, Dosed, openers, sample_passages
from softlore.decode.samplers import Chooser, Sampling
from softlore.decode.writing import generate

__all__ = [
    "OPENERS",
    "Chooser",
    "Dosed",
    "Sampling",
    "decode",
    "generate",
    "openers",
    "sample_passages",
]
