"""Files that are written whole or not at all, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

from softlore.errors import StorageError

TEMPORARY_PREFIX = ".softlore-"

_MENDS = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "your quota is used up: free some space, or write to another disk",
    errno.EFBIG: "the file is larger than allowed here: write to another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOENT: "make the folder first",
    errno.ENOTDIR: "make the folder first",
    errno.EISDIR: "it is a folder: name a file in it",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Gives a file to write into, which becomes `path` when the block ends without an error.

    It lies in the same folder under a temporary name, is flushed to the disk, then renamed, and
    the folder is flushed. A reader sees the old file or the new one, never a part; if the block
    or the disk fails, the temporary file is removed and the old file stays. A link at `path` is
    replaced, not followed. Raises StorageError where the disk refuses.
    """
    target = Path(path)
    temporary = _beside(target)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, target.stat().st_mode & 0o777)  # those who may read it still may
        os.replace(temporary, target)
        flush_folder(target.parent)
    except OSError as error:
        _remove(temporary)
        if isinstance(error, StorageError):
            raise
        raise storage_error("write", target, error) from error
    except BaseException:
        _remove(temporary)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty folder to fill, which becomes `path` when the block ends without an error.

    It lies beside `path` under a temporary name and is renamed once it is full, so that a reader
    never sees half of it. A folder that is there already is replaced if it holds files of the
    same names and no others; it is away for the moment between two renames. Raises StorageError
    for anything else at `path`, and where the disk refuses.
    """
    target = Path(path)
    temporary, old = _beside(target), _beside(target)
    try:
        temporary.mkdir()
        yield temporary
        flush_folder(temporary)
        if os.path.lexists(target):
            _check_replaceable(target, {entry.name for entry in temporary.iterdir()})
            os.rename(target, old)
        try:
            os.rename(temporary, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise
        flush_folder(target.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error("write", target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def write_atomically(path: str | os.PathLike[str], *parts: bytes | memoryview) -> None:
    """Writes `parts` one after another as the file `path`, whole or not at all."""
    with atomic_file(path) as file:
        for part in parts:
            file.write(part)


def user_folder(name: str, variable: str) -> Path:
    """Where softlore keeps things when no folder is named; it need not exist yet.

    What the environment variable says, else `name` in the user's data folder
    (`~/.local/share/softlore` on Linux).
    """
    if chosen := os.environ.get(variable):
        return Path(chosen).expanduser()
    return Path(platformdirs.user_data_dir("softlore", appauthor=False)) / name


def storage_error(verb: str, path: Path, error: OSError) -> StorageError:
    """The StorageError that says what the system would not do, and how to mend it."""
    why = error.strerror or str(error)
    mend = _MENDS.get(error.errno or 0, "check the disk, and that you may write there")
    return StorageError(f"could not {verb} {str(path)!r}: {why}; {mend}")


def _beside(target: Path) -> Path:
    """A new name in the same folder, so that a rename is all that is left to do."""
    return target.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp"


def _check_replaceable(target: Path, names: set[str]) -> None:
    if target.is_symlink() or not target.is_dir():
        raise StorageError(
            f"could not write the folder {str(target)!r}: something that is no folder is there; "
            "name another path"
        )
    others = sorted({entry.name for entry in target.iterdir()} - names)
    if others:
        raise StorageError(
            f"could not write the folder {str(target)!r}: it holds {others[0]!r:.80}, which would "
            "be lost; name another path"
        )


def flush_folder(folder: Path) -> None:
    """Makes sure that the names in a folder are on the disk, where the system can do that."""
    if os.name == "nt":  # folders cannot be opened there
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:  # some network disks cannot; some folders may be written, not read
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
