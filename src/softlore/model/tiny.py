"""Tiny random models of every tested family, for tests and examples.

`tiny_model("gemma2")` is a 32-wide model with a byte tokenizer; families with a sliding window
have one of 8 tokens, so that a wrong window shows in a sequence of 20.
"""

from __future__ import annotations

from typing import Any

import torch

from softlore.errors import ModelError
from softlore.model.frozen import FrozenModel

WINDOW = 8
_WIDTH, _LAYERS, _HEADS, _KV_HEADS, _POSITIONS = 32, 4, 4, 2, 256
_ALTERNATE = ["full_attention", "sliding_attention"] * (_LAYERS // 2)

_SIZES: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "max_position_embeddings": _POSITIONS,
}
_NEOX = _SIZES | {"intermediate_size": 48}
_LLAMA = _NEOX | {"num_key_value_heads": _KV_HEADS}
_GEMMA = _LLAMA | {"head_dim": 8}
_GPT2 = {"n_embd": _WIDTH, "n_layer": _LAYERS, "n_head": _HEADS, "n_positions": _POSITIONS}
_QWEN = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": _LAYERS // 2}

# What each family's config needs besides a vocabulary.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "gpt_neo": {
        "hidden_size": _WIDTH,
        "num_layers": _LAYERS,
        "num_heads": _HEADS,
        "attention_types": [[["global", "local"], _LAYERS // 2]],
        "window_size": WINDOW,
        "max_position_embeddings": _POSITIONS,
    },
    "gptj": _GPT2 | {"rotary_dim": 4},
    "gpt_neox": _NEOX,
    "opt": _SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "bloom": {"hidden_size": _WIDTH, "n_layer": _LAYERS, "n_head": _HEADS},
    "xglm": {
        "d_model": _WIDTH,
        "ffn_dim": 48,
        "num_layers": _LAYERS,
        "attention_heads": _HEADS,
        "max_position_embeddings": _POSITIONS,
    },
    "ctrl": _GPT2 | {"dff": 48},
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": WINDOW},
    "qwen2": _LLAMA | _QWEN,
    "qwen3": _GEMMA | _QWEN,
    "gemma": _GEMMA,
    "gemma2": _GEMMA | {"sliding_window": WINDOW, "layer_types": _ALTERNATE},
    "gemma3_text": _GEMMA | {"sliding_window": WINDOW, "layer_types": _ALTERNATE},
    "phi": _LLAMA,
    "phi3": _LLAMA | {"sliding_window": WINDOW, "pad_token_id": 0},
    "falcon": _SIZES,
    "stablelm": _LLAMA,
    "olmo2": _LLAMA,
    "granite": _LLAMA
    | {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.3,
    },
    "cohere": _LLAMA | {"logit_scale": 0.5},
    "starcoder2": _LLAMA | {"sliding_window": WINDOW},
    "mpt": {"d_model": _WIDTH, "n_layers": _LAYERS, "n_heads": _HEADS, "max_seq_len": _POSITIONS},
}


def byte_tokenizer(bos: bool = False) -> Any:
    """A tokenizer with a token per byte and `<|endoftext|>`; `bos`: put that before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {end: 0} | {symbol: i + 1 for i, symbol in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([end])
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{end} $A", special_tokens=[(end, 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=end, eos_token=end)


def tiny_hf(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A random transformers model of `family`, with weights large enough that positions matter."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if family not in CONFIGS:
        raise ModelError(
            f"no tiny model of family {family!r}; expected one of {', '.join(sorted(CONFIGS))}"
        )
    base = {"vocab_size": 264, "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(family, **(base | CONFIGS[family] | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.18)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tiny_model(family: str = "llama", seed: int = 0, bos: bool = False) -> FrozenModel:
    """A random FrozenModel of `family` that runs in milliseconds."""
    return FrozenModel(tiny_hf(family, seed), byte_tokenizer(bos), f"tiny-{family}")
