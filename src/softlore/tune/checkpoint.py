"""Checkpoints: a killed run resumes, and ends with the same prompts, bit for bit.

A checkpoint is one safetensors file, replaced atomically. All draws are a function of seed and
update number, so it holds no random state. Its signature says which run it is of: settings, lore,
company and model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from softlore.disk import TEMPORARY_PREFIX, storage_error, write_atomically
from softlore.errors import ConfigError, StorageError
from softlore.lore import Entry
from softlore.model import FrozenModel
from softlore.model.fingerprint import TOLERANCE, difference
from softlore.prompts import SoftPrompt
from softlore.settings import TrainingConfig
from softlore.tune.finished_prompt import entry_hash

VERSION = 6
SAVING_SHARE = 1 / 20  # of a training's time
STALE_SECONDS = 3600  # older temporary files are of killed runs: a write takes less


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often the progress of a training is saved.

    Attributes:
        path: file to save progress in and to resume from; None: nowhere.
        seconds: between checkpoints, besides those at the start and the end; 0: at each update.
        overwrite: start over if the checkpoint is of another run or can't be read.
    """

    path: Path | str | None = None
    seconds: float = 10.0
    overwrite: bool = False

    @property
    def file(self) -> Path | None:
        return None if self.path is None else Path(self.path)


class CheckpointTimer:
    """Says when it is time for the next checkpoint.

    Args:
        seconds: between two, or longer, so that no more than `SAVING_SHARE` of the time goes into
            them; 0: at each update.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = self._pause = seconds
        self._saved = time.monotonic()

    def run_when_due(self, save: Callable[[], None]) -> None:
        """Calls `save` if it is time."""
        started = time.monotonic()
        if started - self._saved < self._pause:
            return
        save()
        self._saved = time.monotonic()
        if self._seconds:
            self._pause = max(self._seconds, (self._saved - started) / SAVING_SHARE)


# the file --------------------------------------------------------------------------------------


def save_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes tensors and JSON facts to one file, atomically.

    Raises:
        StorageError: the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the folder", path.parent, error) from error
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    metadata = {
        "softlore_checkpoint": str(VERSION),
        "facts": text,
        "hash": content_hash(on_cpu, text),
    }
    write_atomically(path, save(on_cpu, metadata))


def load_checkpoint(
    path: Path, remedy: str = "pass overwrite=True (--overwrite), or delete it"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_checkpoint` wrote. `remedy`: what a message says to do if that fails.

    Raises:
        StorageError: the file is not a complete checkpoint of this version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("softlore_checkpoint") != str(VERSION):
                raise ValueError("not a checkpoint of this version")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["hash"] != content_hash(tensors, metadata["facts"]):
                raise ValueError("its content is damaged")
            return tensors, read_object(metadata["facts"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StorageError(
            f"checkpoint {str(path)!r} can't be read ({error}); expected one written by this "
            f"version of softlore; to start over, {remedy}"
        ) from error


def read_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a file's text. Raises ValueError for anything else, and deep nesting."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    return data


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint that is no longer needed, and temporary files of killed runs."""
    for leftover in path.parent.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with contextlib.suppress(OSError):
        path.parent.rmdir()  # fails if something else is in it


def flat(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors by names that begin with `name/`."""
    return {f"{name}/{key}": tensor for key, tensor in tensors.items()}


def nested(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `name/`, by the rest of their names."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def content_hash(tensors: Mapping[str, Tensor], facts: str) -> str:
    """A hash of what a checkpoint holds: tensors, and facts as JSON."""
    parts = [f"{name} {digest(tensor)}" for name, tensor in sorted(tensors.items())]
    return hashlib.sha256("\n".join([*parts, facts]).encode()).hexdigest()


def digest(tensor: Tensor) -> str:
    """A short hash of a tensor's bytes."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()[:16]


# while a run writes it -------------------------------------------------------------------------


@contextlib.contextmanager
def exclusive_run(path: Path | None) -> Iterator[None]:
    """Locks a checkpoint against other runs. The lock of a killed process is free.

    Raises:
        ConfigError: another run has the lock.
        StorageError: the lock file can't be written.
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


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Defers Ctrl-C to the end of the block, so that all entries are at the same update."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        handler(*received[-1])


# which run it is of ----------------------------------------------------------------------------


def make_signature(
    model: FrozenModel,
    config: TrainingConfig,
    entries: Sequence[Entry],
    company: Mapping[str, SoftPrompt],
    company_entries: Sequence[Entry],
    **more: Any,
) -> dict[str, Any]:
    """All that must be the same for a run to resume from a checkpoint, as JSON."""
    hashes = {entry.name: entry_hash(entry) for entry in company_entries}
    return {
        "settings": signature_settings(config) | more | {"dtype": str(model.dtype)},
        "entries": {entry.name: entry_hash(entry) for entry in entries},
        "company": {n: [digest(p.tensor), hashes.get(n)] for n, p in sorted(company.items())},
        "model": model.fingerprint(config.kind),
    }


def signature_settings(config: TrainingConfig) -> dict[str, Any]:
    """The settings as JSON, the story by its hash."""
    settings = config.to_dict()
    if config.story is not None:
        settings["story"] = hashlib.sha256(config.story.encode()).hexdigest()[:16]
    return settings


def settings_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which settings of two runs differ, in plain words."""
    return [
        f"{name} was {then.get(name)!r:.60} and is {now.get(name)!r:.60}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How the signatures of two runs differ, in plain words; empty if one can resume the other."""
    found = []
    if any(
        name not in then["model"] or difference(sketch, then["model"][name]) > TOLERANCE
        for name, sketch in now["model"].items()
    ):
        found.append("it was on another model")
    found += settings_differences(then["settings"], now["settings"])
    for what, key in (("entry", "entries"), ("company's prompt", "company")):
        for name in sorted({*then[key], *now[key]}):
            before, after = then[key].get(name), now[key].get(name)
            if before != after:
                removed = "is gone" if after is None else "has changed"
                found.append(f"{what} {name!r} {'is new' if before is None else removed}")
    if not found and list(then["entries"]) != list(now["entries"]):
        found.append("the entries stand in another order")
    return found


def find_checkpoint(
    path: Path | None, signature: dict[str, Any], overwrite: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The content of a checkpoint that a run of this signature can resume from; else None.

    Args:
        overwrite: start over if the checkpoint is of another run or can't be read.

    Raises:
        ConfigError: it is of another run.
        StorageError: it can't be read.
    """
    if path is None or not path.exists():
        return None
    try:
        tensors, facts = load_checkpoint(path)
    except StorageError:
        if overwrite:
            return None
        raise
    try:
        differ = differences(facts["signature"], signature)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):  # not by softlore
        differ = ["what it is of cannot be read"]
    if not differ:
        return tensors, facts
    if overwrite:
        return None
    raise ConfigError(
        f"checkpoint {str(path)!r} is of another run ({list_some(differ)}); expected the same; to "
        "resume it, run the command that made it; to start over, pass overwrite=True "
        "(--overwrite)"
    )


def list_some(items: Sequence[str], limit: int = 3, between: str = "; ") -> str:
    """The first of many items, and how many more there are."""
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return between.join(items[:limit]) + more
