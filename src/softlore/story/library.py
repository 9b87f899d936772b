"""StoryLibrary: a folder of stories, each a file with the name of its story."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from softlore.disk import flush_folder, storage_error, user_folder
from softlore.errors import StoryError, StoryFileError, StoryNotFoundError
from softlore.lore.names import NAME_RULE, file_name_problem, normalize_name
from softlore.settings import closest
from softlore.story.store import StoryFile
from softlore.story.story import Story
from softlore.story.turns import StoryDraft

FOLDER_VARIABLE = "SOFTLORE_STORIES"
SUFFIX = ".story"
DELETED = ".deleted"  # appended to the suffix
CHAPTERS = ".chapters"  # the suffix of the folder with a story's chapters


def default_folder() -> Path:
    """The folder of stories where none is given.

    `$SOFTLORE_STORIES` if set, else `stories` in the user's data folder
    (`~/.local/share/softlore/stories` on Linux). It need not exist.
    """
    return user_folder("stories", FOLDER_VARIABLE)


def chapters_folder(path: Path) -> Path:
    """The folder with the chapters of the story in a file; see `softlore.story.chapters`."""
    name, suffix, deleted = path.name.partition(SUFFIX)
    return path.with_name((name if suffix else path.stem) + CHAPTERS + deleted)


class NamedFiles:
    """The files `NAME.suffix` of a folder, by name. A folder that does not exist has none.

    A name is one that every system allows for a file, in Unicode's composed form. Files with other
    names are ignored.

    Args:
        kind: what the files hold, for messages: "story".
        illegal, missing: make the errors for an illegal name and a name without a file.
    """

    def __init__(
        self,
        folder: Path,
        suffix: str,
        kind: str,
        illegal: Callable[[str], Exception] = StoryError,
        missing: Callable[[str], Exception] = StoryNotFoundError,
    ) -> None:
        self.folder, self.suffix = folder, suffix
        self._kind, self._illegal, self._missing = kind, illegal, missing

    def paths(self) -> dict[str, Path]:
        """The files by name. Raises StorageError."""
        try:
            paths = [Path(entry) for entry in os.scandir(self.folder)]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise storage_error("list", self.folder, error) from error
        named = {normalize_name(path.stem): path for path in paths if path.suffix == self.suffix}
        return {name: path for name, path in named.items() if not file_name_problem(name)}

    def find(self, name: object) -> Path:
        """The file of a name. Raises the error for an illegal or a missing one."""
        paths = self.paths()
        path = paths.get(self.legal(name))
        if path is None:
            hint = closest(str(name), paths) or "create it first"
            raise self._missing(
                f"there is no {self._kind} {name!r} in {str(self.folder)!r}; expected one of "
                f"the {len(paths)} there; {hint}"
            )
        return path

    def make_folder(self) -> None:
        """Makes the folder if it does not exist. Raises StorageError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make the folder", self.folder, error) from error

    def legal(self, name: object) -> str:
        """The name in Unicode's composed form. Raises the error for an illegal one."""
        if not isinstance(name, str):
            raise self._illegal(
                f"the name of a {self._kind} is {type(name).__name__} {name!r:.80}; expected a "
                "string; pass one"
            )
        if problem := file_name_problem(normalize_name(name)):
            raise self._illegal(
                f"the {self._kind} name {name!r:.160} {problem}; expected {NAME_RULE}, such as "
                "'The harbour'; choose another name"
            )
        return normalize_name(name)


class StoryLibrary(Collection[str]):
    """The stories in a folder's `*.story` files. Iteration, `in` and `len` are over their names.

    A name that differs from another in capitals only is taken. The folder need not exist.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = default_folder() if folder is None else Path(folder)
        self._files = NamedFiles(self.folder, SUFFIX, "story")

    def __repr__(self) -> str:
        return f"StoryLibrary({str(self.folder)!r})"

    def names(self) -> list[str]:
        """The stories' names, sorted. Raises StorageError."""
        return sorted(self._files.paths())

    def open(self, name: str) -> Story:
        """Raises StoryNotFoundError, and what `Story` raises."""
        return Story(self._files.find(name))

    def create(self, name: str, draft: StoryDraft | None = None) -> Story:
        """Creates a story with the content of the draft, and the folder if need be.

        Raises:
            StoryError: the name is illegal or taken.
            StorageError: the file cannot be written.
        """
        return Story.create(self._free_path(name), draft)

    def open_or_create(self, name: str) -> Story:
        """The story of that name, a new one if there is none. Safe between two processes."""
        try:
            return self.open(name)
        except StoryNotFoundError:
            pass
        try:
            return self.create(name)
        except StoryError:
            if name not in self:
                raise
            return self.open(name)  # another process was faster

    def delete(self, name: str) -> Path:
        """Renames a story's file to `NAME.story.deleted` and returns its new path.

        To restore the story, remove `.deleted` from the name.

        Raises:
            StoryNotFoundError: there is no such story.
            StorageError: the file cannot be renamed, or the story is open anywhere.
        """
        path = self._files.find(name)
        target, number = Path(f"{path}{DELETED}"), 1
        while os.path.lexists(target):
            number += 1
            target = path.with_name(f"{path.stem}-{number}{SUFFIX}{DELETED}")
        return _move(path, target)

    def rename(self, name: str, new: str) -> None:
        """Renames a story. Raises as `create` and `delete` do."""
        path = self._files.find(name)
        _move(path, self._free_path(new, renamed=path))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and normalize_name(name) in self._files.paths()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._files.paths())

    def _free_path(self, name: str, renamed: Path | None = None) -> Path:
        """The path for a story of a new name, in a folder that exists then.

        Args:
            renamed: the file of a story that gets the name, which may be its own.

        Raises:
            StoryError: another story has the name.
        """
        name = self._files.legal(name)
        for other, path in self._files.paths().items():
            if other.casefold() == name.casefold() and path != renamed:
                raise StoryError(
                    f"there is a story {other!r} in {str(self.folder)!r} already; expected another "
                    "name; choose one, or open that story"
                )
        self._files.make_folder()
        return self.folder / (name + SUFFIX)


def _move(path: Path, target: Path) -> Path:
    """Renames a story's file, with the SQLite files that a killed process left."""
    try:
        file = StoryFile(path)
    except StoryFileError:
        pass  # a damaged one may be renamed too
    else:
        try:
            file.release()
        finally:
            file.close()
    try:
        os.rename(path, target)
        if chapters_folder(path).is_dir():
            os.rename(chapters_folder(path), chapters_folder(target))
        for rest in ("-wal", "-shm", "-journal"):  # beside a damaged file only
            if os.path.lexists(f"{path}{rest}"):
                os.rename(f"{path}{rest}", f"{target}{rest}")
        flush_folder(path.parent)
    except OSError as error:
        raise storage_error("move", path, error) from error
    return target
