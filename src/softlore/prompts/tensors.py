"""The tensors of safetensors files: read after their header, written along with it."""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from softlore.disk import write_atomically
from softlore.errors import PromptError, PromptFileError
from softlore.prompts.header import TENSOR, RawHeader
from softlore.prompts.opening import changed
from softlore.prompts.reasons import Reason
from softlore.prompts.sniff import MAX_HEADER_BYTES


def read_tensors(file: BinaryIO, header: RawHeader) -> dict[str, Tensor]:
    """The tensors that follow a header just read, by name, in float32, every value finite.

    Reads as many bytes as the header promised, and no more. Raises PromptFileError.
    """
    data = file.read(header.data_bytes)
    if len(data) != header.data_bytes:
        raise changed()
    try:
        stored = safetensors.torch.load(header.raw + data)
    except safetensors.SafetensorError as error:
        raise PromptFileError(
            f"safetensors refuses the file: {error}; get it again", reason=Reason.HEADER_NOT_JSON
        ) from None
    return {name: check_finite(name, tensor.to(torch.float32)) for name, tensor in stored.items()}


def write_tensor(
    path: str | os.PathLike[str], tensor: Tensor, metadata: dict[str, str], name: str = TENSOR
) -> None:
    """Writes a file of one float32 tensor, whole or not at all; equal content gives equal bytes.

    (safetensors' own writer orders metadata at random.) Keys are sorted; spaces pad the header
    to a multiple of 8 bytes. Raises PromptError for metadata too long for a header, StorageError
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
    """Returns the tensor, or raises PromptFileError if any value of it is NaN or infinite."""
    unfit = int((~torch.isfinite(tensor)).sum())
    if unfit:
        raise PromptFileError(
            f"tensor {name!r}: {unfit} of its {tensor.numel()} values are NaN or infinite; "
            "expected finite numbers; the prompt's training diverged, or the file was damaged: "
            "get another",
            reason=Reason.NOT_FINITE,
        )
    return tensor
