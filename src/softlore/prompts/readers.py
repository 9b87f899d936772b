"""Reading a prompt from a file of any known format, found out by its bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from softlore.errors import PromptFileError
from softlore.prompts import native
from softlore.prompts.reasons import Reason
from softlore.prompts.sniff import HEAD_BYTES, is_safetensors, looks_like, open_regular
from softlore.prompts.soft_prompt import SoftPrompt


@dataclass(frozen=True)
class Reader:
    """One format that prompts are read from.

    Attributes:
        name: what messages call the format.
        takes: whether a path is of this format, given its first bytes (none for a folder).
        read: reads it; raises PromptFileError or StorageError.
    """

    name: str
    takes: Callable[[Path, bytes], bool]
    read: Callable[[Path], SoftPrompt]


def _is_native(path: Path, head: bytes) -> bool:
    """Safetensors by its bytes, or by its name where the bytes are nothing else (cut files)."""
    return is_safetensors(head) or (path.suffix == native.SUFFIX and not looks_like(head))


# In order; the first one that takes a file reads it. An importer adds itself here.
READERS: list[Reader] = [
    Reader("softlore", _is_native, native.read_prompt),
]


def load_prompt(path: str | os.PathLike[str]) -> SoftPrompt:
    """Reads a soft prompt from a file of any format that softlore knows.

    Nothing in the file is ever run. Raises PromptFileError, which names the format that the file
    looks like if it is not one of those, and StorageError.
    """
    place = Path(path)
    folder = place.is_dir()
    head = b"" if folder else _head(place)
    for reader in READERS:
        if reader.takes(place, head):
            return reader.read(place)
    if folder:
        likely = "is a folder"
    elif looks_like(head):
        likely = f"looks like {looks_like(head)}"
    else:
        likely = f"begins with {head[:8]!r}, as no known format does"
    raise PromptFileError(
        f"{str(place)!r} is not a softlore file: it {likely}; expected one of these formats: "
        f"{', '.join(reader.name for reader in READERS)}; have the program that made it convert "
        "it, or train the prompt again",
        reason=Reason.NOT_A_FILE if folder else Reason.OTHER_FORMAT,
    )


def _head(path: Path) -> bytes:
    file, _ = open_regular(path)
    with file:
        return file.read(HEAD_BYTES)
