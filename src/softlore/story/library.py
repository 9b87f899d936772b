"""A folder of stories, each in a file of its own, by the names of the files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from softlore.disk import flush_folder, storage_error, user_folder
from softlore.errors import StoryError, StoryFileError, StoryNotFoundError
from softlore.lore.names import NAME_RULE, composed, wrong_with_file_name
from softlore.story.store import StoryFile
from softlore.story.story import Story
from softlore.story.turns import StoryDraft

FOLDER_VARIABLE = "SOFTLORE_STORIES"
SUFFIX = ".story"
DELETED = ".deleted"  # put after the suffix


def default_folder() -> Path:
    """Where stories are kept when no folder is named.

    `$SOFTLORE_STORIES` if set, else the user's data folder (`~/.local/share/softlore/stories` on
    Linux), beside that of the prompts. It need not exist yet.
    """
    return user_folder("stories", FOLDER_VARIABLE)


class StoryLibrary(Collection[str]):
    """The stories in a folder's `*.story` files. Iterating, `in` and `len` are over their names.

    A story's name is its file's, less the suffix, so a name is one that every system allows: as
    a lorebook's entry is named, not beginning with a dot, and not in use by another in capitals.
    A folder that does not exist is an empty library.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = default_folder() if folder is None else Path(folder)

    def __repr__(self) -> str:
        return f"Stories({str(self.folder)!r})"

    def names(self) -> list[str]:
        """The stories' names, in order. Raises StorageError for the folder."""
        return sorted(self._files())

    def open(self, name: str) -> Story:
        """Raises StoryNotFoundError, and what `Story` raises."""
        return Story(self._path_of(name))

    def create(self, name: str, draft: StoryDraft | None = None) -> Story:
        """A new story, with what the draft holds. Makes the folder if need be.

        Raises StoryError for a name that is not legal or is in use, StorageError.
        """
        return Story.create(self._free_path(name), draft)

    def open_or_create(self, name: str) -> Story:
        """The story of that name, a new one if there is none; two processes get the same."""
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
        """Puts a story's file aside, as `NAME.story.deleted`; returns its path.

        To have it back, take `.deleted` off again; to destroy it, remove the file. Raises
        StoryNotFoundError, StorageError (also while the story is open anywhere).
        """
        path = self._path_of(name)
        aside, number = Path(f"{path}{DELETED}"), 1
        while os.path.lexists(aside):
            number += 1
            aside = path.with_name(f"{path.stem}-{number}{SUFFIX}{DELETED}")
        return _move(path, aside)

    def rename(self, name: str, new: str) -> None:
        """Raises StoryNotFoundError, StoryError, StorageError (also while it is open anywhere)."""
        path = self._path_of(name)
        _move(path, self._free_path(new, besides=path))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and composed(name) in self._files()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._files())

    def _files(self) -> dict[str, Path]:
        """The files by name; a file whose name is not legal is left alone."""
        try:
            found = [Path(entry) for entry in os.scandir(self.folder)]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise storage_error("list", self.folder, error) from error
        files = {composed(path.stem): path for path in found if path.suffix == SUFFIX}
        return {name: path for name, path in files.items() if not wrong_with_file_name(name)}

    def _path_of(self, name: str) -> Path:
        files = self._files()
        path = files.get(_legal(name))
        if path is None:
            close = difflib.get_close_matches(name, files)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "create it first"
            raise StoryNotFoundError(
                f"there is no story {name!r} in {str(self.folder)!r}; expected one of its "
                f"{len(files)} stories; {hint}"
            )
        return path

    def _free_path(self, name: str, besides: Path | None = None) -> Path:
        """Where a new story of that name goes; `besides` is a story that makes way for it."""
        name = _legal(name)
        for other, path in self._files().items():
            if other.casefold() == name.casefold() and path != besides:
                raise StoryError(
                    f"there is a story {other!r} in {str(self.folder)!r} already; expected another "
                    "name; choose one, or open that story"
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make the folder", self.folder, error) from error
        return self.folder / (name + SUFFIX)


def _legal(name: object) -> str:
    """Returns the name in Unicode's composed form, or raises StoryError."""
    if not isinstance(name, str):
        raise StoryError(f"a story's name is a string; got {type(name).__name__} {name!r:.80}")
    wrong = wrong_with_file_name(composed(name))
    if wrong:
        raise StoryError(
            f"the story name {name!r:.160} {wrong}; expected {NAME_RULE}, such as 'The harbour'; "
            "choose another name"
        )
    return composed(name)


def _move(path: Path, target: Path) -> Path:
    """Gives a story's file another name, with what a killed process left beside it."""
    try:
        file = StoryFile(path)
    except StoryFileError:
        pass  # a damaged one may be moved too
    else:
        try:
            file.release()
        finally:
            file.close()
    try:
        os.rename(path, target)
        for rest in ("-wal", "-shm", "-journal"):  # beside a damaged file only
            if os.path.lexists(f"{path}{rest}"):
                os.rename(f"{path}{rest}", f"{target}{rest}")
        flush_folder(path.parent)
    except OSError as error:
        raise storage_error("move", path, error) from error
    return target
