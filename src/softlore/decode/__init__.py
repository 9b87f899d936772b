"""The decoding loop, samplers and text generation."""

from softlore.decode.loop import decode
from softlore.decode.memory import Memory, Reading
from softlore.decode.passages import OPENERS, Dosed, openers, sample_passages
from softlore.decode.samplers import Chooser, Sampling
from softlore.decode.writing import Token, Writing, generate, write

__all__ = [
    "OPENERS",
    "Chooser",
    "Dosed",
    "Memory",
    "Reading",
    "Sampling",
    "Token",
    "Writing",
    "decode",
    "generate",
    "openers",
    "sample_passages",
    "write",
]
