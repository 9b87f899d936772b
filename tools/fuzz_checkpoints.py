"""The fuzzer's checkpoints: seeds, how its inputs become files, and how they are read.

Their reader imports all of training, so it is imported where it is called.
"""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

FOLDER = tempfile.TemporaryDirectory()  # checkpoints are read from a disk only
SIGNATURE: dict[str, Any] = {
    "settings": {"lr": 0.1, "story": None},
    "entries": {"Emma": "7f1c"},
    "company": {"dog": ["8c4a", None]},
    "model": {"wte": {"rows": 1, "columns": 2, "values": "AACAPwAAAEA="}},  # 1.0 and 2.0
}
ROWS = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def checkpoints() -> list[bytes]:
    """Checkpoints of the same run and of others, with tensors of several dtypes."""
    runs = [{"signature": SIGNATURE}, {"signature": {**SIGNATURE, "entries": {}}}, {}]
    file = safetensors.torch.save({"a/rows": ROWS, "a/half": ROWS.half(), "n": torch.tensor(3)})
    facts = [json.dumps(run | {"step": 3}).encode() for run in runs]
    return [struct.pack("<H", len(one)) + one + file for one in facts]


def checkpoint_file(data: bytes) -> Path:
    """A checkpoint of its facts' length (2 bytes), they, and a tensor file; with the right hash."""
    from softlore.tune.checkpoint import VERSION, content_hash

    length = int.from_bytes(data[:2], "little")
    facts, file = data[2 : 2 + length].decode(errors="replace"), data[2 + length :]
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        size = int.from_bytes(file[:8], "little")
        header = json.loads(file[8 : 8 + size])
        metadata = {"softlore_checkpoint": str(VERSION), "facts": facts, "hash": ""}
        with contextlib.suppress(Exception):  # the reader's own attempt at it is what is tested
            metadata["hash"] = content_hash(safetensors.torch.load(file), facts)
        head = json.dumps({**header, "__metadata__": metadata}).encode()
        file = struct.pack("<Q", len(head)) + head + file[8 + size :]
    path = Path(FOLDER.name) / "checkpoint"
    path.write_bytes(file)
    return path


def read_checkpoint(path: Path) -> Any:
    """Reads a checkpoint, and compares its run with another."""
    from softlore.tune.checkpoint import find_checkpoint

    return find_checkpoint(path, SIGNATURE)
