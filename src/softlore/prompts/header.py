"""The header of a safetensors file with one tensor, read strictly before any tensor byte.

The file is `length (8 bytes, little-endian) | header (length bytes of JSON) | tensor bytes`.
Everything here is checked against the size of the open file, so that what is read afterwards
is exactly what the header promised. Errors are PromptFileError; see `reasons.py`.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from softlore.errors import PromptFileError
from softlore.prompts.reasons import Reason
from softlore.prompts.shapes import MAX_TENSOR_BYTES
from softlore.prompts.sniff import MAX_HEADER_BYTES, looks_like
from softlore.prompts.strict_json import parse_json

TENSOR = "prompt"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MAX_FILE_BYTES = 8 + MAX_HEADER_BYTES + MAX_TENSOR_BYTES
_HEADER_DEPTH = 3  # {"prompt": {"shape": [...]}}
_DAMAGED = "the file was cut or damaged on its way: get it again"
_FOREIGN = "it was not made by softlore: import it with its own program's format, or get another"


@dataclass(frozen=True)
class RawHeader:
    """A header found sound as safetensors; what its metadata means is still to be checked.

    Attributes:
        raw: the file's first bytes, the length and the header as they were read.
        dtype: "F32", "F16" or "BF16".
        data_bytes: how many bytes of tensor follow.
    """

    raw: bytes
    dtype: str
    shape: tuple[int, ...]
    data_bytes: int
    metadata: dict[str, str]


def read_raw_header(file: BinaryIO, size: int) -> RawHeader:
    """Reads the header of an open file of `size` bytes; the file is left at the tensor bytes."""
    raw = _read_bytes(file, size)
    data_bytes = size - len(raw)
    header = _parse(raw[8:])
    metadata = _metadata(header)
    dtype, shape, (begin, end) = _tensor_entry(header)
    _check_offsets(dtype, shape, begin, end, data_bytes)
    return RawHeader(raw, dtype, shape, data_bytes, metadata)


def build_header(shape: tuple[int, ...], metadata: dict[str, str]) -> bytes:
    """Length and header of a float32 file, the same bytes for the same metadata.

    (safetensors' own writer orders metadata at random.) Keys are sorted; spaces pad the header
    to a multiple of 8 bytes.
    """
    entry = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * math.prod(shape)]}
    header = {"__metadata__": dict(sorted(metadata.items())), TENSOR: entry}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


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


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    if "__metadata__" not in header:
        raise _wrong(
            Reason.NO_METADATA,
            f"the header has no __metadata__; expected softlore's metadata in it; {_FOREIGN}",
        )
    metadata = header["__metadata__"]
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
    return dict(metadata)


def _tensor_entry(header: dict[str, Any]) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    names = [name for name in header if name != "__metadata__"]
    if not names:
        raise _wrong(
            Reason.NO_TENSOR, f"the file has no tensor; expected one, {TENSOR!r}; {_DAMAGED}"
        )
    if names != [TENSOR]:
        some = ", ".join(f"{name!r:.60}" for name in names[:4]) + (" …" if len(names) > 4 else "")
        raise _wrong(
            Reason.OTHER_TENSORS,
            f"the file has the tensors {some}; expected exactly one, {TENSOR!r}; {_FOREIGN}",
        )
    entry = header[TENSOR]
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise _wrong(
            Reason.TENSOR_ENTRY,
            f"the tensor's entry is {found!s:.120}; expected an object of dtype, shape and "
            f"data_offsets; {_FOREIGN}",
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _wrong(
            Reason.DTYPE,
            f"the tensor's dtype is {dtype!r:.40}; expected F32 (F16 and BF16 are read too); "
            "convert it to float32 where it was made",
        )
    if not _whole_numbers(shape):
        raise _wrong(
            Reason.SHAPE,
            f"the tensor's shape is {shape!r:.80}; expected a list of whole numbers; {_FOREIGN}",
        )
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise _wrong(
            Reason.OFFSETS,
            f"the tensor's data_offsets are {offsets!r:.80}; expected two whole numbers, begin "
            f"and end; {_FOREIGN}",
        )
    return dtype, tuple(shape), (offsets[0], offsets[1])


def _check_offsets(
    dtype: str, shape: tuple[int, ...], begin: int, end: int, data_bytes: int
) -> None:
    if len(shape) > 8 or any(size > MAX_TENSOR_BYTES for size in shape):
        raise _wrong(
            Reason.SHAPE,
            f"the tensor's shape is {shape!r:.80}; expected 2 or 5 axes of sane sizes; {_FOREIGN}",
        )
    expected = ITEM_BYTES[dtype] * math.prod(shape)
    if (begin, end) != (0, expected):
        raise _wrong(
            Reason.OFFSETS,
            f"the tensor's data_offsets are [{begin}, {end}]; expected [0, {expected}] for "
            f"{dtype} of shape {list(shape)}; {_DAMAGED}",
        )
    if data_bytes != expected:
        less = "was cut" if data_bytes < expected else "has something after its end"
        raise _wrong(
            Reason.DATA_LENGTH,
            f"the file holds {data_bytes:,} bytes of tensor; expected {expected:,} for {dtype} of "
            f"shape {list(shape)}; the file {less}: get it again",
        )


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def changed() -> PromptFileError:
    """The error for a file that has fewer bytes than it had when it was opened."""
    return _wrong(
        Reason.CHANGED,
        "the file grew shorter while it was read; expected it to stay as it is; wait until it is "
        "written, and read it again",
    )


def _wrong(reason: Reason, message: str) -> PromptFileError:
    return PromptFileError(message, reason=reason)
