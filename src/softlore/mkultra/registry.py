"""The placeholder tokens of soft prompts, in tokenizers and models under mkultra's names.

mkultra's tags are plain strings, so only a registry can lead from a tag back to its prompt. It is
softlore's only global state, and holds weak references: a prompt lives as long as it is referenced,
or a tokenizer or model that knows its tag.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet, WeakValueDictionary

SOFT_TOKEN = "<@>"  # every token of a tag except the first


class PromptVocabulary:
    """The placeholder tokens shared by all tokenizers and models of one vocabulary.

    A placeholder has the same id in all of them, beyond the tokens of each, so that an id
    identifies a prompt whichever tokenizer it came from.

    Attributes:
        prompts: MkultraSoftPrompts by the first id of their tag.
        soft: the id of `<@>`; None until there is a tokenizer.
    """

    def __init__(self) -> None:
        self.prompts: dict[int, Any] = {}
        self._known: dict[str, Any] = {}
        self._ids: dict[str, int] = {}
        self._tokenizers: WeakSet[Any] = WeakSet()

    @property
    def soft(self) -> int | None:
        return self._ids.get(SOFT_TOKEN)

    @property
    def tokens(self) -> list[str]:
        """The first tokens of all tags."""
        return list(self._known)

    @property
    def ids(self) -> set[int]:
        """All placeholder ids, which a model may never generate."""
        return set(self._ids.values())

    def join(self, tokenizer: Any) -> None:
        """Adds a tokenizer, which gets the tokens of all known prompts."""
        self._tokenizers.add(tokenizer)
        for token in [SOFT_TOKEN, *self._known]:
            self._assign_id(token)

    def add(self, prompt: Any) -> None:
        """Adds a prompt, whose token all tokenizers get."""
        self._known[prompt.token] = prompt
        if self._tokenizers:
            self._assign_id(prompt.token)

    def _assign_id(self, token: str) -> None:
        if token not in self._ids:
            free = [_next_id(tokenizer) for tokenizer in self._tokenizers]
            self._ids[token] = max([*free, *(used + 1 for used in self._ids.values())])
        number = self._ids[token]
        for tokenizer in self._tokenizers:
            while (free_id := _next_id(tokenizer)) < number:
                _add_token(tokenizer, f"<@{free_id}>")  # an id with another use elsewhere
            _add_token(tokenizer, token)
        if token in self._known:
            self.prompts[number] = self._known[token]


def _next_id(tokenizer: Any) -> int:
    """The id that a tokenizer would assign to a new token."""
    return int(max([tokenizer.vocab_size, *(i + 1 for i in tokenizer.get_added_vocab().values())]))


def _add_token(tokenizer: Any, token: str) -> None:
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, normalized=False)])


_VOCABULARIES: WeakValueDictionary[str, PromptVocabulary] = WeakValueDictionary()
_PROMPTS: WeakSet[Any] = WeakSet()


def vocabulary_of(tokenizer: Any) -> PromptVocabulary:
    """The vocabulary shared by all tokenizers that were loaded with the same tokens."""
    if hasattr(tokenizer, "softlore_vocabulary"):
        return tokenizer.softlore_vocabulary
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    key = hashlib.sha256(repr(tokens).encode("utf-8", "surrogatepass")).hexdigest()
    vocabulary = _VOCABULARIES.get(key)
    if vocabulary is None:
        vocabulary = PromptVocabulary()
        for prompt in list(_PROMPTS):
            vocabulary.add(prompt)
        _VOCABULARIES[key] = vocabulary
    tokenizer.softlore_vocabulary = vocabulary
    return vocabulary


def vocabularies() -> Iterator[PromptVocabulary]:
    """Those that a tokenizer or model still references."""
    return iter(list(_VOCABULARIES.values()))


def register(prompt: Any) -> None:
    """Adds a prompt's tag to all tokenizers, present and future."""
    _PROMPTS.add(prompt)
    for vocabulary in vocabularies():
        vocabulary.add(prompt)


def registered(token: str) -> Any:
    """The living prompt whose tag begins with `token`, or None."""
    return next((p for p in list(_PROMPTS) if p.token == token), None)
