"""What differs by model family: masks, positions, logits, tokenizers, control codes.

softlore runs every transformers model through one forward (`FrozenModel.hidden`): embedding rows,
explicit positions and an explicit additive attention mask. `Family` describes what a family needs
for that. By the family's name alone (`family_named`) it says what is particular about the
tokenizer and codes; `family_of` adds what the loaded model's config and modules say:

- **masks**: one mask for all layers (llama, gpt2, …), one a layer type (gemma2/3, qwen2/3: sliding
  and full layers), or masks that the attention modules have to be patched for (gpt_neo, mpt);
- **positions**: given as `position_ids`, or as a bias on the keys (ALiBi: bloom, mpt);
- **logits**: scales and soft caps that the causal-LM class applies after its linear head.

Embedding scales need no entry: rows are what the model's forward takes as `inputs_embeds`, and
`model.get_input_embeddings()` already applies the scale (Gemma, XGLM). CTRL scales its input in
place, so `FrozenModel.hidden` always passes a copy.

A family that needs more than its config says gets an entry in `FAMILIES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from softlore.errors import UnsupportedModelError
from softlore.model.patches import (
    LayeredMask,
    cache_argument,
    check_falcon,
    patch_bloom,
    patch_gpt_neo,
    patch_mpt,
)

# Families for which tests/test_families.py compares splice, tree batch, prefix and generation with
# the model's own forward. Every model of any family is checked by `verify_forward` when loaded.
TESTED_FAMILIES = frozenset(
    "gpt2 gpt_neo gptj gpt_neox opt bloom xglm ctrl llama mistral qwen2 qwen3 gemma gemma2 "
    "gemma3_text phi phi3 falcon stablelm olmo2 granite cohere starcoder2 mpt".split()
)
FULL, SLIDING = "full_attention", "sliding_attention"  # layer types, as transformers names them


@dataclass(frozen=True)
class Family:
    """What is particular to a model family. The defaults describe most families.

    Attributes:
        model_type: the name of the family, as transformers has it.
        word_tokens: a token is a word, or the beginning of one, which ends in "@@" (CTRL).
        banned_ids: tokenizer → ids that are never to be generated.
        codes_in_tokenizer: control codes are words listed by the tokenizer, not by the config.
        code_templates: how a text under a control code begins, by code; "" is for all others.
        patch: adapts a model's attention modules to explicit masks; returns ALiBi slopes
            `[heads]`, or None where the family has none.
        alibi_by_distance: ALiBi's bias is by distance from the query, which rounds less (MPT).
        mask_in_cache: the patched attention takes its mask from the cache (MPT).
        layered_mask: the patched attention takes a `LayeredMask` (GPT-Neo).
        unlimited: there is no context limit (BLOOM's `seq_length` is only its training length).
        scales_logits: `logit_scale` in the config is for the logits (MPT has its own use for it).

    Known once a model is loaded:

    Attributes:
        layer_types: `FULL` or `SLIDING` for each layer.
        sliding_window: a sliding layer sees keys fewer than this many positions back; or None.
        mask_by_type: the mask is passed as `{layer type: mask}`.
        takes_positions: the forward has `position_ids`.
        cache_argument: name of the forward's argument for the cache.
        alibi_slopes: `[heads]`, or None.
        context_length: the most tokens that the model reads, or None where there is no limit.
        finish_logits: output of the linear head → logits.
        linear_head: logits are a linear function of the hidden states: no soft cap.
    """

    model_type: str
    word_tokens: bool = False
    banned_ids: Callable[[Any], set[int]] = lambda tokenizer: set()
    codes_in_tokenizer: bool = False
    code_templates: Mapping[str, str] = field(default_factory=lambda: {"": "{code}{text}"})
    patch: Callable[[Any], Tensor | None] = lambda hf: None
    alibi_by_distance: bool = False
    mask_in_cache: bool = False
    layered_mask: bool = False
    unlimited: bool = False
    scales_logits: bool = True

    layer_types: tuple[str, ...] = ()
    sliding_window: int | None = None
    mask_by_type: bool = False
    takes_positions: bool = True
    cache_argument: str = "past_key_values"
    alibi_slopes: Tensor | None = None
    context_length: int | None = None
    finish_logits: Callable[[Tensor], Tensor] = lambda logits: logits
    linear_head: bool = True

    @property
    def has_sliding_layers(self) -> bool:
        return self.sliding_window is not None

    @property
    def sight(self) -> int | None:
        """Tokens after which no layer sees a text, nor a prefix; None: all are always seen."""
        return None if FULL in self.layer_types else self.sliding_window

    def code_template(self, code: str) -> str:
        """How a text under a control code begins, such as `{code} Title: {title} Text: {text}`."""
        return self.code_templates.get(code, self.code_templates[""])

    def position_bias(self, distance: Tensor, key_positions: Tensor) -> Tensor | None:
        """ALiBi's additive bias `[B, heads, T, P + T]`; None for families without ALiBi.

        The slope times the key's position, or times minus its distance from the query: softmax
        does not tell these apart, as they differ by a constant in each row.

        Args:
            distance: `[B, T, P + T]`, query position minus key position.
            key_positions: `[B, P + T]`.
        """
        if self.alibi_slopes is None:
            return None
        far = -distance if self.alibi_by_distance else key_positions[:, None, :]
        return self.alibi_slopes.to(distance.device)[None, :, None, None] * far[:, None]

    def attention_mask(self, full: Tensor, sliding: Tensor) -> Any:
        """The masks of full and of sliding layers in the form that the forward takes them."""
        if self.mask_by_type:
            return {FULL: full, SLIDING: sliding}
        if self.layered_mask:
            layered = full.as_subclass(LayeredMask)
            layered.sliding = sliding
            return layered
        return sliding


def family_named(model_type: str) -> Family:
    """Describes a family by its name alone."""
    return FAMILIES.get(model_type) or Family(model_type)


def family_of(hf: Any) -> Family:
    """Describes a loaded transformers causal LM, and patches its attention where needed.

    Raises:
        UnsupportedModelError: for a family without plain attention keys and values.
    """
    config = hf.config.get_text_config()
    family = family_named(config.model_type)
    layer_types, window, by_type = _layers(config)
    body = hf.get_decoder()
    return replace(
        family,
        layer_types=layer_types,
        sliding_window=window,
        mask_by_type=by_type,
        takes_positions="position_ids" in inspect.signature(body.forward).parameters,
        cache_argument=cache_argument(body),
        alibi_slopes=family.patch(hf),
        context_length=None if family.unlimited else _context_length(config),
        finish_logits=_finisher(config, family.scales_logits),
        linear_head=getattr(config, "final_logit_softcapping", None) is None,
    )


def _layers(config: Any) -> tuple[tuple[str, ...], int | None, bool]:
    """Layer types, window in tokens, and whether masks are passed by layer type."""
    if hasattr(config, "attention_layers"):  # gpt_neo
        types = tuple({"global": FULL, "local": SLIDING}[t] for t in config.attention_layers)
        return types, config.window_size if SLIDING in types else None, False
    listed: list[str] | None = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if listed is None:
        every = FULL if window is None else SLIDING
        return (every,) * int(config.num_hidden_layers), window, False
    unknown = set(listed) - {FULL, SLIDING}
    if unknown:
        raise UnsupportedModelError(
            f"model type {config.model_type!r} has layers of type {sorted(unknown)}; expected full "
            "or sliding attention, whose keys and values a soft prompt can join; use another model"
        )
    return tuple(listed), window if SLIDING in listed else None, SLIDING in listed


def _context_length(config: Any) -> int | None:
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # Beyond this length all keys are rotated by other frequencies, cached ones too.
        return int(rope["original_max_position_embeddings"])
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, key, None)
        if isinstance(value, int):
            return value
    return None


def _finisher(config: Any, scales: bool) -> Callable[[Tensor], Tensor]:
    """The scale and soft cap that a family's causal-LM class applies to its logits."""
    divide = getattr(config, "logits_scaling", None)  # granite
    multiply = getattr(config, "logit_scale", None) if scales else None  # cohere
    cap = getattr(config, "final_logit_softcapping", None)  # gemma2, gemma3

    def finish(logits: Tensor) -> Tensor:
        if divide is not None:
            logits = logits / divide
        if isinstance(multiply, int | float):
            logits = logits * multiply
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return finish


# The table ---------------------------------------------------------------------------------------


def _unknown_words_and_links(tokenizer: Any) -> set[int]:
    """Ids that CTRL's own program never samples (Keskar et al. 2019)."""
    links = {i for token, i in tokenizer.get_vocab().items() if "http" in token}
    return links | {tokenizer.unk_token_id} - {None}


# How CTRL's codes were trained to continue; all others are of Reddit, with title and text.
_CTRL_TEMPLATES = {
    "Books": "{code} {text}",
    "Links": "{code} {url}",
    "News": "{code} {text}",
    "Questions": "{code} Q: {question} A: {answer}",
    "Reviews": "{code} Rating: {1.0 to 5.0} {text}",
    "Translation": "{code} English : {text} ; French : {text}",
    "Wikipedia": "{code} {text}",
    "multilingual": "{code} {text}",
    "": "{code} Title: {title} Text: {text}",
}

FAMILIES = {
    family.model_type: family
    for family in (
        Family("bloom", patch=patch_bloom, unlimited=True),
        Family(
            "ctrl",
            word_tokens=True,
            banned_ids=_unknown_words_and_links,
            codes_in_tokenizer=True,
            code_templates=_CTRL_TEMPLATES,
        ),
        Family("falcon", patch=check_falcon),
        Family("gpt_neo", patch=patch_gpt_neo, layered_mask=True),
        Family(
            "mpt",
            patch=patch_mpt,
            alibi_by_distance=True,
            mask_in_cache=True,
            scales_logits=False,
        ),
    )
}
