"""The studio's lorebooks: a folder of native YAML files, by the names of the files."""

from __future__ import annotations

import difflib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from softlore.disk import storage_error, write_atomically
from softlore.errors import LoreError, SoftloreError
from softlore.lore import Lorebook, files
from softlore.lore.formats.readers import unpacked
from softlore.lore.formats.writers import WRITERS
from softlore.lore.names import composed, wrong_with_file_name
from softlore.lore.plain import plain
from softlore.lore.yaml_text import write_yaml
from softlore.serve.studio.names import file_name, free_name, legal, name_for

SUFFIX = ".yaml"
OWN_FORMATS = ("yaml", "json")
Stamp = tuple[int, int]


class BookFolder:
    """Lorebooks by name; one object may be used by several threads.

    A book is called as its file is, whatever the file says. Nothing outside of the folder is ever
    read or written, and a file is there whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._read: dict[Path, tuple[Stamp, Lorebook | SoftloreError]] = {}

    def names(self) -> list[str]:
        """Raises StorageError for the folder."""
        return sorted(self._files())

    def path(self, name: str) -> Path:
        """Where a book lies, absolute. Raises LoreError, and 404 for a book that is not there."""
        legal_name, found = legal(name), self._files()
        if legal_name not in found:
            close = difflib.get_close_matches(name, found)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "import it first"
            raise HTTPException(
                404,
                f"there is no lorebook {name!r}; expected one of the studio's {len(found)}; {hint}",
            )
        return found[legal_name]

    def name_of(self, path: str) -> str:
        """The name of the book that lies at a path; empty for any other path, which is not read."""
        for name, found in self._files().items():
            if path in (str(found), str(self.folder / found.name)):
                return name
        return ""

    def stamp(self, name: str) -> Stamp:
        """What differs once the file has changed. Raises as `path` does."""
        return _stamp(self.path(name))

    def get(self, name: str) -> Lorebook:
        """The book; not to be changed. Raises LoreError, and 404 for one that is not there."""
        with self._lock:
            path = self.path(name)
            stamp = _stamp(path)
            known = self._read.get(path)
            if known is None or known[0] != stamp:
                known = stamp, _read(path)
                self._read[path] = known
            if isinstance(known[1], SoftloreError):
                raise known[1]
            return known[1]

    def create(self, name: str) -> Lorebook:
        """An empty book. Raises LoreError, StorageError, and 409 for a name that is taken."""
        with self._lock:
            name = legal(name)
            if name.casefold() in self._taken():
                raise HTTPException(
                    409,
                    f"there is a lorebook {name!r} already; expected another name; choose one, or "
                    "open that lorebook",
                )
            return self._put(Lorebook(name=name, entries=[]))

    def take_in(self, content: bytes, filename: str, name: str = "") -> Lorebook:
        """Imports a book from a file of any format, under a name that is free.

        Raises:
            LoreError: it is no lorebook. StorageError.
        """
        label = file_name(filename) or "the file"
        wanted = name_for(name, filename, "lore")
        book = read_book(content, label, wanted)
        return self.add(book, wanted)

    def add(self, book: Lorebook, wanted: str) -> Lorebook:
        """Keeps a book under the nearest name that is free. Raises LoreError, StorageError."""
        with self._lock:
            name = free_name(wanted, self._taken())
            return self._put(book.model_copy(update={"name": name}))

    def change(self, name: str, how: Callable[[dict[str, Any]], dict[str, Any]]) -> Lorebook:
        """Puts in place of a book's plain data what `how` makes of them.

        Raises LoreError for what is no lorebook, StorageError, and 404.
        """
        with self._lock:
            book = self.get(name)
            return self._put(Lorebook(**{**how(book.data()), "name": legal(name)}))

    def delete(self, name: str) -> None:
        """Raises LoreError, StorageError, and 404."""
        with self._lock:
            path = self.path(name)
            try:
                path.unlink()
            except OSError as error:
                raise storage_error("remove", path, error) from error
            self._read.pop(path, None)

    def _taken(self) -> set[str]:
        return {name.casefold() for name in self._files()}

    def _put(self, book: Lorebook) -> Lorebook:
        """Writes a book, whole or not at all, and only what can be read again."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make the folder", self.folder, error) from error
        try:
            text = write_yaml(plain(book.data()))
        except ValueError as error:
            raise LoreError(f"lorebook {book.name!r} cannot be saved: {error}") from None
        content = text.encode()
        if len(content) > files.MAX_BYTES:
            raise LoreError(
                f"lorebook {book.name!r} would take {len(content) / 2**20:.1f} MiB; expected at "
                f"most {files.MAX_BYTES // 2**20} MiB; make two of it"
            )
        path = self._files().get(book.name) or self.folder.resolve() / (book.name + SUFFIX)
        write_atomically(path, content)
        self._read[path] = _stamp(path), book
        return book

    def _files(self) -> dict[str, Path]:
        """The files by name; one whose name is not legal is left alone."""
        folder = self.folder.resolve()
        try:
            found = [folder / entry.name for entry in os.scandir(folder)]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise storage_error("list", folder, error) from error
        named = {composed(path.stem): path for path in found if path.suffix == SUFFIX}
        return {name: path for name, path in named.items() if not wrong_with_file_name(name)}


def read_book(content: bytes, label: str, name: str) -> Lorebook:
    """A lorebook from the bytes of a file of any format. Raises LoreError."""
    if len(content) > files.MAX_BYTES:
        raise LoreError(
            f"{label} is too large for a lorebook: {len(content) / 2**20:.1f} MiB; expected at "
            f"most {files.MAX_BYTES // 2**20} MiB; split it into several files"
        )
    content, form = unpacked(content, label, files.form_of(Path(label)))
    return Lorebook.from_data(files.parse(content, label, form), name=name, source=label)


def written(book: Lorebook, format: str) -> tuple[bytes, str]:
    """A book in a format, and what the file's name ends in. Raises LoreError for no such format."""
    if format not in OWN_FORMATS and format not in WRITERS:
        raise LoreError(
            f"there is no lorebook format {format!r:.80}; expected one of "
            f"{', '.join([*OWN_FORMATS, *WRITERS])}; choose one"
        )
    own = format in OWN_FORMATS
    suffix = f".{format}" if own else WRITERS[format].suffix
    with _temporary() as folder:
        book.save(folder / f"book{suffix}", None if own else format)
        return (folder / f"book{suffix}").read_bytes(), suffix


def koboldai_lore(book: Lorebook) -> Any:
    """A book as World Info for a KoboldAI save."""
    data = WRITERS["koboldai"].data(book)
    return data["worldinfo"] if isinstance(data, dict) else data


@contextmanager
def _temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="softlore-") as folder:
        yield Path(folder)


def _read(path: Path) -> Lorebook | SoftloreError:
    try:
        return Lorebook.load(path).model_copy(update={"name": composed(path.stem)})
    except SoftloreError as error:
        return error


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise storage_error("read", path, error) from error
    return status.st_mtime_ns, status.st_size
