"""The header of a safetensors file of known tensors, read strictly before any tensor byte.

The file is `length (8 bytes, little-endian) | header (length bytes of JSON) | tensor bytes`.
Everything here is checked against the size of the open file, so that what is read afterwards
is exactly what the header promised. Errors are PromptFileError; see `reasons.py`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from softlore.errors import PromptFileError
from softlore.prompts.opening import changed
from softlore.prompts.reasons import Reason
from softlore.prompts.shapes import MAX_TENSOR_BYTES
from softlore.prompts.sniff import MAX_HEADER_BYTES, looks_like
from softlore.prompts.strict_json import parse_json

TENSOR = "prompt"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MAX_FILE_BYTES = 8 + MAX_HEADER_BYTES + MAX_TENSOR_BYTES
_HEADER_DEPTH = 3  # {"prompt": {"shape": [...]}}
_DAMAGED = "the file was cut or damaged on its way: get it again"
_FOREIGN = "another program made or changed it: get it again, or in a format that is read here"


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of one tensor.

    Attributes:
        dtype: "F32", "F16" or "BF16".
        begin, end: where its bytes lie, counted from the header's end.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class RawHeader:
    """A header found sound as safetensors; what its metadata means is still to be checked.

    Attributes:
        raw: the file's first bytes, the length and the header as they were read.
        tensors: by name, those that were expected.
        data_bytes: how many bytes of tensors follow.
        metadata: None where the file has none.
    """

    raw: bytes
    tensors: dict[str, TensorEntry]
    data_bytes: int
    metadata: dict[str, str] | None


def read_raw_header(file: BinaryIO, size: int, names: Sequence[str] = (TENSOR,)) -> RawHeader:
    """Reads the header of an open file of `size` bytes; the file is left at the tensor bytes.

    `names` are the tensors that the file must hold: these and no others.
    """
    raw = _read_bytes(file, size)
    data_bytes = size - len(raw)
    header = _parse(raw[8:])
    metadata = header.get("__metadata__")
    if "__metadata__" in header:
        check_metadata(metadata)
    _check_names([name for name in header if name != "__metadata__"], names)
    tensors = {name: _tensor_entry(name, header[name]) for name in names}
    _check_offsets(tensors, data_bytes)
    return RawHeader(raw, tensors, data_bytes, metadata)


def _read_bytes(file: BinaryIO, size: int) -> bytes:
    if size > MAX_FILE_BYTES:
        raise _wrong(
            Reason.TOO_LARGE,
            f"the file has {size:,} bytes; expected at most {MAX_FILE_BYTES:,}; {_FOREIGN}",
        )
    head = file.read(64)
    if len(head) < 10:
        raise _wrong(
            Reason.TOO_SHORT,
            f"the file has {len(head)} bytes; expected at least 10, a length and a header; "
            f"{_DAMAGED}",
        )
    (length,) = struct.unpack_from("<Q", head)
    if length > MAX_HEADER_BYTES:
        likely = looks_like(head)
        raise _wrong(
            Reason.OTHER_FORMAT if likely else Reason.HEADER_TOO_LARGE,
            f"the header is said to have {length:,} bytes; expected at most {MAX_HEADER_BYTES:,}; "
            + (f"the file looks like {likely}, which is no softlore file" if likely else _FOREIGN),
        )
    if 8 + length > size:
        raise _wrong(
            Reason.HEADER_CUT,
            f"the header is said to have {length:,} bytes, but the file ends after {size - 8:,} "
            f"of them; expected a whole header; {_DAMAGED}",
        )
    file.seek(8)
    text = file.read(length)
    if len(text) != length:
        raise changed()
    return head[:8] + text


def _parse(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise _wrong(
            Reason.HEADER_START, f"the header begins with {raw[:1]!r}; expected b'{{'; {_FOREIGN}"
        )
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise _wrong(
            Reason.HEADER_NOT_UTF8,
            f"byte {error.start} of the header is not UTF-8; expected UTF-8; {_DAMAGED}",
        ) from None
    header = parse_json(text, "the header", _HEADER_DEPTH, Reason.HEADER_NOT_JSON)
    assert isinstance(header, dict)  # it begins with a brace
    return header


def check_metadata(metadata: object) -> None:
    """Raises PromptFileError unless it is an object of strings that UTF-8 can hold."""
    values = metadata.items() if isinstance(metadata, dict) else [("__metadata__", metadata)]
    for key, value in values:
        if not isinstance(value, str):
            raise _wrong(
                Reason.METADATA_TYPE,
                f"metadata {key!r:.80} is {type(value).__name__}; expected strings only, nested "
                f"values as JSON inside them; {_FOREIGN}",
            )
        try:
            (key + value).encode()
        except UnicodeEncodeError:
            raise _wrong(
                Reason.METADATA_VALUE,
                f"metadata {key!r:.80} holds half a character (a lone surrogate); expected "
                f"Unicode text; {_DAMAGED}",
            ) from None


def _check_names(found: Sequence[str], names: Sequence[str]) -> None:
    expected = "one, " if len(names) == 1 else "these, "
    expected += ", ".join(map(repr, names))
    if not found:
        raise _wrong(
            Reason.NO_TENSOR, f"the file has no tensor; expected exactly {expected}; {_DAMAGED}"
        )
    if sorted(found) != sorted(names):
        some = ", ".join(f"{name!r:.60}" for name in found[:4]) + (" …" if len(found) > 4 else "")
        raise _wrong(
            Reason.OTHER_TENSORS,
            f"the file has the tensors {some}; expected exactly {expected}; " + _mend(found, names),
        )


def _mend(found: Sequence[str], names: Sequence[str]) -> str:
    """What to do with tensors of other names."""
    if tuple(names) != (TENSOR,):
        return _FOREIGN
    if "prompt_embeddings" in found:
        return "it may be of a PEFT adapter: name the folder it lies in"
    return (
        "bare tensors do not say what they are, nor for which model: if one is soft prompt rows "
        "[n_tokens, width], save it with SoftPrompt(name=…, kind='embedding', tensor=…).save(…)"
    )


def _tensor_entry(name: str, entry: object) -> TensorEntry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise _wrong(
            Reason.TENSOR_ENTRY,
            f"tensor {name!r}: its entry is {found!s:.120}; expected an object of dtype, shape and "
            f"data_offsets; {_FOREIGN}",
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _wrong(
            Reason.DTYPE,
            f"tensor {name!r}: its dtype is {dtype!r:.40}; expected F32 (F16 and BF16 are read "
            "too); convert it to float32 where it was made",
        )
    if not _whole_numbers(shape):
        raise _wrong(
            Reason.SHAPE,
            f"tensor {name!r}: its shape is {shape!r:.80}; expected a list of whole numbers; "
            f"{_FOREIGN}",
        )
    if len(shape) > 8 or any(size > MAX_TENSOR_BYTES for size in shape):
        raise _wrong(
            Reason.SHAPE,
            f"tensor {name!r}: its shape is {shape!r:.80}; expected at most 8 axes of sane sizes; "
            f"{_FOREIGN}",
        )
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise _wrong(
            Reason.OFFSETS,
            f"tensor {name!r}: its data_offsets are {offsets!r:.80}; expected two whole numbers, "
            f"begin and end; {_FOREIGN}",
        )
    return TensorEntry(dtype, tuple(shape), *offsets)


def _check_offsets(tensors: dict[str, TensorEntry], data_bytes: int) -> None:
    """Each tensor begins where the one before it ends, and the last ends with the file."""
    begin = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        end = begin + ITEM_BYTES[entry.dtype] * math.prod(entry.shape)
        if (entry.begin, entry.end) != (begin, end):
            raise _wrong(
                Reason.OFFSETS,
                f"tensor {name!r}: its data_offsets are [{entry.begin}, {entry.end}]; expected "
                f"[{begin}, {end}] for {entry.dtype} of shape {list(entry.shape)}; {_DAMAGED}",
            )
        begin = end
    if data_bytes != begin:
        less = "was cut" if data_bytes < begin else "has something after its end"
        raise _wrong(
            Reason.DATA_LENGTH,
            f"the file holds {data_bytes:,} bytes of tensor; expected {begin:,}; the file {less}: "
            "get it again",
        )


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _wrong(reason: Reason, message: str) -> PromptFileError:
    return PromptFileError(message, reason=reason)
