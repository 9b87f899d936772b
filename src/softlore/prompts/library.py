"""A folder of prompt files, used as a mapping from names to prompts."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from softlore.disk import storage_error, user_folder
from softlore.errors import PromptFileError, SoftloreError, StorageError, UnknownPromptError
from softlore.prompts import native
from softlore.prompts.native import SUFFIX, PromptHeader
from softlore.prompts.reasons import Reason
from softlore.prompts.soft_prompt import SoftPrompt

FOLDER_VARIABLE = "SOFTLORE_PROMPTS"
MOST_READ = 256  # prompts that are kept once they were read
_MAX_SLUG = 80
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)")


def default_folder() -> Path:
    """Where prompts are kept when no folder is named.

    `$SOFTLORE_PROMPTS` if set, else the user's data folder (`~/.local/share/softlore/prompts` on
    Linux). It need not exist yet.
    """
    return user_folder("prompts", FOLDER_VARIABLE)


@dataclass(frozen=True)
class BadFile:
    """A file of a library that is no usable prompt, and why."""

    path: Path
    error: SoftloreError


@dataclass(frozen=True)
class Listing:
    """What a folder holds: headers by prompt name, in order, and the files that were skipped."""

    headers: tuple[PromptHeader, ...]
    bad: tuple[BadFile, ...]


class PromptLibrary(Mapping[str, SoftPrompt]):
    """The prompts in a folder's `*.safetensors` files, by the names they carry.

    A mapping: `library["dog"]` reads the file, `"dog" in library`, `len`, and iterating over
    names read headers only, and all is read once until a file changes. Files that are no prompts
    are skipped; `listing().bad` tells of them. A folder that does not exist is an empty library.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = default_folder() if folder is None else Path(folder)
        self._seen: dict[Path, tuple[tuple[int, int], PromptHeader | BadFile]] = {}
        self._read: dict[Path, tuple[tuple[int, int] | None, SoftPrompt]] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"PromptLibrary({str(self.folder)!r})"

    def listing(self) -> Listing:
        """Reads the headers of new and changed files. Raises StorageError for the folder only."""
        headers: dict[str, PromptHeader] = {}
        bad: list[BadFile] = []
        for found in self._scan():
            if isinstance(found, BadFile):
                bad.append(found)
            elif found.name in headers:
                bad.append(_same_name(found, headers[found.name]))
            else:
                headers[found.name] = found
        return Listing(tuple(headers[name] for name in sorted(headers)), tuple(bad))

    def header(self, name: str) -> PromptHeader:
        """What the prompt's file says of it. Raises UnknownPromptError."""
        name = unicodedata.normalize("NFC", name)
        headers = self.listing().headers
        for header in headers:
            if header.name == name:
                return header
        close = difflib.get_close_matches(name, [header.name for header in headers])
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "train it first"
        raise UnknownPromptError(
            f"there is no prompt {name!r} in {str(self.folder)!r}; expected one of its "
            f"{len(headers)} prompts; {hint}"
        )

    def save(self, prompt: SoftPrompt) -> Path:
        """Writes the prompt, in place of the one of its name if there is one; returns the path.

        Makes the folder if need be. Raises StorageError.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make the folder", self.folder, error) from error
        path = self._path_for(prompt.name)
        prompt.save(path)
        return path

    def remove(self, name: str) -> None:
        """Deletes the prompt's file. Raises UnknownPromptError, StorageError."""
        path = self.header(name).path
        try:
            path.unlink()
        except OSError as error:
            raise storage_error("remove", path, error) from error

    def __getitem__(self, name: str) -> SoftPrompt:
        with self._lock:
            path = self.header(name).path
            stamp = self._seen.get(path, (None,))[0]  # another thread may be listing the folder
            known = self._read.pop(path, None)
            if known is None or stamp is None or known[0] != stamp:
                known = stamp, native.read_prompt(path)
            self._read[path] = known  # the latest last
            if len(self._read) > MOST_READ:
                self._read.pop(next(iter(self._read)))
            return known[1]

    def __contains__(self, name: object) -> bool:
        return any(header.name == name for header in self.listing().headers)

    def __iter__(self) -> Iterator[str]:
        return iter([header.name for header in self.listing().headers])

    def __len__(self) -> int:
        return len(self.listing().headers)

    def _path_for(self, name: str) -> Path:
        for header in self.listing().headers:
            if header.name == name:
                return header.path
        slug, number = slug_of(name), 1
        path = self.folder / (slug + SUFFIX)
        while os.path.lexists(path):  # another prompt's, or no prompt at all
            number += 1
            path = self.folder / f"{slug}-{number}{SUFFIX}"
        return path

    def _scan(self) -> Iterator[PromptHeader | BadFile]:
        """What each prompt file is, in order of file names."""
        try:
            with os.scandir(self.folder) as entries:
                files = sorted(
                    (entry for entry in entries if _is_prompt_file(entry.name)),
                    key=lambda entry: entry.name,
                )
        except FileNotFoundError:
            files = []
        except OSError as error:
            raise storage_error("list", self.folder, error) from error
        seen, self._seen = self._seen, {}
        for entry in files:
            path = self.folder / entry.name
            stamp = _stamp(entry)
            if stamp is None or seen.get(path, (None,))[0] != stamp:
                found = _look_at(path)
            else:
                found = seen[path][1]
            if stamp is not None:
                self._seen[path] = (stamp, found)
            yield found


def slug_of(name: str) -> str:
    """A file name, less its suffix, for a prompt's name: `a-z0-9-`, fit for every system."""
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_MAX_SLUG].rstrip("-")
    if not slug:  # a name in another script
        return "prompt-" + hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"prompt-{slug}" if _WINDOWS_DEVICES.fullmatch(slug) else slug


def _is_prompt_file(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int] | None:
    """When the file last changed, and its size; None for a broken link."""
    with contextlib.suppress(OSError):
        status = entry.stat()
        return status.st_mtime_ns, status.st_size
    return None


def _look_at(path: Path) -> PromptHeader | BadFile:
    try:
        return native.read_header(path)
    except (PromptFileError, StorageError) as error:
        return BadFile(path, error)


def _same_name(header: PromptHeader, first: PromptHeader) -> BadFile:
    error = PromptFileError(
        f"the prompt file {str(header.path)!r} is named {header.name!r}, as {str(first.path)!r} "
        "is; expected names to differ within a folder; rename one, or move its file away",
        reason=Reason.DUPLICATE_NAME,
    )
    return BadFile(header.path, error)
