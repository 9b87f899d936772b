"""Tiny models of several families, and the storyteller, as GGUF files."""

import functools
import tempfile
from pathlib import Path

import to_gguf
from softlore import FrozenModel, storyteller
from softlore.model.gguf import GGUFModel
from softlore.model.tiny import tiny_hf

_SCRATCH = tempfile.TemporaryDirectory(prefix="softlore-gguf-")


@functools.cache
def folder_of(family: str) -> Path:
    """A folder with a transformers model: storyteller, or a random one with its tokenizer.

    What comes after a hyphen in the family's name tells apart two models of it.
    """
    from transformers import AutoTokenizer

    home = storyteller.path()
    if family == "storyteller":
        return Path(home)
    folder = Path(_SCRATCH.name) / family
    tokenizer = AutoTokenizer.from_pretrained(home)
    wide = {"n_embd": 64, "n_ctx": 256} if family == "gpt2" else {"hidden_size": 64}
    model = tiny_hf(
        family.partition("-")[0], vocab_size=len(tokenizer), **wide, **MORE.get(family, {})
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# Heads as wide as llama.cpp's kernels want them, and what it takes as given for a family: no
# sliding layers in Qwen, Gemma's usual scale.
_HEADS = {"head_dim": 64}
_GEMMA = _HEADS | {"query_pre_attn_scalar": 64}
MORE = {
    "llama": _HEADS,
    "qwen2": {"use_sliding_window": False, "layer_types": None},
    "qwen3": _HEADS | {"use_sliding_window": False, "layer_types": None},
    "gemma": _HEADS,
    "gemma2": _GEMMA | {"layer_types": None},
    "gemma3_text": _GEMMA | {"num_hidden_layers": 6, "layer_types": None},
    "gemma3_text-wide": _GEMMA
    | {"num_hidden_layers": 6, "layer_types": None, "sliding_window": 48},
}


@functools.cache
def transformers_model(family: str) -> FrozenModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(folder_of(family), dtype="float32")
    return FrozenModel(hf, AutoTokenizer.from_pretrained(storyteller.path()), family)


@functools.cache
def gguf_file(family: str, kind: str = "f32") -> Path:
    out = Path(_SCRATCH.name) / f"{family}-{kind}.gguf"
    to_gguf.convert(folder_of(family), out, kind)
    return out


def gguf_model(family: str) -> GGUFModel:
    """In float32, with the tokenizer that all of them have."""
    return GGUFModel(gguf_file(family), "storyteller")
