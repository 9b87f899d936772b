"""Which soft prompts of the library are for the server's model, by what their files say."""

from __future__ import annotations

import threading
from pathlib import Path

from softlore.errors import InputError
from softlore.model import LanguageModel, prompt_shape
from softlore.model.fingerprint import check
from softlore.prompts import PromptHeader, PromptLibrary


class Fitting:
    """Looks at the library's headers; each is judged once, until its file changes."""

    def __init__(self, library: PromptLibrary, model: LanguageModel) -> None:
        self.library, self.model = library, model
        self._lock = threading.Lock()
        self._judged: dict[Path, tuple[PromptHeader, bool]] = {}

    def headers(self) -> dict[str, PromptHeader]:
        """The headers of those that fit, by name. Raises StorageError for the folder."""
        listed = self.library.listing().headers
        with self._lock:
            before, self._judged = self._judged, {}
            for header in listed:
                known = before.get(header.path)
                if known is None or known[0] is not header:
                    known = header, self._fits(header)
                self._judged[header.path] = known
            return {header.name: header for header, fits in self._judged.values() if fits}

    def _fits(self, header: PromptHeader) -> bool:
        kind = header.kind
        try:
            if header.shape != prompt_shape(self.model, kind, header.n_tokens):
                return False
            theirs = header.fields()["fingerprint"]
            check(self.model.fingerprint(kind), theirs, header.name, self.model.name)
        except InputError:
            return False
        return True
