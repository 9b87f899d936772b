"""A prompt file opened once, and errors that name it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from softlore.errors import PromptError, PromptFileError, StorageError
from softlore.prompts.reasons import Reason
from softlore.prompts.sniff import open_regular


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size in bytes; errors raised inside name the file."""
    file, size = open_regular(path)
    with file:
        try:
            yield file, size
        except PromptFileError as error:
            named = f"cannot read the prompt file {os.fspath(path)!r}: {error}"
            raise PromptFileError(named, reason=error.reason) from None
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"could not read {os.fspath(path)!r}: {error.strerror}; check the disk"
            ) from error


@contextlib.contextmanager
def blaming(reason: Reason) -> Iterator[None]:
    """Turns a PromptError about a value into one about the file that holds it."""
    try:
        yield
    except PromptError as error:
        known = error.reason if isinstance(error, PromptFileError) else reason
        raise PromptFileError(str(error), reason=known) from None


def read_all(file: BinaryIO, size: int, most: int, what: str) -> bytearray:
    """The whole of an open file of `size` bytes, or PromptFileError if that is above `most`.

    The bytes may be written to, so that a tensor can be made of them without a copy.
    """
    if size > most:
        raise PromptFileError(
            f"the file has {size:,} bytes; expected at most {most:,} for {what}; it holds "
            "something else, or far more than one soft prompt: take the prompt out of it",
            reason=Reason.TOO_LARGE,
        )
    file.seek(0)
    data = bytearray(size)
    if file.readinto(data) != size:  # type: ignore[attr-defined]
        raise changed()
    return data


def changed() -> PromptFileError:
    """The error for a file that has fewer bytes than it had when it was opened."""
    return PromptFileError(
        "the file grew shorter while it was read; expected it to stay as it is; wait until it is "
        "written, and read it again",
        reason=Reason.CHANGED,
    )


def refuse(reason: Reason, message: str) -> NoReturn:
    """Raises PromptFileError."""
    raise PromptFileError(message, reason=reason)
