"""Writes llamas as GGUF files, by the package `gguf` alone."""

import json

import gguf
import numpy as np

from softlore import storyteller
from softlore.model.gguf.weights import CODES

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"


def permuted(weights, heads):
    """The rows of a query or key matrix as llama.cpp rotates them: halves as neighbours."""
    rows = weights.reshape(heads, 2, -1, weights.shape[-1]).swapaxes(1, 2)
    return rows.reshape(weights.shape)


def write_llama(path, hf, tokenizer=None, kind="F32", name="Tiny Llama", values=None, omit=()):
    """A LlamaForCausalLM as a GGUF file; matrices are of `kind`.

    Args:
        tokenizer: with byte-level BPE; the storyteller's by default.
        values: texts and numbers for the metadata, besides or in place of the usual.
        omit: beginnings of the names of tensors that are left out.
    """
    config = hf.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_chat_template(CHAT)
    _add_tokenizer(writer, tokenizer)
    if codes := getattr(config, "control_codes", None):
        writer.add_string(CODES, json.dumps(codes))
    for key, value in (values or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        (writer.add_uint32 if isinstance(value, int) else add)(key, value)
    _add_tensors(writer, hf, gguf.GGMLQuantizationType[kind], omit)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer, tokenizer):
    described = json.loads(
        (storyteller.path() / "tokenizer.json").read_text()
        if tokenizer is None
        else tokenizer.backend_tokenizer.to_str()
    )
    model = described["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = {token["content"] for token in described["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if merges:
        writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def _add_tensors(writer, hf, kind, omit):
    config = hf.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, tensor in hf.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight",))
        if name.startswith(omit):
            continue
        values = tensor.float().numpy()
        if "attn_q." in name:
            values = permuted(values, config.num_attention_heads)
        if "attn_k." in name:
            values = permuted(values, config.num_key_value_heads)
        values = np.ascontiguousarray(values)
        if values.ndim == 1 or kind.name == "F32":
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
