"""Reading a prompt from a file of any known format, found out by its bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from softlore.errors import ConfigError, PromptFileError
from softlore.prompts import native
from softlore.prompts.formats import archives, mkultra, mtj, numpy_array, peft
from softlore.prompts.opening import reading
from softlore.prompts.reasons import Reason
from softlore.prompts.sniff import HEAD_BYTES, is_safetensors, looks_like
from softlore.prompts.soft_prompt import SoftPrompt


@dataclass(frozen=True)
class PromptReader:
    """One format that prompts are read from.

    Attributes:
        name: what messages call the format.
        takes: whether a path is of this format, given its first bytes (none for a folder).
        read: reads a folder, and of several tasks' prompts one; None where `parse` reads a file.
        parse: reads a file that is open already, given its size in bytes and its path. Both
            raise PromptFileError or StorageError.
    """

    name: str
    takes: Callable[[Path, bytes], bool]
    read: Callable[[Path, int | None], SoftPrompt] | None = None
    parse: Callable[[BinaryIO, int, Path], SoftPrompt] | None = None


def _is_native(path: Path, head: bytes) -> bool:
    """Safetensors by its bytes, or by its name where the bytes are nothing else (cut files)."""
    return is_safetensors(head) or (path.suffix == native.SUFFIX and not looks_like(head))


# In order; the first one that takes a file reads it. An importer adds itself here.
READERS: list[PromptReader] = [
    PromptReader("softlore", _is_native, parse=native.parse),
    PromptReader("KoboldAI's zip or .mtjsp", archives.takes, parse=archives.parse),
    PromptReader("mtj-softtuner's .mtjsp by torch.save", mtj.takes_legacy, parse=mtj.parse_legacy),
    PromptReader("google-research's .npy", numpy_array.takes, parse=numpy_array.parse),
    PromptReader("mkultra's JSON", mkultra.takes, parse=mkultra.parse),
    PromptReader("PEFT's adapter folder", peft.takes, peft.read_adapter),
]


def load_prompt(path: str | os.PathLike[str], task: int | None = None) -> SoftPrompt:
    """Reads a soft prompt from a file or folder of any format that softlore knows.

    Nothing in it is ever run. A prompt of another program comes without its model's fingerprint.

    Args:
        task: which prompt of a folder that holds those of several tasks, from 0.

    Raises PromptFileError, which says what the file looks like if it is not one of those formats,
    StorageError, and ConfigError for a task that is not there.
    """
    place = Path(path)
    if place.is_dir():
        for reader in READERS:
            if reader.read and reader.takes(place, b""):
                return reader.read(place, task)
        raise _unknown(f"{str(place)!r} is not a soft prompt: it is a folder", Reason.NOT_A_FILE)
    if task is not None:
        raise ConfigError(
            f"task is {task}, but {str(place)!r} is no adapter folder of several tasks; expected "
            "none; leave it out (--task)"
        )
    with reading(place) as (file, size):
        return parse_prompt(file, size, place)


def parse_prompt(file: BinaryIO, size: int, path: Path) -> SoftPrompt:
    """Reads a soft prompt of any format from an open file of `size` bytes, called `path`.

    The file is not opened again, so nothing can be put in its place in between.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if not size and path.suffix != native.SUFFIX:
        raise _unknown("the file is empty", Reason.TOO_SHORT)
    for reader in READERS:
        if reader.parse and reader.takes(path, head):
            return reader.parse(file, size, path)
    likely = looks_like(head)
    found = f"looks like {likely}" if likely else f"begins with {head[:8]!r}, as no known format"
    raise _unknown(f"it is not a soft prompt: it {found}", Reason.OTHER_FORMAT)


def _unknown(found: str, reason: Reason) -> PromptFileError:
    names = ", ".join(reader.name for reader in READERS)
    return PromptFileError(
        f"{found}; expected one of these formats: {names}; have the program that made it convert "
        "it, or train the prompt again",
        reason=reason,
    )
