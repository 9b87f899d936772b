"""The prompts of a library as the texts of clients name them: checked, and listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from softlore.errors import InputError, UnknownPromptError, UnsupportedModelError
from softlore.model import LanguageModel, prompt_shape
from softlore.prompts import PromptHeader, PromptLibrary, SoftPrompt

SHOWN = 20  # names in a message


class PromptStore(Mapping[str, SoftPrompt]):
    """A library's prompts, each checked once; `look` sees what has changed.

    Indexing raises UnknownPromptError, PromptMismatchError for a prompt of another model, and
    PromptFileError or StorageError for a file that has become unreadable.
    """

    def __init__(self, library: PromptLibrary, model: LanguageModel) -> None:
        self.library = library
        self.model = model
        self._headers: dict[str, PromptHeader] = {}
        self._checked: dict[str, SoftPrompt] = {}

    def look(self) -> None:
        """Looks into the folder."""
        self._headers = {header.name: header for header in self.library.listing().headers}
        for name in self._checked.keys() - self._headers.keys():
            self._checked.pop(name, None)

    def shown(self) -> str:
        """The names, some of many, for a message."""
        some = sorted(self._headers)
        return ", ".join(some[:SHOWN]) + (" …" if len(some) > SHOWN else "") or "none, as yet"

    def fitting(self) -> list[str]:
        """Names of the prompts whose shape is right for the model."""
        return [name for name, header in self._headers.items() if self._fits(header)]

    def __getitem__(self, name: str) -> SoftPrompt:
        if name not in self._headers:
            raise UnknownPromptError(
                f"there is no soft prompt {name!r:.200}; expected one of: {self.shown()}; name "
                "another"
            )
        prompt = self.library[name]  # read once, until its file changes
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

    def _fits(self, header: PromptHeader) -> bool:
        try:
            return header.shape == prompt_shape(self.model, header.kind, header.n_tokens)
        except UnsupportedModelError:
            return False


class UsablePrompts(Mapping[str, SoftPrompt]):
    """A shelf on which prompts that cannot be used do not stand: lore enters as text then."""

    def __init__(self, shelf: PromptStore) -> None:
        self._shelf = shelf

    def __getitem__(self, name: str) -> SoftPrompt:
        try:
            return self._shelf[name]
        except (InputError, OSError) as error:
            raise UnknownPromptError(str(error)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._shelf

    def __iter__(self) -> Iterator[str]:
        return iter(self._shelf)

    def __len__(self) -> int:
        return len(self._shelf)
