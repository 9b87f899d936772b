"""The folder of control vectors, and vectors by name or file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from softlore.disk import storage_error, user_folder
from softlore.errors import PromptFileError, StorageError, UnknownPromptError
from softlore.model import LanguageModel
from softlore.model.gguf.header import is_gguf
from softlore.prompts.control_vector import ControlVector
from softlore.prompts.library import free_path
from softlore.prompts.native import SUFFIX
from softlore.prompts.vector_gguf import load_vector_gguf
from softlore.settings import closest

FOLDER_VARIABLE = "SOFTLORE_VECTORS"


def default_vector_folder() -> Path:
    """`$SOFTLORE_VECTORS` if set, else `vectors` in the user's data folder. It may not exist."""
    return user_folder("vectors", FOLDER_VARIABLE)


def load_vector(path: str | os.PathLike[str], layers: int | None = None) -> ControlVector:
    """Reads a control vector: softlore's own file, or a GGUF of llama.cpp or repeng.

    Args:
        layers: of the model, which a GGUF file does not say.

    Raises:
        PromptFileError: it is neither. StorageError: it can't be read.
    """
    return load_vector_gguf(path, layers) if is_gguf(path) else ControlVector.load(path)


def find_vector(
    name: str, folder: str | os.PathLike[str] | None = None, layers: int | None = None
) -> ControlVector:
    """The control vector of a file, or of a name in a folder: what a command line may name.

    Raises:
        UnknownPromptError: there is none. PromptFileError, StorageError: see `load_vector`.
    """
    if Path(name).suffix in (SUFFIX, ".gguf"):
        return load_vector(name, layers)
    return vector_named(name, vectors_in(folder))


def vector_named(name: str, known: Mapping[str, ControlVector]) -> ControlVector:
    """The control vector of a name. Raises UnknownPromptError."""
    if name in known:
        return known[name]
    hint = closest(name, known) or "train it (softlore vector train)"
    listed = ", ".join(map(repr, sorted(known)[:9])) or "a name in the folder, which has none"
    raise UnknownPromptError(f"there is no control vector {name!r:.60}; expected {listed}; {hint}")


def fitting_vectors(
    model: LanguageModel, strengths: Mapping[str, float], any_model: bool = False
) -> list[tuple[ControlVector, float]]:
    """Vectors of the default folder by name, with their strengths: what a text may name.

    Args:
        any_model: check the shape only.

    Raises:
        UnknownPromptError: there is none of a name. PromptMismatchError: one of another model.
    """
    if not strengths:
        return []
    vectors = vectors_in()
    pairs = [(vector_named(name, vectors), strength) for name, strength in strengths.items()]
    for vector, _ in pairs:
        vector.check(model, any_model)
    return pairs


def vectors_in(folder: str | os.PathLike[str] | None = None) -> dict[str, ControlVector]:
    """The control vectors of a folder by name; files that are none are left out."""
    where = default_vector_folder() if folder is None else Path(folder)
    return {vector.name: vector for _, vector in _files(where)}


def save_vector(vector: ControlVector, folder: str | os.PathLike[str] | None = None) -> Path:
    """Writes a vector under its name, in place of another of that name; returns the path.

    Raises:
        StorageError: the disk refuses.
    """
    where = default_vector_folder() if folder is None else Path(folder)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the folder", where, error) from error
    names = {path: other.name for path, other in _files(where)}
    path = free_path(where, vector.name, [path for path in names if names[path] == vector.name])
    vector.save(path)
    return path


def _files(folder: Path) -> Iterator[tuple[Path, ControlVector]]:
    """The control vectors in a folder's files; other files are left out."""
    for path in sorted(folder.glob("*" + SUFFIX)) if folder.is_dir() else []:
        with contextlib.suppress(PromptFileError, StorageError, OSError):
            facts = path.stat()
            yield path, _load(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=64)
def _load(path: Path, changed: int, size: int) -> ControlVector:
    """A vector's file, read again where it has changed: stories look for theirs at each turn."""
    return ControlVector.load(path)
