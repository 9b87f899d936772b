"""Decoding: one running batch for all texts, on transformers or llama.cpp; samplers."""

from softlore.decode.batch import RunningBatch
from softlore.decode.model_runner import ModelRunner, TorchModelRunner
from softlore.decode.output import OutputStream, Token
from softlore.decode.passages import (
    WeightedTrees,
    draw_seed,
    sample_ids,
    sample_openings,
    sample_passages,
)
from softlore.decode.prefix_cache import CacheUsage, PrefixCache
from softlore.decode.request import GenerationRequest
from softlore.decode.samplers import Sampler, SamplingParams
from softlore.decode.sequence_group import SequenceGroup
from softlore.decode.writing import (
    TextStream,
    generate,
    runner_for,
    write,
    write_request,
)

__all__ = [
    "CacheUsage",
    "GenerationRequest",
    "ModelRunner",
    "OutputStream",
    "PrefixCache",
    "RunningBatch",
    "Sampler",
    "SamplingParams",
    "SequenceGroup",
    "TextStream",
    "Token",
    "TorchModelRunner",
    "WeightedTrees",
    "draw_seed",
    "generate",
    "runner_for",
    "sample_ids",
    "sample_openings",
    "sample_passages",
    "write",
    "write_request",
]
