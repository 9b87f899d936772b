"""The studio's lorebooks: a folder of native YAML files, by the names of the files."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from softlore.disk import storage_error, write_atomically
from softlore.errors import LoreError, SoftloreError
from softlore.lore import Lorebook, files
from softlore.lore.formats.registry import EXPORTERS
from softlore.lore.plain import plain, write_yaml
from softlore.serve.studio.files import base_name, free_name, name_for
from softlore.story.library import NamedFiles

SUFFIX = ".yaml"
NATIVE_FORMATS = ("yaml", "json")
Stamp = tuple[int, int]


class BookFolder:
    """Lorebooks by name. Its methods may be called from several threads.

    A book has the name of its file, whatever the file says. Nothing outside of the folder is read
    or written, and files are replaced atomically. Every method raises StorageError if the folder
    or a file cannot be used; those that take the name of a book raise LoreError for an illegal
    name and HTTPException 404 where there is no such book.

    Args:
        opened: a book outside of the folder that is opened as well. A YAML file is used where it
            is; of any other, which softlore may not be able to write, the folder gets a copy.

    Attributes:
        opened: the name of that book; empty for none.
        on_save: called with each book that is saved.
    """

    def __init__(self, folder: Path, opened: tuple[Path, Lorebook] | None = None) -> None:
        self.folder = folder
        self.opened = ""
        self.on_save: Callable[[Lorebook], None] | None = None
        self._outside: dict[str, Path] = {}
        self._files = NamedFiles(folder.resolve(), SUFFIX, "lorebook", LoreError, _missing)
        self._lock = threading.RLock()
        self._cache: dict[Path, tuple[Stamp, Lorebook | SoftloreError]] = {}
        if opened is not None:
            self._open(*opened)

    def names(self) -> list[str]:
        return sorted(self._paths())

    def path(self, name: str) -> Path:
        """The absolute path of a book's file."""
        return self._outside.get(self._files.legal(name)) or self._files.find(name)

    def name_of(self, path: str) -> str:
        """The name of the book at a path; empty for any other path, which is not read."""
        for name, known in self._paths().items():
            if path in (str(known), str(self.folder / known.name)):
                return name
        return ""

    def stamp(self, name: str) -> Stamp:
        """Modification time and size of a book's file."""
        return _stamp(self.path(name))

    def get(self, name: str) -> Lorebook:
        """A book, shared and not to be changed. Raises LoreError for an invalid file."""
        with self._lock:
            path = self.path(name)
            stamp = _stamp(path)
            cached = self._cache.get(path)
            if cached is None or cached[0] != stamp:
                cached = self._cache[path] = stamp, _load(path, self._files.legal(name))
            if isinstance(cached[1], SoftloreError):
                raise cached[1]
            return cached[1]

    def create(self, name: str) -> Lorebook:
        """Creates an empty book. Raises HTTPException 409 for a name that is taken."""
        with self._lock:
            name = self._files.legal(name)
            if name.casefold() in self._taken():
                raise HTTPException(
                    409,
                    f"there is a lorebook {name!r} already; expected another name; choose one, or "
                    "open that lorebook",
                )
            return self._save(Lorebook(name=name, entries=[]))

    def import_file(self, content: bytes, filename: str, name: str = "") -> Lorebook:
        """Adds a book from a file of any format. Raises LoreError if it is not a lorebook."""
        name = name_for(name, filename, "lore")
        return self.add(Lorebook.from_bytes(content, base_name(filename) or "the file", name), name)

    def add(self, book: Lorebook, name: str) -> Lorebook:
        """Saves a book under a name, with a number appended where that is taken."""
        with self._lock:
            return self._save(book.model_copy(update={"name": free_name(name, self._taken())}))

    def change(self, name: str, function: Callable[[dict[str, Any]], dict[str, Any]]) -> Lorebook:
        """Saves what `function` returns for a book's data. Raises LoreError if it is invalid."""
        with self._lock:
            data = function(self.get(name).data())
            return self._save(Lorebook(**{**data, "name": self._files.legal(name)}))

    def delete(self, name: str) -> None:
        with self._lock:
            path = self.path(name)
            if path in self._outside.values():
                raise LoreError(
                    f"lorebook {name!r} is the file {str(path)!r}, which the server was started "
                    "with; expected one of the studio's own; delete that file yourself, or start "
                    "without --lorebook"
                )
            try:
                path.unlink()
            except OSError as error:
                raise storage_error("remove", path, error) from error
            self._cache.pop(path, None)

    def _open(self, path: Path, book: Lorebook) -> None:
        name = name_for("", path.name, "lore")
        if path.suffix.lower() in (SUFFIX, ".yml"):
            self.opened = name = free_name(name, self._taken())
            self._outside[name] = path.resolve()
        else:
            self.opened = name if name in self._paths() else self.add(book, name).name

    def _paths(self) -> dict[str, Path]:
        return self._files.paths() | self._outside

    def _taken(self) -> set[str]:
        return {name.casefold() for name in self._paths()}

    def _save(self, book: Lorebook) -> Lorebook:
        """Writes a lorebook atomically.

        Raises:
            LoreError: it cannot be written as YAML, or is too large.
        """
        try:
            content = write_yaml(plain(book.data())).encode()
        except ValueError as error:
            raise LoreError(f"lorebook {book.name!r} cannot be saved: {error}") from None
        if len(content) > files.MAX_BYTES:
            raise LoreError(
                f"lorebook {book.name!r} would take {len(content) / 2**20:.1f} MiB; expected at "
                f"most {files.MAX_BYTES // 2**20} MiB; split it in two"
            )
        path = self._paths().get(book.name) or self._files.folder / (book.name + SUFFIX)
        if book.name not in self._outside:
            self._files.make_folder()
        write_atomically(path, content)
        self._cache[path] = _stamp(path), book
        if self.on_save is not None:
            self.on_save(book)
        return book


def encode_book(book: Lorebook, format: str) -> tuple[bytes, str]:
    """A book's file in a format, and the file's suffix. Raises LoreError for an unknown format."""
    if format not in NATIVE_FORMATS and format not in EXPORTERS:
        raise LoreError(
            f"there is no lorebook format {format!r:.80}; expected one of "
            f"{', '.join([*NATIVE_FORMATS, *EXPORTERS])}; choose one"
        )
    native = format in NATIVE_FORMATS
    suffix = f".{format}" if native else EXPORTERS[format].suffix
    with tempfile.TemporaryDirectory(prefix="softlore-") as folder:
        path = Path(folder) / f"book{suffix}"
        book.save(path, None if native else format)
        return path.read_bytes(), suffix


def koboldai_lore(book: Lorebook) -> Any:
    """A book as the World Info of a KoboldAI save."""
    data = book.to_format("koboldai")
    return data["worldinfo"] if isinstance(data, dict) else data


def _missing(message: str) -> HTTPException:
    return HTTPException(404, message)


def _load(path: Path, name: str) -> Lorebook | SoftloreError:
    try:
        return Lorebook.load(path).model_copy(update={"name": name})
    except SoftloreError as error:
        return error


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise storage_error("read", path, error) from error
    return status.st_mtime_ns, status.st_size
