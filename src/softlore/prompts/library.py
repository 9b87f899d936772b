"""PromptLibrary: a folder of prompt files as a mapping from names to prompts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlore.disk import storage_error, user_folder
from softlore.errors import PromptFileError, SoftloreError, StorageError, UnknownPromptError
from softlore.prompts.native import SUFFIX, PromptHeader, read_header
from softlore.prompts.reasons import Reason
from softlore.prompts.soft_prompt import SoftPrompt
from softlore.settings import closest
from softlore.settings.arguments import PATH, PROMPT, expecting

_Stamp = tuple[int, int]  # of a file: see `_stamp_of`
FOLDER_VARIABLE = "SOFTLORE_PROMPTS"
MAX_CACHED_BYTES = 512 << 20  # of tensors
# A folder that changed so shortly before it was listed may have changed again at the same time
# stamp: those of most file systems move on every 10 ms at least, those of a few in whole seconds.
FINE_NS, COARSE_NS = 50_000_000, 2_000_000_000
_MAX_SLUG = 80
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)")


def default_folder() -> Path:
    """The folder of prompts where none is named.

    `$SOFTLORE_PROMPTS` if set, else the user's data folder (`~/.local/share/softlore/prompts` on
    Linux). It may not exist yet.
    """
    return user_folder("prompts", FOLDER_VARIABLE)


@dataclass(frozen=True)
class BadFile:
    """A file of a library that cannot be read as a prompt, and why."""

    path: Path
    error: SoftloreError


@dataclass(frozen=True)
class Listing:
    """The contents of a folder: headers in the order of names, and the files that were skipped."""

    headers: tuple[PromptHeader, ...]
    bad: tuple[BadFile, ...]


class PromptLibrary(Mapping[str, SoftPrompt]):
    """The prompts in a folder's `*.safetensors` files, by the names they carry.

    A mapping: `library["dog"]` reads the file; `"dog" in library`, `len` and iteration over names
    read headers only. Headers and prompts are cached until their file changes, and the folder is
    listed again only for a name whose file has changed, or that is unknown where the folder has.
    Files that are no prompts are skipped and listed in `listing().bad`. A missing folder is an
    empty library.
    """

    @expecting(folder=PATH.optional)
    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = default_folder() if folder is None else Path(folder)
        self._headers: dict[Path, tuple[_Stamp, PromptHeader | BadFile]] = {}
        self._by_name: dict[str, PromptHeader] = {}
        self._listed: int | None = None  # the folder's last change, when it was listed
        self._listing: tuple[float, Listing] | None = None  # the last, and when it was made
        self._prompts: dict[Path, tuple[_Stamp | None, SoftPrompt]] = {}
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"PromptLibrary({str(self.folder)!r})"

    def listing(self, max_age: float = 0.0) -> Listing:
        """Reads the headers of new and changed files. Raises StorageError for the folder only.

        Args:
            max_age: the last listing is returned as it is up to this age in seconds, while no file
                was added, replaced or removed. One that was written over in place is not noticed.
        """
        if self._listing is not None and self._listed is not None:
            made, latest = self._listing
            if time.monotonic() - made < max_age and self._listed == _changed(self.folder):
                return latest
        headers: dict[str, PromptHeader] = {}
        bad: list[BadFile] = []
        start = time.monotonic()
        before, now = _changed(self.folder), time.time_ns()
        settled = before is not None and now - before > (FINE_NS if before % 1000 else COARSE_NS)
        for file in self._scan():
            if isinstance(file, BadFile):
                bad.append(file)
            elif file.name in headers:
                bad.append(_same_name(file, headers[file.name]))
            else:
                headers[file.name] = file
        self._by_name = headers  # at once, as other threads look names up meanwhile
        self._listed = before if settled else None
        listing = Listing(tuple(headers[name] for name in sorted(headers)), tuple(bad))
        self._listing = start, listing
        return listing

    def header(self, name: str) -> PromptHeader:
        """The header of a prompt's file. Raises UnknownPromptError."""
        if (header := self._find(name)) is not None:
            return header
        names = list(self)
        hint = closest(str(name), names) or "train it first"
        raise UnknownPromptError(
            f"there is no prompt {name!r:.60} in {str(self.folder)!r}; expected one of its "
            f"{len(names)} prompts; {hint}"
        )

    def _find(self, name: object) -> PromptHeader | None:
        """The header of a prompt's file, or None if there is none; see the class."""
        if not isinstance(name, str):
            return None
        name = unicodedata.normalize("NFC", name)
        header = self._by_name.get(name)
        if header is not None:
            with contextlib.suppress(OSError):
                stamp = self._headers.get(header.path, (None,))[0]
                if stamp == _stamp_of(header.path.stat()):
                    return header
        elif self._listed is not None and self._listed == _changed(self.folder):
            return None
        self.listing()
        return self._by_name.get(name)

    @expecting(prompt=PROMPT)
    def save(self, prompt: SoftPrompt) -> Path:
        """Writes the prompt, replacing the one of the same name; returns the path.

        Creates the folder where needed. Raises StorageError.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("make the folder", self.folder, error) from error
        path = self._path_for(prompt.name)
        prompt.save(path)
        self._add(path)
        return path

    def _add(self, path: Path) -> None:
        """Adds a file just written to what is known of the folder: the next needs no listing."""
        file = _read_header(path)
        if isinstance(file, PromptHeader):
            with contextlib.suppress(OSError):
                self._headers[path] = _stamp_of(path.stat()), file
                self._by_name[file.name] = file
                self._listed, self._listing = _changed(self.folder), None

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
            stamp = self._headers.get(path, (None,))[0]  # another thread may be listing the folder
            cached = self._prompts.pop(path, None)
            if cached is None or stamp is None or cached[0] != stamp:
                self._cached_bytes -= 0 if cached is None else cached[1].tensor.nbytes
                cached = stamp, SoftPrompt.load(path)
                self._cached_bytes += cached[1].tensor.nbytes
            self._prompts[path] = cached  # most recently used last
            while self._cached_bytes > MAX_CACHED_BYTES and len(self._prompts) > 1:
                self._cached_bytes -= self._prompts.pop(next(iter(self._prompts)))[1].tensor.nbytes
            return cached[1]

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping, without the close matches that the error for a missing name has."""
        return default if self._find(name) is None else super().get(name, default)

    def __contains__(self, name: object) -> bool:
        return self._find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter([header.name for header in self.listing().headers])

    def __len__(self) -> int:
        return len(self.listing().headers)

    def _path_for(self, name: str) -> Path:
        if (header := self._find(name)) is not None:
            return header.path
        return free_path(self.folder, name)

    def _scan(self) -> Iterator[PromptHeader | BadFile]:
        """The header of each prompt file, or why it has none, in the order of file names."""
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
        cached, current = self._headers, {}
        for entry in files:
            path = self.folder / entry.name
            stamp = _stamp(entry)
            if stamp is None or cached.get(path, (None,))[0] != stamp:
                file = _read_header(path)
            else:
                file = cached[path][1]
            if stamp is not None:
                current[path] = (stamp, file)
            yield file
        self._headers = current


def slug_of(name: str) -> str:
    """A file name without suffix for a prompt's name: `a-z0-9-`, valid on every system."""
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_MAX_SLUG].rstrip("-")
    if not slug:  # a name in another script
        return "prompt-" + hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"prompt-{slug}" if _WINDOWS_DEVICES.fullmatch(slug) else slug


def free_path(folder: Path, name: str, own: Collection[Path] = ()) -> Path:
    """The file of a name in a folder: numbered where there is one already, but for its `own`."""
    slug, number = slug_of(name), 1
    path = folder / (slug + SUFFIX)
    while os.path.lexists(path) and path not in own:
        number += 1
        path = folder / f"{slug}-{number}{SUFFIX}"
    return path


def _is_prompt_file(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")


def _stamp(entry: os.DirEntry[str]) -> _Stamp | None:
    """See `_stamp_of`; None for a broken link."""
    with contextlib.suppress(OSError):
        return _stamp_of(entry.stat())
    return None


def _stamp_of(status: os.stat_result) -> _Stamp:
    """Time of the last change and size of a file."""
    return status.st_mtime_ns, status.st_size


def _changed(folder: Path) -> int | None:
    """When files were last added to a folder, replaced or removed; None if there is no folder."""
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime_ns
    return None


def _read_header(path: Path) -> PromptHeader | BadFile:
    try:
        return read_header(path)
    except (PromptFileError, StorageError) as error:
        return BadFile(path, error)


def _same_name(header: PromptHeader, first: PromptHeader) -> BadFile:
    error = PromptFileError(
        f"the prompt file {str(header.path)!r} is named {header.name!r}, as {str(first.path)!r} "
        "is; expected names to differ within a folder; rename one, or move its file away",
        reason=Reason.DUPLICATE_NAME,
    )
    return BadFile(header.path, error)
