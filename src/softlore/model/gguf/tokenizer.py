"""What transformers' loader leaves out of the tokenizer of a GGUF file."""

from __future__ import annotations

import logging
from typing import Any

from softlore.model.gguf.header import Header

_log = logging.getLogger(__name__)
# Names, in files, of how text is split before pairs of bytes are merged. Source: llama-vocab.cpp.
_DIGITS = frozenset("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2".split())
_AS_GPT2 = frozenset(
    "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt "
    "olmo jais trillion granite-docling default".split()
)
# Tokens that end a turn. Source: llama-vocab.cpp, where a file names none.
_ENDS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> [EOT] "
    "<｜end▁of▁sentence｜> <end_of_utterance>".split()
)
_CONTROL = 3


def mend_tokenizer(header: Header, tokenizer: Any) -> Any:
    """Lets a tokenizer that transformers made of a file split text as the file says."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf import gguf_tokenizer_mapping as known

    kind = header.text("tokenizer.ggml.pre")
    if header.text("tokenizer.ggml.model") != "gpt2":
        return tokenizer
    if kind in _DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif kind not in _AS_GPT2 and kind not in getattr(known, "GGUF_PRE_TOKENIZER_SPLITS", {}):
        _log.warning(
            "%s splits text as %r, which is not known here; it is split as GPT-2's, and some text "
            "may be encoded otherwise than by llama.cpp", header.name, kind
        )  # fmt: skip
    return tokenizer


def end_ids(header: Header) -> set[int]:
    """Ids that end a text or a turn."""
    named = [header.values.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    found = {i for i in named if isinstance(i, int)}
    if not isinstance(named[1], int):
        tokens = header.items("tokenizer.ggml.tokens")
        types = header.items("tokenizer.ggml.token_type") or [_CONTROL] * len(tokens)
        ends = (i for i, token in enumerate(tokens) if token in _ENDS and types[i] == _CONTROL)
        found |= set(list(ends)[:1])
    return found
