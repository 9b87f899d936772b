"""Checkpoints: everything that a killed run needs to end with the bit-same prompts.

One safetensors file, replaced atomically. All draws are a function of seed and update number, so
no random state is kept; the choices made at the start (tree form, micro-batch) are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from softlore.disk import TEMPORARY_PREFIX, storage_error, write_atomically
from softlore.errors import ConfigError, StorageError

VERSION = 1
STALE_SECONDS = 3600  # nobody writes a checkpoint for so long


def save_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes tensors and JSON facts to one file, whole or not at all.

    Raises:
        StorageError: when the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the folder", path.parent, error) from error
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = json.dumps(facts)
    metadata = {"softlore_checkpoint": str(VERSION), "facts": told, "hash": _hash(kept, told)}
    write_atomically(path, save(kept, metadata))


def load_checkpoint(
    path: Path, anew: str = "say so with again=True (--again), or delete it"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_checkpoint` wrote. `anew`: what to do where it can't be read.

    Raises:
        StorageError: when the file is not a whole checkpoint of this version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("softlore_checkpoint") != str(VERSION):
                raise ValueError("not a checkpoint of this version")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["hash"] != _hash(tensors, metadata["facts"]):
                raise ValueError("its content is damaged")
            return tensors, json.loads(metadata["facts"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StorageError(
            f"checkpoint {str(path)!r} can't be read ({error}); expected one written by this "
            f"version of softlore; to begin anew, {anew}"
        ) from error


@contextlib.contextmanager
def only_run(path: Path | None) -> Iterator[None]:
    """Keeps other runs from a checkpoint to the end of the block; that of a killed run is free.

    Raises:
        ConfigError: another run is at it.
        StorageError: when the disk refuses.
    """
    if path is None:
        yield
        return
    lock = FileLock(path.with_name(path.name + ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"another run is training into {str(path.parent.parent)!r}; expected one at a time; "
            "wait for it, stop it, or name another folder"
        ) from None
    except OSError as error:
        raise storage_error("lock", path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint that is no longer needed, and what killed runs have left beside it."""
    for leftover in path.parent.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with contextlib.suppress(OSError):
        path.parent.rmdir()  # unless something else is in it


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C off to the end of the block, so that all entries are at the same update."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[Any] = []
    signal.signal(signal.SIGINT, lambda *what: came.append(what))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[-1])


def nested(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors filed under `name/`."""
    head = f"{name}/"
    return {key.removeprefix(head): t for key, t in tensors.items() if key.startswith(head)}


def _hash(tensors: dict[str, Tensor], facts: str) -> str:
    parts = [f"{name} {digest(tensor)}" for name, tensor in sorted(tensors.items())]
    return hashlib.sha256("\n".join([*parts, facts]).encode()).hexdigest()


def digest(tensor: Tensor) -> str:
    """A short hash of a tensor's bytes, to tell whether something is what it was."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()[:16]
