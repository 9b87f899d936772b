"""NumPy's .npy files of rows (google-research), parsed without NumPy's loader.

The file is `\\x93NUMPY`, a version (2 bytes), the header's length (2 bytes, or 4 from version 2
on), the header, then the numbers. The header is the text of a Python dict; here it is compared
with the form that NumPy writes, and never evaluated.
"""

from __future__ import annotations

import re

import numpy as np

from softlore.prompts.formats.rows import (
    ITEM_BYTES,
    MAX_BYTES,
    Rows,
    check_finite,
    check_rows,
    import_prompt,
    to_float32,
)
from softlore.prompts.opening import PromptFile
from softlore.prompts.reasons import Reason, refuse
from softlore.prompts.soft_prompt import SoftPrompt

NAME = "npy"
MAGIC = b"\x93NUMPY"
MAX_HEADER = 1024
MAX_NPY_BYTES = 12 + MAX_HEADER + MAX_BYTES

_HEADER = re.compile(
    rb"\{'descr': '([^'\\]{1,32})', 'fortran_order': (True|False), "
    rb"'shape': \((\d{1,12}(?:, \d{1,12}){0,7},?)?\),? *\} *\n?"
)
# bfloat16 has no name in NumPy: such arrays are of two raw bytes a number.
_DTYPES = {"<f4": "F32", "<f2": "F16", "|V2": "BF16", "<V2": "BF16", "=V2": "BF16", "V2": "BF16"}
_DAMAGED = "the file was cut or damaged in transfer: get it again"


def matches(file: PromptFile) -> bool:
    """Whether it begins with NumPy's magic number."""
    return file.start.startswith(MAGIC)


def read(file: PromptFile) -> SoftPrompt:
    """Reads an .npy file of rows. Raises PromptFileError."""
    data = file.read_all(MAX_NPY_BYTES, "a NumPy array of one soft prompt")
    return import_prompt(parse_npy(data), NAME, (file.path.stem,))


def parse_npy(data: bytes | bytearray) -> Rows:
    """The rows `[n_tokens, width]` in the bytes of an .npy file, finite.

    Reads float32, float16 and bfloat16 (two raw bytes a number). Raises PromptFileError.
    """
    header, body = _split(data)
    match = _HEADER.fullmatch(header)
    if match is None:
        refuse(
            Reason.NPY_HEADER,
            f"the array's header is {header!r:.120}; expected one as NumPy writes it, of descr, "
            "fortran_order and shape; save it again with numpy.save, as float32",
        )
    descr, fortran, sizes = match[1].decode("latin-1"), match[2] == b"True", match[3] or b""
    if descr not in _DTYPES:
        objects = "; an array of objects is a pickle, which could run code" if "O" in descr else ""
        refuse(
            Reason.DTYPE,
            f"the array's dtype is {descr!r}; expected '<f4' ('<f2', and 'V2' for bfloat16, are "
            f"read too){objects}; save it again as float32",
        )
    shape = check_rows([int(size) for size in sizes.split(b",") if size.strip()])
    dtype = _DTYPES[descr]
    expected = ITEM_BYTES[dtype] * shape[0] * shape[1]
    if len(body) != expected:
        less = "was cut" if len(body) < expected else "has something after its end"
        refuse(
            Reason.DATA_LENGTH,
            f"the array holds {len(body):,} bytes of numbers; expected {expected:,} for {descr!r} "
            f"of shape {list(shape)}; the file {less}: get it again",
        )
    rows = check_finite(to_float32(body, dtype).reshape(shape, order="F" if fortran else "C"))
    return np.ascontiguousarray(rows)


def to_npy(rows: Rows) -> bytes:
    """The bytes of an .npy file (version 1) of float32 `[n_tokens, width]`."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {rows.shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"  # the numbers begin at a multiple of 64
    head = MAGIC + bytes([1, 0]) + len(text).to_bytes(2, "little")
    return head + text + rows.astype("<f4", copy=False).tobytes()


def _split(data: bytes | bytearray) -> tuple[bytes, memoryview]:
    """The header's text, and the bytes of the numbers."""
    version = bytes(data[6:7])
    width = {b"\1": 2, b"\2": 4, b"\3": 4}.get(version, 0)
    if not data.startswith(MAGIC) or len(data) < 12 or not width:
        refuse(
            Reason.NPY_HEADER,
            f"the array begins with {bytes(data[:8])!r}; expected NumPy's mark and version 1, 2 "
            f"or 3; {_DAMAGED}",
        )
    length = int.from_bytes(data[8 : 8 + width], "little")
    if length > MAX_HEADER or 8 + width + length > len(data):
        refuse(
            Reason.NPY_HEADER,
            f"the array's header is said to have {length:,} bytes, in a file of {len(data):,}; "
            f"expected at most {MAX_HEADER:,}, all within it; {_DAMAGED}",
        )
    return bytes(data[8 + width : 8 + width + length]), memoryview(data)[8 + width + length :]
