"""Tiny models of several families, and the storyteller, as GGUF files."""

import functools
import tempfile
from pathlib import Path

import to_gguf

from softlore import FrozenModel, storyteller
from softlore.model.tiny import tiny_hf

_SCRATCH = tempfile.TemporaryDirectory(prefix="softlore-gguf-")


@functools.cache
def folder_of(family: str) -> Path:
    """A folder with a transformers model: storyteller, or a random one with its tokenizer."""
    from transformers import AutoTokenizer

    home = storyteller.path()
    if family == "storyteller":
        return Path(home)
    folder = Path(_SCRATCH.name) / family
    tokenizer = AutoTokenizer.from_pretrained(home)
    model = tiny_hf(family, vocab_size=len(tokenizer), hidden_size=64, **MORE.get(family, {}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# llama.cpp's kernels want heads of 16 at least; widths are theirs.
MORE = {
    "llama": {"head_dim": 64},
    "gemma": {"head_dim": 64},
    "gemma2": {"head_dim": 64},
    "gemma3_text": {"head_dim": 64, "num_hidden_layers": 6, "layer_types": None},
    "qwen3": {"head_dim": 64},
    "gpt2": {"n_embd": 64},
}


@functools.cache
def transformers_model(family: str) -> FrozenModel:
    return FrozenModel.from_pretrained(str(folder_of(family)), "float32", "cpu")


@functools.cache
def gguf_file(family: str, kind: str = "f32") -> Path:
    out = Path(_SCRATCH.name) / f"{family}-{kind}.gguf"
    to_gguf.convert(folder_of(family), out, kind)
    return out
