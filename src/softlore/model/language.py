"""LanguageModel: what composing, writing and serving must know of a model, whatever runs it."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from softlore.errors import PromptMismatchError, UnsupportedModelError
from softlore.model import fingerprint as sketches
from softlore.model.families import Family
from softlore.model.vocabulary import Vocabulary


class LanguageModel(ABC):
    """A model by its tokenizer, its sizes and its fingerprint; only ever read, never trained.

    Attributes:
        tokenizer: a transformers tokenizer.
        name: the name or path it was loaded by.
        family: what is particular to its model family.
        width: columns of an embedding row, as the forward takes them.
        vocab_size: rows of its embedding table.
        layers, kv_heads, head_dim: the shape of a prefix.
        takes_prefix: False where keys and values differ in shape, so that only embedding
            prompts can be made.
        context_length: the most tokens it can read, or None where it has no end.
        bos_id: the token that its tokenizer puts before every text, or None.
        device, dtype: where soft prompts go, and as what.
    """

    tokenizer: Any
    name: str
    family: Family
    width: int
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    takes_prefix: bool
    context_length: int | None
    bos_id: int | None

    @property
    def model_type(self) -> str:
        """The name of its family, as transformers (or llama.cpp) has it."""
        return self.family.model_type

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @property
    @abstractmethod
    def control_codes(self) -> Any:
        """Ids of the codes that it was trained with, by name, as its files have them: unchecked."""

    @abstractmethod
    def _sketched(self, kind: str) -> dict[str, Any]:
        """The sketch of `fingerprint`, made anew."""

    def __repr__(self) -> str:
        own = type(self).__name__
        return f"{own}({self.name!r}, {self.model_type}, {self.dtype}, {self.device})"

    # text and ids ------------------------------------------------------------------------------

    def encode(self, text: str, inside: bool = False) -> list[int]:
        """Token ids of `text`, without special tokens.

        `inside`: the text goes on from other text, so that no space is put before it (as the
        tokenizers of Llama 2 and Mistral do).
        """
        if inside and text and self._spaces:
            head = self._ids("\n")
            ids = self._ids("\n" + text)
            if ids[: len(head)] == head:
                return ids[len(head) :]
        return self._ids(text)

    @cached_property
    def _spaces(self) -> bool:
        """Whether the tokenizer puts a space before a text."""
        return self._ids("\na") != self._ids("\n") + self._ids("a")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int], inside: bool = False) -> str:
        """The text of ids; `inside`: it goes on from other text, and may begin with a space."""
        if inside:
            head, length = self._word
            return self.decode([*head, *ids])[length:]
        text = str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
        # The tokenizer removes the "@@" after a word's beginning, except at the end.
        return text.removesuffix("@@") if self.family.word_tokens else text

    @cached_property
    def _word(self) -> tuple[list[int], int]:
        """The ids of a word to go on from, and how long its text is."""
        ids = self._ids("a")
        return ids, len(self.decode(ids))

    @property
    def bos(self) -> list[int]:
        """The ids that head every context: one BOS, or nothing."""
        return [] if self.bos_id is None else [self.bos_id]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that random filler must never hold."""
        return frozenset(self.tokenizer.all_special_ids) | frozenset(
            self.tokenizer.get_added_vocab().values()
        )

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text."""
        ids = [*self._configured_eos(), self.tokenizer.eos_token_id]
        return frozenset(i for i in ids if i is not None)

    def _configured_eos(self) -> Sequence[int | None]:
        """Ids that its files say end a text, besides the tokenizer's own."""
        return ()

    @cached_property
    def banned_ids(self) -> tuple[int, ...]:
        """Ids that are never to be generated."""
        return tuple(sorted(self.family.banned_ids(self.tokenizer)))

    @cached_property
    def bracket_ids(self) -> tuple[int, ...]:
        """Ids whose text holds a square bracket."""
        ids = range(min(self.vocab_size, len(self.tokenizer)))
        return tuple(i for i in ids if re.search(r"[\[\]]", self.decode([i])))

    @cached_property
    def ordinary_ids(self) -> list[int]:
        """Ids that the tokenizer has and ordinary text may hold, in order."""
        barred = self.special_ids | set(self.banned_ids)
        return [i for i in range(min(self.vocab_size, len(self.tokenizer))) if i not in barred]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What each token writes."""
        size = min(self.vocab_size, len(self.tokenizer))
        return Vocabulary(self.tokenizer, size, self.eos_ids, self.family.word_tokens)

    # what prompts are compared with ------------------------------------------------------------

    def fingerprint(self, kind: str) -> dict[str, Any]:
        """The numeric sketch that a prompt of this kind carries (see `model.fingerprint`).

        Made once, as the weights never change; not to be changed by who gets it.
        """
        if kind not in self._fingerprints:
            self._fingerprints[kind] = self._sketched(kind)
        return self._fingerprints[kind]

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 of the vocabulary in id order."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        joined = "\n".join(token for token, _ in vocabulary)
        return "sha256:" + hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()

    def check_prompt(self, prompt: Any, any_model: bool = False) -> None:
        """Raises PromptMismatchError when a SoftPrompt was made for another model.

        `any_model`: it is enough that its shape fits.
        """
        shape = prompt_shape(self, prompt.kind, len(prompt))
        tensor = prompt.embeddings if prompt.kind == "embedding" else prompt.key_values
        if tuple(tensor.shape) != shape:
            raise PromptMismatchError(
                f"prompt {prompt.name!r} has shape {tuple(tensor.shape)}; expected {shape} for "
                f"model {self.name!r}; load the model it was made for"
            )
        if any_model:
            return
        sketches.check(self.fingerprint(prompt.kind), prompt.fingerprint, prompt.name, self.name)

    @cached_property
    def _fingerprints(self) -> dict[str, dict[str, Any]]:
        return {}

    def _expect_prefix(self) -> None:
        if not self.takes_prefix:
            raise UnsupportedModelError(
                f"model type {self.model_type!r} keeps keys and values of different shapes, "
                "which no prefix prompt can hold; expected one shape for all layers; use "
                "kind='embedding'"
            )


def prompt_shape(model: LanguageModel, kind: str, n_tokens: int) -> tuple[int, ...]:
    """The shape of a soft prompt's tensor for a model."""
    if kind == "embedding":
        return (n_tokens, model.width)
    model._expect_prefix()
    return (model.layers, 2, model.kv_heads, n_tokens, model.head_dim)
