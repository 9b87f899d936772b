"""What a file looks like, by its first bytes. Never opens what it names."""

from __future__ import annotations

import os
import stat
import struct
from typing import BinaryIO

from softlore.errors import PromptFileError, StorageError
from softlore.prompts.reasons import Reason

HEAD_BYTES = 64
MAX_HEADER_BYTES = 1024 * 1024

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive (a KoboldAI soft prompt, .npz, .mtjsp, or torch.save's)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x80\x02", "a pickle (torch.save's older format)"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"GGUF", "a GGUF model (llama.cpp)"),
    (b"\x1f\x8b", "gzip"),
    (b"\x89HDF", "HDF5"),
    (b"version https://git-lfs", "a Git LFS pointer, in place of the file itself"),
)


def looks_like(head: bytes) -> str:
    """Names the format that the first bytes of a file are those of; empty if none is known."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if is_safetensors(head):
        return "safetensors"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return "JSON (such as an mkultra soft prompt or a lorebook)"
    return ""


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors does: a header's plausible length, then `{`."""
    if len(head) < 9:
        return False
    (length,) = struct.unpack_from("<Q", head)
    return head[8:9] == b"{" and 2 <= length <= MAX_HEADER_BYTES


def open_regular(path: str | os.PathLike[str]) -> tuple[BinaryIO, int]:
    """Opens a regular file for reading, once; returns it and its size in bytes.

    What is checked is the open file itself, so nothing can be put in its place in between. A
    pipe or a device is refused without waiting for it. Links are followed. Raises
    PromptFileError, or StorageError where the system refuses.
    """
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    shown = os.fspath(path)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise PromptFileError(
            f"there is no prompt file {shown!r}; expected a softlore file (.safetensors); check "
            "the path, or train the prompt",
            reason=Reason.MISSING,
        ) from None
    except ValueError as error:  # a null character in the path
        raise PromptFileError(
            f"{shown!r} is no path: {error}; check it", reason=Reason.MISSING
        ) from None
    except OSError as error:
        if os.path.isdir(path):  # Windows does not open folders
            raise _not_a_file(shown) from None
        raise StorageError(
            f"could not open {shown!r}: {error.strerror}; check that you may read it"
        ) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise _not_a_file(shown)
    return os.fdopen(handle, "rb"), status.st_size


def _not_a_file(shown: str) -> PromptFileError:
    return PromptFileError(
        f"{shown!r} is not a regular file (it is a folder, a pipe or a device); expected a "
        "softlore file (.safetensors); name the file itself",
        reason=Reason.NOT_A_FILE,
    )
