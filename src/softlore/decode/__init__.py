"""The decoding loop, samplers and text generation."""

from softlore.decode.batch import RunningBatch, SequenceGroup
from softlore.decode.loop import decode
from softlore.decode.memory import CacheUsage, TextCache
from softlore.decode.model_runner import ModelRunner, TorchModelRunner
from softlore.decode.output import OutputStream, Token
from softlore.decode.passages import OPENERS, WeightedTrees, openers, sample_passages
from softlore.decode.prefix_cache import PrefixCache
from softlore.decode.request import GenerationRequest
from softlore.decode.samplers import Sampler, SamplingParams
from softlore.decode.together import write_batch
from softlore.decode.writing import TextStream, generate, write, write_request

__all__ = [
    "OPENERS",
    "CacheUsage",
    "GenerationRequest",
    "ModelRunner",
    "OutputStream",
    "PrefixCache",
    "RunningBatch",
    "Sampler",
    "SamplingParams",
    "SequenceGroup",
    "TextCache",
    "TextStream",
    "Token",
    "TorchModelRunner",
    "WeightedTrees",
    "decode",
    "generate",
    "openers",
    "sample_passages",
    "write",
    "write_batch",
    "write_request",
]
