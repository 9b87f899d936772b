"""Atomic writes of files and folders, and errors of the disk that name the fix."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from softlore.errors import StorageError

TEMPORARY_PREFIX = ".softlore-"

_FIXES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "your quota is used up: free some space, or write to another disk",
    errno.EFBIG: "the file is larger than allowed here: write to another disk",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder you may write to"),
    errno.ENOENT: "make the folder first",
    errno.ENOTDIR: "a file is in the place of a folder: choose another folder",
    errno.EISDIR: "it is a folder: name a file in it",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_atomically(path: str | os.PathLike[str], *parts: bytes | memoryview) -> None:
    """Writes the concatenated `parts` as the file `path`, completely or not at all.

    They are written to a temporary file in the same folder, which is flushed to the disk and then
    renamed to `path`. Readers see the old file or the new one; if the write fails, the old file
    stays. A symbolic link at `path` is replaced, not followed. Raises StorageError on failure.
    """
    target = Path(path)
    temporary = temporary_path(target)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, target.stat().st_mode & 0o777)  # permissions stay
        os.replace(temporary, target)
        flush_folder(target.parent)
    except OSError as error:
        raise storage_error("write", target, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder to fill, which becomes `path` when the block ends without an error.

    It is made beside `path` under a temporary name and renamed when it is complete. An existing
    folder is replaced if it holds files of the same names and no others; between two renames it
    is missing. Raises StorageError if something else is at `path`, or on failure.
    """
    target = Path(path)
    temporary, old = temporary_path(target), temporary_path(target)
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
    except StorageError:
        raise
    except OSError as error:
        raise storage_error("write", target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def temporary_path(target: Path) -> Path:
    """Returns a new name in the same folder, from which a file can be renamed to `target`."""
    return target.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp"


def flush_folder(folder: Path) -> None:
    """Flushes a folder's names to the disk, where the system can do that."""
    if os.name == "nt":  # folders cannot be opened there
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:  # some network disks cannot; some folders are not readable
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def user_folder(name: str, variable: str) -> Path:
    """Returns the folder `name` in the user's data folder (`~/.local/share/softlore` on Linux).

    An environment `variable` may name another folder. The folder need not exist yet.
    """
    if folder := os.environ.get(variable):
        return Path(folder).expanduser()
    return Path(platformdirs.user_data_dir("softlore", appauthor=False)) / name


def storage_error(verb: str, path: Path, error: OSError) -> StorageError:
    """Returns the StorageError for a system error: what could not be done, why, and the fix."""
    why = error.strerror or str(error)
    fix = _FIXES.get(error.errno or 0, "check the disk, and that you may write there")
    return StorageError(f"could not {verb} {str(path)!r}: {why}; {fix}")


def _check_replaceable(target: Path, names: set[str]) -> None:
    problem = ""
    if target.is_symlink() or not target.is_dir():
        problem = "something that is not a folder is there"
    elif others := sorted({entry.name for entry in target.iterdir()} - names):
        problem = f"it holds {others[0]!r:.80}, which would be lost"
    if problem:
        message = f"could not write the folder {str(target)!r}: {problem}; name another path"
        raise StorageError(message)
