"""The folder of prefixes that the connector serves, read again where it has changed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from softlore.vllm_connector.files import SUFFIX, PrefixFile, read, read_folder

logger = logging.getLogger(__name__)


class Folder:
    """The prompts in a folder, by name and by the ids that they begin with.

    Raises:
        ValueError: at the start, of a file that is none; later such a file is logged and left out.
    """

    def __init__(self, path: str, block_size: int) -> None:
        self.path = path
        self._block_size = block_size
        self._changed = 0
        self._known: dict[Path, tuple[tuple[int, ...], PrefixFile]] = {}
        self._files: dict[str, PrefixFile] = {}
        self._heads: dict[tuple[int, ...], list[PrefixFile]] = {}
        for file in read_folder(path):
            self._check(file)

    def files(self) -> dict[str, PrefixFile]:
        """By name."""
        changed = os.stat(self.path).st_mtime_ns
        if changed != self._changed:
            self._files = {file.name: file for file in self._usable()}
            self._heads = {}
            for file in self._files.values():
                self._heads.setdefault(tuple(file.ids[: self._block_size]), []).append(file)
            self._changed = changed
        return self._files

    def named(self, names: Sequence[str]) -> list[PrefixFile]:
        """Those of these names that there are, each tensor once, as softlore counts them."""
        files = self.files()
        return list({files[name].digest: files[name] for name in names if name in files}.values())

    def begun(self, ids: Sequence[int]) -> PrefixFile | None:
        """The prompt whose placeholder these ids begin with."""
        self.files()
        for file in self._heads.get(tuple(ids[: self._block_size]), ()):
            if list(ids[: len(file.ids)]) == file.ids:
                return file
        return None

    def _usable(self) -> Iterator[PrefixFile]:
        """The files, of which only those that are new are read: the scheduler waits for it."""
        before, self._known = self._known, {}
        for path in sorted(Path(self.path).glob("*" + SUFFIX)):
            try:
                stat = path.stat()
                mark = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                known = before.get(path)
                file = known[1] if known is not None and known[0] == mark else read(path)
                self._check(file)
            except (ValueError, OSError) as error:
                logger.error("softlore: %s", error)
            else:
                self._known[path] = (mark, file)
                yield file

    def _check(self, file: PrefixFile) -> None:
        if not file.ids or len(file.ids) % self._block_size:
            raise ValueError(
                f"prompt {file.name!r} has {len(file.ids)} tokens; expected a multiple of vLLM's "
                f"block size, {self._block_size}; train it with as many, or start vLLM with "
                "another --block-size"
            )
