"""The decoding loop, samplers and text generation."""

from softlore.decode.batch import Batch, Text
from softlore.decode.kept import Kept
from softlore.decode.loop import decode
from softlore.decode.memory import Memory, Reading
from softlore.decode.passages import OPENERS, Dosed, openers, sample_passages
from softlore.decode.reader import Reader, TorchReader
from softlore.decode.samplers import Chooser, Sampling
from softlore.decode.telling import Telling, Token
from softlore.decode.together import write_together
from softlore.decode.wish import Wish
from softlore.decode.writing import Writing, generate, write, write_wish

__all__ = [
    "OPENERS",
    "Batch",
    "Chooser",
    "Dosed",
    "Kept",
    "Memory",
    "Reader",
    "Reading",
    "Sampling",
    "Telling",
    "Text",
    "Token",
    "TorchReader",
    "Wish",
    "Writing",
    "decode",
    "generate",
    "openers",
    "sample_passages",
    "write",
    "write_together",
    "write_wish",
]
