"""Loads a GGUF file as weights: transformers' model and tokenizer, by transformers' own loader.

That loader reads a file's header three times, a list of up to 300,000 tokens included, makes a
table of names for each module, and unpacks tensors by numpy: 17 seconds for 135M parameters. While
it runs, what it takes from the package `gguf` is replaced by faster functions with the same
results: the reader by `header.py`'s, which has also checked the file, the unpacking of blocks by
torch's; the table of names is made once.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softlore.errors import ModelError, SoftloreError, UnsupportedModelError
from softlore.model.gguf.header import GGUFList, GGUFTensor, Header, read_header
from softlore.model.gguf.tokenizer import end_ids, mend_tokenizer
from softlore.model.verify import first_line

CODES = "softlore.control_codes"  # metadata of a file: the model's control codes, as JSON
PACKAGES = ("gguf", "accelerate")
STEP = 1 << 22  # elements that are unpacked at once
_PATCHING = threading.Lock()
_F32, _F16 = 0, 1
_TYPES = {bool: 7, int: 11, float: 12, str: 8}  # ggml's numbers of the types of values


def load_weights(path: Path, dtype: torch.dtype, tokenizer: Any = None) -> tuple[Any, Any, str]:
    """A transformers causal LM on the CPU, its tokenizer, and its name, of a GGUF file.

    Args:
        tokenizer: used in place of the file's.

    Raises:
        ModelError: the file is damaged, or packages are missing.
        UnsupportedModelError: transformers cannot read its architecture.
    """
    header = _checked(path, PACKAGES)
    with _refusing(header, "be loaded as weights"), _opened(header) as where:
        config = _config(header, where)
        if tokenizer is None:
            tokenizer = _tokenizer(header, where)
        hf = _model(header, config, dtype, where)
    return hf, tokenizer, header.name


def load_gguf_tokenizer(path: Path) -> Any:
    """The transformers tokenizer of a GGUF file. Raises ModelError."""
    header = _checked(path, PACKAGES[:1])
    with _refusing(header, "give a tokenizer"), _opened(header) as where:
        return _tokenizer(header, where)


def load_gguf_config(path: Path) -> Any:
    """The transformers config of a GGUF file; its weights are not read. Raises ModelError."""
    header = _checked(path, PACKAGES[:1])
    with _refusing(header, "give a config"), _opened(header) as where:
        return _config(header, where)


def _checked(path: Path, packages: Sequence[str]) -> Header:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"{missing[0]} is not installed; expected the packages of softlore's extra `gguf`, to "
            f"read {path.name!r}; run: pip install 'softlore[gguf]'"
        )
    header = read_header(path)
    if not header.architecture or not header.tensors:
        raise ModelError(
            f"the GGUF file {str(path)!r} names no architecture, or has no tensors; expected a "
            "language model; give its main file, not an adapter or a part"
        )
    return header


@contextmanager
def _refusing(header: Header, what: str) -> Iterator[None]:
    """Turns whatever transformers raises for a file into an UnsupportedModelError."""
    try:
        yield
    except SoftloreError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"the GGUF file {str(header.path)!r} ({header.architecture:.40}) could not "
            f"{what} ({first_line(error)}); expected an architecture and types of tensors that "
            "transformers reads; use the model that the file was made from"
        ) from error


# with transformers' loader ---------------------------------------------------------------------


@contextmanager
def _opened(header: Header) -> Iterator[dict[str, str]]:
    """Arguments of `from_pretrained` for the file, alone in a folder.

    In its own folder files of another model may lie, which transformers would read as well.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    with tempfile.TemporaryDirectory(prefix="softlore-gguf-") as folder, _PATCHING:
        try:
            (Path(folder) / "model.gguf").symlink_to(header.path.resolve())
            where = {"pretrained_model_name_or_path": folder, "gguf_file": "model.gguf"}
        except OSError:  # Windows, without the right to
            parent, name = header.path.resolve().parent, header.path.resolve().name
            where = {"pretrained_model_name_or_path": str(parent), "gguf_file": name}
        reader = _Reader.of(header, np.memmap(header.path, mode="r", dtype=np.uint8))
        with (
            _replaced(gguf, "GGUFReader", lambda _: reader),
            _replaced(gguf, "dequantize", unpack),
            _replaced(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
            _replaced(loader, "tqdm", lambda tensors, **_: tensors),  # its bar
        ):
            yield where


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def _config(header: Header, where: dict[str, str]) -> Any:
    """The config of a GGUF file. Raises ModelError if it has fewer layers or weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    blocks = {t.name.split(".")[1] for t in header.tensors if t.name.startswith("blk.")}
    for key, value in header.values.items():
        if key.endswith(".block_count") and not 0 < value <= len(blocks):
            raise ModelError(
                f"the GGUF file {str(header.path)!r} declares {value!r:.40} layers and has tensors "
                f"of {len(blocks)}; expected as many; download it again"
            )
    config = AutoConfig.from_pretrained(**where)
    _scale_positions(header, config)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    needed = sum(tensor.numel() for tensor in [*empty.parameters(), *empty.buffers()])
    present = sum(tensor.elements for tensor in header.tensors)
    if needed > present + (1 << 20):  # buffers: frequencies, and masks of old models
        raise ModelError(
            f"the GGUF file {str(header.path)!r} describes a model of {needed:,} numbers and has "
            f"{present:,}; expected all weights in one file; download it again, or merge its parts"
        )
    return config


def _scale_positions(header: Header, config: Any) -> None:
    """Linear and YaRN scaling of rotary positions, which transformers' loader leaves out."""
    kind, factor = header.text(f"{header.architecture}.rope.scaling.type"), None
    factor = header.number("rope.scaling.factor")
    if kind in ("", "none") or factor in (None, 1, 0):
        return
    rope = getattr(config, "rope_parameters", None)
    full = rope.get("full_attention", rope) if isinstance(rope, dict) else None
    if full is None or kind not in ("linear", "yarn"):
        raise UnsupportedModelError(
            f"{header.name!r} scales rotary positions by {kind!r:.40}; expected none, linear or "
            "yarn; use the model that the file was made from"
        )
    full |= {"rope_type": kind, "factor": float(factor)}
    length = header.number("rope.scaling.original_context_length")
    if kind == "yarn" and length:
        full["original_max_position_embeddings"] = int(length)


def _model(header: Header, config: Any, dtype: torch.dtype, where: dict[str, str]) -> Any:
    import transformers

    options: dict[str, Any] = {"config": config, "dtype": dtype, "output_loading_info": True}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    hf, told = transformers.AutoModelForCausalLM.from_pretrained(**where, **options)
    absent = sorted([*told["missing_keys"], *told["mismatched_keys"]], key=str)
    if absent:
        raise UnsupportedModelError(
            f"the GGUF file {str(header.path)!r} has no weights for {absent[0]!s:.80} and "
            f"{len(absent) - 1} more; expected all that the architecture "
            f"{header.architecture!r:.40} has in transformers; use the model that it was made from"
        )
    if (factors := header.tensor("rope_freqs.weight")) is not None:
        _divide_frequencies(header, hf, factors)
    # The weights are plain tensors now; marked as quantized, they could not be saved.
    hf.hf_quantizer = None
    vars(hf.config).pop("quantization_config", None)
    hf.config.control_codes = control_codes(header)
    hf.generation_config.eos_token_id = sorted(end_ids(header)) or None
    return hf


def control_codes(header: Header) -> Any:
    """The model's control codes as the file has them, unchecked; empty if it has none."""
    try:
        return json.loads(header.text(CODES) or "{}")
    except ValueError:
        return {}


def tensor_rows(header: Header, name: str, at: Sequence[int]) -> torch.Tensor:
    """Some rows of a tensor `[rows, columns]` of the file, float32. Raises ModelError."""
    tensor = header.tensor(name)
    if tensor is None:
        raise ModelError(
            f"the GGUF file {str(header.path)!r} has no tensor {name!r}; expected a language "
            "model; download it again"
        )
    data = np.memmap(header.path, mode="r", dtype=np.uint8)
    packed = _blocks(data, tensor)
    return torch.from_numpy(np.array(unpack(packed[list(at)], tensor.kind), np.float32))


def _divide_frequencies(header: Header, hf: Any, factors: GGUFTensor) -> None:
    """Llama 3's scaling of rotary frequencies, which a file has as a tensor of divisors."""
    data = np.memmap(header.path, mode="r", dtype=np.uint8)
    values = unpack(_blocks(data, factors), factors.kind)
    divisors = torch.from_numpy(np.array(values, np.float32))
    for module in hf.modules():
        frequencies = getattr(module, "inv_freq", None)
        if isinstance(frequencies, torch.Tensor) and frequencies.shape == divisors.shape:
            frequencies.div_(divisors.to(frequencies))
            if isinstance(getattr(module, "original_inv_freq", None), torch.Tensor):
                module.original_inv_freq = frequencies.clone()


def _tokenizer(header: Header, where: dict[str, str]) -> Any:
    from transformers import AutoTokenizer

    return mend_tokenizer(header, AutoTokenizer.from_pretrained(**where))


# in place of the package `gguf` ------------------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    """A value of the metadata, as `gguf.ReaderField` has it."""

    parts: list[Any]
    data: list[int]
    types: list[int]


@dataclass(frozen=True)
class _ReaderTensor:
    """A tensor, as `gguf.ReaderTensor` has it."""

    name: str
    tensor_type: int
    shape: tuple[int, ...]
    data: np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Reader:
    """The parts of `gguf.GGUFReader` that transformers uses; without the vocabulary."""

    fields: dict[str, _Field]
    tensors: list[_ReaderTensor]

    @classmethod
    def of(cls, header: Header, data: np.ndarray[Any, Any]) -> _Reader:
        values = dict(header.values)
        table = header.tensor("token_embd.weight")
        if table is not None:
            values.setdefault(f"{header.architecture}.vocab_size", table.shape[0])
        fields = {
            key: _field(header, key, value)
            for key, value in values.items()
            if not (isinstance(value, GGUFList) and key.startswith("tokenizer."))
        }
        tensors = [
            _ReaderTensor(t.name, t.kind, t.shape[::-1], _blocks(data, t)) for t in header.tensors
        ]
        return cls(fields, tensors)


def _field(header: Header, key: str, value: Any) -> _Field:
    if isinstance(value, GGUFList):
        items = [_part(item) for item in header.items(key)]
        kind = _TYPES[str] if value.kind == _TYPES[str] else value.kind
        return _Field(items, list(range(len(items))), [9, kind])
    return _Field([_part(value)], [0], [_TYPES[type(value)]])


def _part(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else [value]


def _blocks(data: np.ndarray[Any, Any], tensor: GGUFTensor) -> np.ndarray[Any, Any]:
    """A tensor of the mapped file: floats, or a row of bytes for each row."""
    import gguf

    kind = gguf.GGMLQuantizationType(tensor.kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    width = tensor.shape[-1] if tensor.shape else 1
    stop = tensor.start + tensor.elements // block * size
    if width % block or stop > len(data):
        raise ModelError(
            f"the tensor {tensor.name!r:.60} of {kind.name} does not fit the file; expected a "
            "whole GGUF file; download it again"
        )
    raw = data[tensor.start : stop].reshape(*tensor.shape[:-1], width // block * size)
    if kind in (_F32, _F16):
        raw = raw.view(np.float32 if kind == _F32 else np.float16).reshape(tensor.shape)
    return raw


def unpack(data: np.ndarray[Any, Any], kind: int) -> np.ndarray[Any, Any]:
    """Values, float32, of rows of blocks: `gguf.dequantize`, by torch where it can.

    Args:
        data: `[…, bytes]`, or `[…, columns]` of floats.
        kind: ggml's number of their type.
    """
    import gguf
    from transformers.integrations.gguf import dequant

    if kind in (_F32, _F16):
        return data.astype(np.float32, copy=False)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    rows = data.reshape(-1, data.shape[-1])
    values = np.empty((len(rows), data.shape[-1] // size * block), np.float32)
    step = max(1, STEP // max(1, values.shape[1]))
    for start in range(0, len(rows), step):
        some = np.array(rows[start : start + step])
        if int(kind) in dequant.GGML_BLOCK:
            unpacked = dequant.dequantize(torch.from_numpy(some), int(kind)).numpy()
        else:
            unpacked = gguf.quants.dequantize(some, gguf.GGMLQuantizationType(kind))
        values[start : start + step] = unpacked.reshape(len(some), -1)
    return values.reshape(*data.shape[:-1], -1)
