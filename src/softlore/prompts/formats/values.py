"""Stored numbers as rows of a soft prompt: shapes checked first, then float32, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from softlore.errors import PromptFileError
from softlore.prompts.opening import blaming
from softlore.prompts.reasons import Reason
from softlore.prompts.shapes import check_shape

# 2047 rows × 8192 columns in float32: as much as the largest model of these formats' time takes.
# Reading such a file keeps the whole process below 512 MB.
MAX_BYTES = 64 * 1024 * 1024
Rows = NDArray[np.float32]

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def check_rows(shape: Sequence[int]) -> tuple[int, int]:
    """The sizes of a tensor `[n_tokens, width]`, or of one with a batch axis of 1 before them.

    Raises PromptFileError for any other shape, and for one that takes more than MAX_BYTES.
    """
    rows = list(shape[1:]) if len(shape) == 3 and shape[0] == 1 else list(shape)
    with blaming(Reason.SHAPE):
        check_shape("embedding", rows)
    if 4 * rows[0] * rows[1] > MAX_BYTES:
        raise PromptFileError(
            f"the tensor's shape {rows} takes {4 * rows[0] * rows[1]:,} bytes in float32; expected "
            f"at most {MAX_BYTES:,} from a file of another program; take fewer tokens",
            reason=Reason.SHAPE,
        )
    return rows[0], rows[1]


def to_float32(data: bytes | memoryview, dtype: str) -> Rows:
    """Little-endian numbers of `dtype` (a key of ITEM_BYTES) as float32, widened exactly: `[n]`."""
    if dtype == "F32":
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def check_finite(rows: Rows) -> Rows:
    """Returns the rows, or raises PromptFileError if any number is NaN or infinite."""
    unfit = rows.size - int(np.count_nonzero(np.isfinite(rows)))
    if unfit:
        raise PromptFileError(
            f"{unfit} of the tensor's {rows.size} values are NaN or infinite; expected finite "
            "numbers; the prompt's training diverged, or the file was damaged: get another",
            reason=Reason.NOT_FINITE,
        )
    return rows
