"""Which placeholder tokens stand for which soft prompts: softlore's only registry, and a weak one.

mkultra's tags are plain strings, so that nothing but a registry can lead from a tag back to its
prompt. It keeps nothing alive: a prompt lives as long as someone holds it, or a tokenizer or model
that knows its tag.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol
from weakref import WeakSet, WeakValueDictionary

from torch import Tensor

SOFT_TOKEN = "<@>"  # every token of a tag but its first


class Tagged(Protocol):
    """A soft prompt that has a tag."""

    def __len__(self) -> int: ...

    def get_inputs_embeds(self) -> Tensor:
        """Its rows."""
        ...

    def _unique_token_str(self) -> str: ...


class PromptVocabulary:
    """The placeholder tokens that tokenizers of one vocabulary, and models that read it, share.

    A placeholder has one id in all of them, past the tokens of each, so that an id says which
    prompt is meant whichever tokenizer it came from.

    Attributes:
        prompts: by the id that their tag begins with.
        soft: the id of `<@>`; none until there is a tokenizer.
    """

    def __init__(self) -> None:
        self.prompts: dict[int, Tagged] = {}
        self._known: dict[str, Tagged] = {}
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
        """All placeholder ids: none of them may ever be written by a model."""
        return set(self._ids.values())

    def join(self, tokenizer: Any) -> None:
        """Gives a tokenizer the tokens of every prompt that is known here."""
        self._tokenizers.add(tokenizer)
        for token in [SOFT_TOKEN, *self._known]:
            self._give_out(token)

    def add(self, prompt: Tagged) -> None:
        """Gives every tokenizer the token of a prompt."""
        token = prompt._unique_token_str()
        self._known[token] = prompt
        if self._tokenizers:
            self._give_out(token)

    def _give_out(self, token: str) -> None:
        if token not in self._ids:
            free = [_next_id(tokenizer) for tokenizer in self._tokenizers]
            self._ids[token] = max([*free, *(taken + 1 for taken in self._ids.values())])
        number = self._ids[token]
        for tokenizer in self._tokenizers:
            while (free_id := _next_id(tokenizer)) < number:
                _add_token(tokenizer, f"<@{free_id}>")  # holds the place: it has another use
            _add_token(tokenizer, token)
        if token in self._known:
            self.prompts[number] = self._known[token]


def _next_id(tokenizer: Any) -> int:
    """The id that a tokenizer gives to the next token it is given."""
    return int(max([tokenizer.vocab_size, *(i + 1 for i in tokenizer.get_added_vocab().values())]))


def _add_token(tokenizer: Any, token: str) -> None:
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, normalized=False)])


_VOCABULARIES: WeakValueDictionary[str, PromptVocabulary] = WeakValueDictionary()
_PROMPTS: WeakSet[Any] = WeakSet()


def vocabulary_of(tokenizer: Any) -> PromptVocabulary:
    """What all tokenizers that were loaded with the same tokens share."""
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
    """Those that a tokenizer or a model still holds."""
    return iter(list(_VOCABULARIES.values()))


def register(prompt: Tagged) -> None:
    """Makes a prompt's tag known to all tokenizers, present and future."""
    _PROMPTS.add(prompt)
    for vocabulary in vocabularies():
        vocabulary.add(prompt)


def registered(token: str) -> Any:
    """The living prompt whose tag begins with `token`, or None."""
    return next((p for p in list(_PROMPTS) if p._unique_token_str() == token), None)
