"""Parses and writes PEFT's `adapter_config.json` for soft prompts.

Only plain values are used. Entries that name files, models or tokenizers to load, or how to load
them (`tokenizer_kwargs`, `auto_mapping`, `revision`), are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from softlore.model.catalog import hub_name
from softlore.prompts.fields import MAX_DEPTH, Kind, clean_text
from softlore.prompts.opening import decode_utf8, parse_json
from softlore.prompts.reasons import Reason, as_file_error, refuse
from softlore.prompts.soft_prompt import SoftPrompt

NAME = "peft"
# PEFT's methods whose folders hold a soft prompt, as rows or as keys and values.
METHODS: dict[str, Kind] = {
    "PROMPT_TUNING": "embedding",
    "P_TUNING": "embedding",
    "MULTITASK_PROMPT_TUNING": "embedding",
    "PREFIX_TUNING": "prefix",
    "CARTRIDGE": "prefix",
}
_MOST = 2**31


@dataclass(frozen=True)
class AdapterConfig:
    """The configuration of a soft prompt.

    Attributes:
        method: PEFT's `peft_type`, a key of METHODS.
        n_tokens: `num_virtual_tokens`, or None where it is missing.
        width: `token_dim`: columns of a row; for keys and values, kv_heads × head_dim.
        layers, heads: `num_layers` and `num_attention_heads`. PEFT writes the number of
            key-value heads there for prefix tuning, so that width / heads is head_dim.
        base_model: the name of the frozen model; only ever text.
    """

    method: str
    n_tokens: int | None
    width: int | None
    layers: int | None
    heads: int | None
    base_model: str

    @property
    def kind(self) -> Kind:
        return METHODS[self.method]

    def shape_of(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the soft prompt that is stored as a tensor of shape `stored`.

        Raises PromptFileError where the two do not agree.
        """
        layers, heads, width = self.layers, self.heads, self.width
        if len(stored) != 2:
            _refuse_shape(stored, "two axes, [n_tokens, columns]")
        if self.n_tokens is not None and stored[0] != self.n_tokens:
            _refuse_shape(stored, f"num_virtual_tokens = {self.n_tokens} rows")
        if self.kind == "embedding":
            if width is not None and stored[1] != width:
                _refuse_shape(stored, f"token_dim = {width} columns")
            return stored
        if layers is None or heads is None or width is None:
            _refuse_config(
                "num_layers, num_attention_heads or token_dim is missing; expected all three for "
                f"{self.method}, without which keys and values cannot be separated"
            )
        if width % heads:
            _refuse_config(
                f"token_dim is {width} and num_attention_heads {heads}; expected a multiple of "
                "the heads"
            )
        if stored[1] != 2 * layers * width:
            _refuse_shape(stored, f"2 × {layers} layers × token_dim {width} columns")
        return (layers, 2, heads, stored[0], width // heads)


def parse_config(data: bytes | bytearray) -> AdapterConfig:
    """Reads and checks a configuration. Raises PromptFileError."""
    config = parse_json(
        decode_utf8(data, "the configuration"), "the configuration", MAX_DEPTH, Reason.NOT_JSON
    )
    if not isinstance(config, dict):
        _refuse_config(f"the configuration is {type(config).__name__}; expected an object")
    method = config.get("peft_type")
    if not isinstance(method, str) or method not in METHODS:
        refuse(
            Reason.ADAPTER_TYPE,
            f"peft_type is {method!r:.60}, which holds no soft prompt (LoRA and its like change "
            f"the model itself); expected one of {', '.join(METHODS)}; train a soft prompt instead",
        )
    submodules = _count(config, "num_transformer_submodules")
    if submodules is None:
        submodules = 2 if config.get("task_type") == "SEQ_2_SEQ_LM" else 1
    if submodules != 1:
        refuse(
            Reason.ADAPTER_TYPE,
            f"num_transformer_submodules is {submodules}, as for an encoder and decoder; expected "
            "1; softlore takes decoders only: train a prompt for one",
        )
    base_model = config.get("base_model_name_or_path")
    with as_file_error(Reason.ADAPTER_CONFIG):
        base_model = clean_text("base_model_name_or_path", "" if base_model is None else base_model)
    keys = ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads")
    n_tokens, width, layers, heads = (_count(config, key) for key in keys)
    return AdapterConfig(method, n_tokens, width, layers, heads, base_model)


def config_of(prompt: SoftPrompt) -> dict[str, Any]:
    """The configuration with which PEFT loads a prompt.

    What only the model knows (layers and heads, for the embedding kind) is null: PEFT takes it
    from the model.
    """
    unset = "auto_mapping modules_to_save num_attention_heads num_layers peft_version revision"
    config: dict[str, Any] = dict.fromkeys(unset.split()) | {
        "base_model_name_or_path": hub_name(prompt.base_model) or None,
        "inference_mode": True,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": len(prompt),
        "task_type": "CAUSAL_LM",
    }
    if prompt.kind == "embedding":
        return config | {
            "peft_type": "PROMPT_TUNING",
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "token_dim": prompt.embeddings.shape[1],
            "tokenizer_kwargs": None,
            "tokenizer_name_or_path": None,
        }
    layers, _, kv_heads, _, head_dim = prompt.key_values.shape
    return config | {
        "encoder_hidden_size": kv_heads * head_dim,
        "num_attention_heads": kv_heads,
        "num_layers": layers,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "token_dim": kv_heads * head_dim,
    }


def _count(config: dict[str, Any], key: str) -> int | None:
    """A number from 1 on, or None where it is null or missing."""
    value = config.get(key)
    if value is not None and not (type(value) is int and 1 <= value < _MOST):
        _refuse_config(f"{key} is {value!r:.60}; expected a whole number from 1 to {_MOST - 1:,}")
    return value


def _refuse_shape(stored: tuple[int, ...], expected: str) -> NoReturn:
    refuse(
        Reason.SHAPE,
        f"the tensor's shape is {list(stored)!s:.80}; expected {expected}, as the configuration "
        "says; the two files do not belong together: get the folder again",
    )


def _refuse_config(message: str) -> NoReturn:
    hint = "the configuration was edited or made by a faulty program: get it again"
    refuse(Reason.ADAPTER_CONFIG, f"{message}; {hint}")
