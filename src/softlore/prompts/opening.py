"""Opens prompt files once, recognizes their format, and parses JSON strictly."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from softlore.errors import PromptFileError, StorageError
from softlore.prompts.reasons import Reason, refuse

START_BYTES = 64
MAX_HEADER_BYTES = 1024 * 1024  # of safetensors

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
# A string (also an unterminated one, so that the search stays linear), or a bracket.
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True)
class PromptFile:
    """A file or folder that may hold a soft prompt.

    A file is opened once and read through `stream` alone, so that nothing can replace it between
    the checks and the reading.

    Attributes:
        path: its name; only ever used for messages and for the prompt's name, or to open the files
            of a folder.
        stream: the open file; empty for a folder.
        size: bytes.
        start: the first `START_BYTES`.
        is_folder: whether it is a folder.
        task: index of the prompt in a folder with several tasks, or None.
    """

    path: Path
    stream: BinaryIO
    size: int
    start: bytes
    is_folder: bool = False
    task: int | None = None

    @classmethod
    def of_stream(cls, stream: BinaryIO, size: int, path: Path) -> PromptFile:
        """An open file of `size` bytes; it is left at its beginning."""
        stream.seek(0)
        start = stream.read(START_BYTES)
        stream.seek(0)
        return cls(path, stream, size, start)

    @classmethod
    def of_bytes(cls, data: bytes, path: Path) -> PromptFile:
        """The content of a file that is in memory."""
        return cls.of_stream(io.BytesIO(data), len(data), path)

    @classmethod
    def of_folder(cls, path: Path, task: int | None = None) -> PromptFile:
        return cls(path, io.BytesIO(), 0, b"", is_folder=True, task=task)

    def read_all(self, max_bytes: int, what: str) -> bytearray:
        """All bytes, or PromptFileError where there are more than `max_bytes`.

        The bytes are writable, so that a tensor can be made of them without a copy.
        """
        if self.size > max_bytes:
            refuse(
                Reason.TOO_LARGE,
                f"the file has {self.size:,} bytes; expected at most {max_bytes:,} for {what}; it "
                "holds something else, or more than one soft prompt: extract the prompt",
            )
        self.stream.seek(0)
        data = bytearray(self.size)
        if self.stream.readinto(data) != self.size:  # type: ignore[attr-defined]
            raise changed()
        return data


@contextlib.contextmanager
def open_prompt(path: str | os.PathLike[str]) -> Iterator[PromptFile]:
    """Opens a file for reading; errors raised inside name the file.

    Raises PromptFileError, or StorageError where the system refuses.
    """
    stream, size = _open_regular(path)
    with stream:
        try:
            yield PromptFile.of_stream(stream, size, Path(path))
        except PromptFileError as error:
            named = f"cannot read the prompt file {os.fspath(path)!r}: {error}"
            raise PromptFileError(named, reason=error.reason) from None
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"could not read {os.fspath(path)!r}: {error.strerror}; check the disk"
            ) from error


def _open_regular(path: str | os.PathLike[str]) -> tuple[BinaryIO, int]:
    """Opens a regular file; returns it and its size in bytes.

    What is checked is the open file itself. A pipe or a device is rejected without waiting for it.
    Links are followed.
    """
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    shown = os.fspath(path)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        refuse(
            Reason.MISSING,
            f"there is no prompt file {shown!r}; expected a softlore file (.safetensors); check "
            "the path, or train the prompt",
        )
    except ValueError as error:  # a null character in the path
        refuse(Reason.MISSING, f"{shown!r} is no path: {error}; check it")
    except OSError as error:
        if os.path.isdir(path):  # Windows does not open folders
            _refuse_special(shown)
        raise StorageError(
            f"could not open {shown!r}: {error.strerror}; check that you may read it"
        ) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        _refuse_special(shown)
    return os.fdopen(handle, "rb"), status.st_size


def _refuse_special(shown: str) -> NoReturn:
    refuse(
        Reason.NOT_A_FILE,
        f"{shown!r} is not a regular file (it is a folder, a pipe or a device); expected a "
        "softlore file (.safetensors); name the file itself",
    )


def changed() -> PromptFileError:
    """The error for a file that has become shorter since it was opened."""
    return PromptFileError(
        "the file became shorter while it was read; expected it to stay as it is; wait until it is "
        "written, and read it again",
        reason=Reason.CHANGED,
    )


def looks_like(start: bytes) -> str:
    """The name of the format that these first bytes are those of; empty if none is known."""
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return name
    if is_safetensors(start):
        return "safetensors"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return "JSON (such as an mkultra soft prompt or a lorebook)"
    return ""


def is_safetensors(start: bytes) -> bool:
    """Whether a file begins as safetensors does: a header's plausible length, then `{`."""
    if len(start) < 9:
        return False
    (length,) = struct.unpack_from("<Q", start)
    return start[8:9] == b"{" and 2 <= length <= MAX_HEADER_BYTES


def parse_json(text: str, what: str, max_depth: int, not_json: Reason) -> Any:
    """Parses JSON without duplicate keys, NaN or deep nesting.

    The depth is measured before parsing, so that a hostile file cannot exhaust the stack.

    Args:
        what: the name of `text` in messages.
        max_depth: of nested lists and objects.
        not_json: the reason given for text that is not JSON.

    Raises PromptFileError.
    """
    # Where there are not that many brackets, they need not be looked at one by one.
    brackets = text.count("[") + text.count("{")
    if brackets > max_depth and (depth := _depth(text)) > max_depth:
        refuse(
            Reason.TOO_DEEP,
            f"{what} is nested {depth} deep; expected at most {max_depth}; the file was not made "
            "by softlore, or was damaged: get it again",
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            refuse(
                Reason.DUPLICATE_KEY,
                f"{what} has the key {twice!r:.80} twice; expected each once, since readers would "
                "disagree on which one holds; get the file again from where it was made",
            )
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=_refuse_constant)
    except PromptFileError:
        raise
    except ValueError as error:
        message = (
            f"{what} is not JSON: {error!s:.200}; expected JSON; the file was damaged, or is "
            "of another format: get it again"
        )
        raise PromptFileError(message, reason=not_json) from None


def decode_utf8(data: bytes | bytearray, what: str) -> str:
    """Text in UTF-8, with or without a byte order mark. Raises PromptFileError.

    Args:
        what: the name of `data` in messages.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = (
            f"byte {error.start} of {what} is not UTF-8; expected UTF-8; save it again as such"
        )
        raise PromptFileError(message, reason=Reason.NOT_UTF8) from None


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in _JSON_TOKEN.finditer(text):
        if match[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "]}":
            depth -= 1
    return deepest


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
