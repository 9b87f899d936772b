"""Reads and writes safetensors files; the header is checked before any data.

The file is `length (8 bytes, little-endian) | header (length bytes of JSON) | tensor bytes`.
Everything is checked against the size of the open file, so that what is read afterwards is exactly
what the header says. Errors are PromptFileError; see `reasons.py`.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from softlore.disk import write_atomically
from softlore.errors import PromptError
from softlore.prompts.fields import MAX_TENSOR_BYTES
from softlore.prompts.opening import MAX_HEADER_BYTES, PromptFile, changed, looks_like, parse_json
from softlore.prompts.reasons import Reason, refuse

TENSOR = "prompt"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MAX_FILE_BYTES = 8 + MAX_HEADER_BYTES + MAX_TENSOR_BYTES
_HEADER_DEPTH = 3  # {"prompt": {"shape": [...]}}
_FOREIGN = "another program made or changed it: get it again, or in a format that is read here"


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header describes it.

    Attributes:
        dtype: "F32", "F16" or "BF16".
        begin, end: the range of its bytes, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """A header that is valid safetensors; its metadata is not checked.

    Attributes:
        raw: the length and the header as they were read.
        tensors: those that were expected, by name.
        data_bytes: the number of bytes of tensors that follow.
        metadata: None where the file has none.
    """

    raw: bytes
    tensors: dict[str, TensorEntry]
    data_bytes: int
    metadata: dict[str, str] | None


def read_safetensors_header(
    file: PromptFile, names: Sequence[str] = (TENSOR,)
) -> SafetensorsHeader:
    """Reads and checks the header of a file; its stream is left at the tensor bytes.

    Args:
        names: the tensors that the file must contain: these and no others.
    """
    raw = _read_bytes(file)
    data_bytes = file.size - len(raw)
    header = _parse(raw[8:])
    metadata = header.get("__metadata__")
    if "__metadata__" in header:
        check_metadata(metadata)
    _check_names([name for name in header if name != "__metadata__"], names)
    tensors = {name: _tensor_entry(name, header[name]) for name in names}
    _check_offsets(tensors, data_bytes)
    return SafetensorsHeader(raw, tensors, data_bytes, metadata)


def read_tensors(stream: BinaryIO, header: SafetensorsHeader) -> dict[str, Tensor]:
    """The tensors that follow a header just read, by name, in float32, all values finite.

    Reads as many bytes as the header says, and no more.
    """
    data = stream.read(header.data_bytes)
    if len(data) != header.data_bytes:
        raise changed()
    try:
        stored = safetensors.torch.load(header.raw + data)
    except safetensors.SafetensorError as error:
        refuse(Reason.HEADER_NOT_JSON, f"safetensors rejects the file: {error}; get it again")
    return {name: check_finite(name, tensor.to(torch.float32)) for name, tensor in stored.items()}


def write_tensor(
    path: str | os.PathLike[str], tensor: Tensor, metadata: dict[str, str], name: str = TENSOR
) -> None:
    """Writes a file of one float32 tensor, atomically; equal content gives equal bytes.

    (The writer of safetensors orders metadata at random.) Keys are sorted; spaces pad the header to
    a multiple of 8 bytes. Raises PromptError for metadata too long for a header, StorageError
    where the disk refuses.
    """
    shape = list(tensor.shape)
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}
    header = {"__metadata__": dict(sorted(metadata.items())), name: entry}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise PromptError(
            f"the metadata for {os.fspath(path)!r} takes {len(text):,} bytes; expected at most "
            f"{MAX_HEADER_BYTES:,}; shorten the prompt's description, training or metrics"
        )
    values = tensor.contiguous().numpy()
    if sys.byteorder == "big":
        values = values.byteswap()
    write_atomically(path, struct.pack("<Q", len(text)), text, values.data.cast("B"))


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """Returns the tensor, or raises PromptFileError if any value is NaN or infinite."""
    finite = torch.isfinite(tensor)
    if not finite.all():
        invalid = int((~finite).sum())
        refuse(
            Reason.NOT_FINITE,
            f"tensor {name!r}: {invalid} of its {tensor.numel()} values are NaN or infinite; "
            "expected finite numbers; the prompt's training diverged, or the file was damaged: "
            "get another",
        )
    return tensor


def _read_bytes(file: PromptFile) -> bytes:
    if file.size > MAX_FILE_BYTES:
        _refuse_foreign(
            Reason.TOO_LARGE,
            f"the file has {file.size:,} bytes; expected at most {MAX_FILE_BYTES:,}",
        )
    file.stream.seek(0)
    start = file.stream.read(8)
    if file.size < 10 or len(start) < 8:
        _refuse_damaged(
            Reason.TOO_SHORT,
            f"the file has {file.size} bytes; expected at least 10, a length and a header",
        )
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER_BYTES:
        likely = looks_like(file.start)
        refuse(
            Reason.OTHER_FORMAT if likely else Reason.HEADER_TOO_LARGE,
            f"the header is said to have {length:,} bytes; expected at most {MAX_HEADER_BYTES:,}; "
            + (f"the file looks like {likely}, not a softlore file" if likely else _FOREIGN),
        )
    if 8 + length > file.size:
        _refuse_damaged(
            Reason.HEADER_CUT,
            f"the header is said to have {length:,} bytes, but the file ends after "
            f"{file.size - 8:,} of them; expected a complete header",
        )
    text = file.stream.read(length)
    if len(text) != length:
        raise changed()
    return start + text


def _parse(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        _refuse_foreign(Reason.HEADER_START, f"the header begins with {raw[:1]!r}; expected b'{{'")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        _refuse_damaged(
            Reason.HEADER_NOT_UTF8, f"byte {error.start} of the header is not UTF-8; expected UTF-8"
        )
    header = parse_json(text, "the header", _HEADER_DEPTH, Reason.HEADER_NOT_JSON)
    assert isinstance(header, dict)  # it begins with a brace
    return header


def check_metadata(metadata: object) -> None:
    """Raises PromptFileError unless it is an object of strings that UTF-8 can hold."""
    values = metadata.items() if isinstance(metadata, dict) else [("__metadata__", metadata)]
    for key, value in values:
        if not isinstance(value, str):
            _refuse_foreign(
                Reason.METADATA_TYPE,
                f"metadata {key!r:.80} is {type(value).__name__}; expected strings only, nested "
                "values as JSON inside them",
            )
        try:
            (key + value).encode()
        except UnicodeEncodeError:
            _refuse_damaged(
                Reason.METADATA_VALUE,
                f"metadata {key!r:.80} holds half a character (a lone surrogate); expected "
                "Unicode text",
            )


def _check_names(stored: Sequence[str], names: Sequence[str]) -> None:
    expected = "one, " if len(names) == 1 else "these, "
    expected += ", ".join(map(repr, names))
    if not stored:
        _refuse_damaged(Reason.NO_TENSOR, f"the file has no tensor; expected exactly {expected}")
    if sorted(stored) != sorted(names):
        listed = ", ".join(f"{name!r:.60}" for name in stored[:4]) + (
            " …" if len(stored) > 4 else ""
        )
        refuse(
            Reason.OTHER_TENSORS,
            f"the file has the tensors {listed}; expected exactly {expected}; "
            + _names_hint(stored, names),
        )


def _names_hint(stored: Sequence[str], names: Sequence[str]) -> str:
    """How to fix a file with tensors of other names."""
    if tuple(names) != (TENSOR,):
        return _FOREIGN
    if "prompt_embeddings" in stored:
        return "it may belong to a PEFT adapter: name its folder"
    return (
        "bare tensors do not say what they are, nor for which model: if one is soft prompt rows "
        "[n_tokens, width], save it with SoftPrompt(name=…, kind='embedding', tensor=…).save(…)"
    )


def _tensor_entry(name: str, entry: object) -> TensorEntry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        got = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        _refuse_foreign(
            Reason.TENSOR_ENTRY,
            f"tensor {name!r}: its entry is {got!s:.120}; expected an object of dtype, shape and "
            "data_offsets",
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        refuse(
            Reason.DTYPE,
            f"tensor {name!r}: its dtype is {dtype!r:.40}; expected F32 (F16 and BF16 are read "
            "too); convert it to float32 where it was made",
        )
    plausible = _whole_numbers(shape) and all(size <= MAX_TENSOR_BYTES for size in shape)
    if not plausible or len(shape) > 8:
        _refuse_foreign(
            Reason.SHAPE,
            f"tensor {name!r}: its shape is {shape!r:.80}; expected a list of at most 8 whole "
            "numbers, none of them huge",
        )
    if not _whole_numbers(offsets) or len(offsets) != 2:
        _refuse_foreign(
            Reason.OFFSETS,
            f"tensor {name!r}: its data_offsets are {offsets!r:.80}; expected two whole numbers",
        )
    return TensorEntry(dtype, tuple(shape), *offsets)


def _check_offsets(tensors: dict[str, TensorEntry], data_bytes: int) -> None:
    """Checks that tensors follow each other without gaps, up to the end of the file."""
    begin = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        end = begin + ITEM_BYTES[entry.dtype] * math.prod(entry.shape)
        if (entry.begin, entry.end) != (begin, end):
            _refuse_damaged(
                Reason.OFFSETS,
                f"tensor {name!r}: its data_offsets are [{entry.begin}, {entry.end}]; expected "
                f"[{begin}, {end}] for {entry.dtype} of shape {list(entry.shape)}",
            )
        begin = end
    if data_bytes != begin:
        less = "was cut" if data_bytes < begin else "has something after its end"
        refuse(
            Reason.DATA_LENGTH,
            f"the file holds {data_bytes:,} bytes of tensor; expected {begin:,}; the file {less}: "
            "get it again",
        )


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _refuse_damaged(reason: Reason, message: str) -> NoReturn:
    refuse(reason, f"{message}; the file was cut or damaged in transfer: get it again")


def _refuse_foreign(reason: Reason, message: str) -> NoReturn:
    refuse(reason, f"{message}; {_FOREIGN}")
