"""What is known of a model before it is loaded: its config, and from that all shapes."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softlore.errors import ModelError
from softlore.model.gguf.header import is_gguf
from softlore.model.gguf.weights import load_gguf_config
from softlore.model.verify import first_line

BLOCK, GROUP, CODES = 64, 256, 256  # nf4: weights a scale, scales a second scale, table entries


@functools.lru_cache(maxsize=8)
def read_config(name: str) -> Any:
    """The text config of a model's folder, hub id or GGUF file; of the latter the header is read.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoConfig

    if is_gguf(name):
        return load_gguf_config(Path(name)).get_text_config()
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:
        raise ModelError(
            f"the config of model {name!r} could not be read ({first_line(error)}); expected a "
            "folder with config.json, a GGUF file, or a hub id that can be reached; check the name"
        ) from error
    return config.get_text_config()


def empty_model(config: Any, dtype: torch.dtype) -> Any:
    """The model of a config, with shapes and no data; called on the meta or a fake device."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)


@functools.lru_cache(maxsize=8)
def parameter_count(name: str) -> int | None:
    """How many parameters a model has, by its config; None where that can't be known."""
    try:
        with torch.device("meta"):
            hf = empty_model(read_config(name), torch.float32)
    except Exception:  # noqa: BLE001  # loading the model itself will say what is wrong
        return None
    return count_parameters(hf)


def count_parameters(hf: Any) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in hf.parameters())


def model_bytes(hf: Any, quantize: str | None = None) -> int:
    """Bytes of a model's weights and buffers when loaded, from shapes alone.

    Quantized are the weights of linear layers, but for the output layer.
    """
    from transformers.pytorch_utils import Conv1D

    total = sum(t.nbytes for t in (*hf.parameters(), *hf.buffers()))
    if quantize is None:
        return total
    head = hf.get_output_embeddings()
    for module in hf.modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            weight = module.weight
            total += quantized_bytes(weight.numel(), len(weight), quantize) - weight.nbytes
    return total


def quantized_bytes(weights: int, rows: int, quantize: str) -> int:
    """Bytes of a quantized matrix.

    - nf4 (Dettmers et al. 2023, arXiv 2305.14314): half a byte a weight; a scale of one byte for
      each 64 weights, a float32 for each 256 scales, and two tables of codes.
    - int8 (Dettmers et al. 2022, arXiv 2208.07339): a byte a weight, a float32 a row.
    """
    if quantize == "int8":
        return weights + 4 * rows
    scales = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2) + scales + 4 * math.ceil(scales / GROUP) + 4 * (16 + CODES + 1)


def largest_weight(hf: Any) -> int:
    """Elements of the largest linear layer, which quantized models expand while it is used."""
    sizes = [m.weight.numel() for m in hf.modules() if isinstance(m, nn.Linear)]
    return max(sizes, default=0)


def weight_bytes(hf: Any) -> int:
    """Bytes of a loaded model's weights; those that were moved to a disk are not counted."""
    return sum(tensor.nbytes for tensor in hf.parameters() if tensor.device.type != "meta")
