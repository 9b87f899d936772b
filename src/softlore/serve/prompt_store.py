"""PromptStore: the soft prompts that the server's model can use, by name."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from softlore.errors import InputError, UnknownPromptError
from softlore.model import LanguageModel, prompt_shape
from softlore.model.fingerprint import check
from softlore.prompts import Listing, PromptHeader, PromptLibrary, SoftPrompt

NAMES_SHOWN = 20  # in an error message
LIST_SECONDS = 1.0  # after which files that were written over in place are noticed


class PromptStore(Mapping[str, SoftPrompt]):
    """A library's prompts, each checked against the model once; may be shared between threads.

    It has the folder's content at the last `refresh`. Indexing raises UnknownPromptError,
    PromptMismatchError for a prompt of another model, and PromptFileError or StorageError for a
    file that cannot be read any more.
    """

    def __init__(self, library: PromptLibrary, model: LanguageModel) -> None:
        self.library = library
        self.model = model
        self._lock = threading.Lock()
        self._headers: dict[str, PromptHeader] = {}
        self._listing: Listing | None = None
        self._checked: dict[str, SoftPrompt] = {}
        self._compatible: dict[Path, tuple[PromptHeader, bool]] = {}

    @property
    def folder(self) -> Path:
        return self.library.folder

    def refresh(self) -> Self:
        """Lists the folder again if it has changed; returns the store. Raises StorageError.

        Requests call this; to list a thousand files for each would take a fifth of their time.
        """
        listing = self.library.listing(LIST_SECONDS)
        if listing is self._listing:
            return self
        with self._lock:
            self._listing = listing
            self._headers = {header.name: header for header in listing.headers}
            for name in self._checked.keys() - self._headers.keys():
                del self._checked[name]
        return self

    def compatible(self) -> dict[str, PromptHeader]:
        """Headers of the prompts made for this model, by name, as they are in the folder now.

        Judged by shape and fingerprint; a file is judged again when it has changed. Raises
        StorageError.
        """
        headers = self.refresh()._headers.values()
        with self._lock:
            known, self._compatible = self._compatible, {}
            for header in headers:
                judged = known.get(header.path)
                if judged is None or judged[0] is not header:
                    judged = header, self._is_compatible(header)
                self._compatible[header.path] = judged
            return {header.name: header for header, fits in self._compatible.values() if fits}

    def usable(self) -> Mapping[str, SoftPrompt]:
        """A view of the store in which a prompt that cannot be used is missing."""
        return _UsablePrompts(self)

    def listed_names(self) -> str:
        """The prompts' names for an error message; only the first ones where there are many."""
        names = sorted(self._headers)
        listed = ", ".join(names[:NAMES_SHOWN]) + (" …" if len(names) > NAMES_SHOWN else "")
        return listed or "none so far"

    def __getitem__(self, name: str) -> SoftPrompt:
        if name not in self._headers:
            raise UnknownPromptError(
                f"there is no soft prompt {name!r:.200}; expected one of: {self.listed_names()}; "
                "name another"
            )
        prompt = self.library[name]  # the library reads a file once, until it changes
        if prompt is not self._checked.get(name):
            self.model.check_prompt(prompt)
            self._checked[name] = prompt
        return prompt

    def __contains__(self, name: object) -> bool:
        return name in self._headers

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def _is_compatible(self, header: PromptHeader) -> bool:
        try:
            if header.shape != prompt_shape(self.model, header.kind, header.n_tokens):
                return False
            expected = self.model.fingerprint(header.kind)
            check(expected, header.fields()["fingerprint"], header.name, self.model.name)
        except InputError:
            return False
        return True


class _UsablePrompts(Mapping[str, SoftPrompt]):
    """A store without the prompts that cannot be used, so that their lore enters as text."""

    def __init__(self, store: PromptStore) -> None:
        self._store = store
        self.folder = store.folder

    def __getitem__(self, name: str) -> SoftPrompt:
        try:
            return self._store[name]
        except (InputError, OSError) as error:
            raise UnknownPromptError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._store)

    def __len__(self) -> int:
        return len(self._store)
