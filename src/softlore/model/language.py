"""LanguageModel: tokenizer, sizes and fingerprint of a model, whichever program runs it."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any, TypeVar

import torch

from softlore.errors import InputError, PromptMismatchError, UnsupportedModelError
from softlore.model import fingerprint as sketches
from softlore.model.families import Family
from softlore.model.vocabulary import TextDecoder, TokenBytes, Vocabulary
from softlore.settings.arguments import FLAG, PROMPT, expecting

MAX_ID = 2**31  # no tokenizer has so many
T = TypeVar("T")


class LanguageModel(ABC):
    """A frozen model as composing, decoding and serving see it.

    Attributes:
        tokenizer: a transformers tokenizer.
        name: the name or path it was loaded by.
        family: what is particular to its model family.
        width: columns of an embedding row, as the forward takes it.
        vocab_size: rows of its embedding table.
        layers, kv_heads, head_dim: the shape of a prefix.
        takes_prefix: False where keys and values differ in shape, so that only embedding
            prompts can be made.
        context_length: the most tokens that it can read, or None where there is no limit.
        bos_id: the token that its tokenizer puts before every text, or None.
        device, dtype: of the soft prompts that it reads.
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
        """Ids of its control codes by name, as its files have them, unchecked."""

    @abstractmethod
    def _sketched(self, kind: str) -> dict[str, Any]:
        """Computes `fingerprint`."""

    def with_weights(self, what: str) -> LanguageModel:
        """This model as one of transformers: see `require_frozen_model`.

        Args:
            what: the feature that needs its weights, for the message.

        Raises:
            UnsupportedModelError: it is run by another program, and its weights can't be had.
        """
        raise UnsupportedModelError(
            f"{what} needs weights that softlore can run itself, and {self.name!r} is run by "
            "another program; expected a transformers model, or a GGUF file; name it with --model"
        )

    def __repr__(self) -> str:
        details = f"{self.name!r}, {self.model_type}, {self.dtype}, {self.device}"
        return f"{type(self).__name__}({details})"

    # text and ids ------------------------------------------------------------------------------

    @expecting(InputError, inside=FLAG)
    def encode(self, text: str, inside: bool = False) -> list[int]:
        """Token ids of `text`, without special tokens.

        Args:
            inside: the text continues other text, so no space is put before it (as the tokenizers
                of Llama 2 and Mistral put).

        Raises:
            InputError: no text, a lone surrogate, or a token that the model has no embedding of.
        """
        if inside and text and self._adds_space:
            newline = self._ids("\n")
            ids = self._ids("\n" + text)
            if ids[: len(newline)] == newline:
                return ids[len(newline) :]
        return self._ids(text)

    @cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer puts a space before a text."""
        return self._ids("\na") != self._ids("\n") + self._ids("a")

    def _ids(self, text: str) -> list[int]:
        try:
            if not isinstance(text, str):
                raise TypeError(type(text))
            ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{text!r:.60} can't be made into tokens; expected text, without halves of "
                "characters (surrogates); replace it"
            ) from error
        if ids and max(ids) >= self.vocab_size:  # such as Gemma 3's <image_soft_token>
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise InputError(
                f"the text holds {token!r}, token {max(ids)} of the tokenizer, which "
                f"{self.name!r} has no embedding of; expected tokens below {self.vocab_size}; "
                "take it out of the text"
            )
        return ids

    def decode(self, ids: Sequence[int], inside: bool = False) -> str:
        """The text of ids; `inside`: it continues other text, and may begin with a space.

        Bytes that make no character become U+FFFD.
        """
        if not all(isinstance(i, Integral) and 0 <= int(i) < MAX_ID for i in _listed(ids)):
            raise InputError(
                f"{ids!r:.60} can't be made into text; expected ids of tokens, whole numbers from "
                "0; fix them"
            )
        if inside:
            decoder = self.decoder()
            return decoder.add(ids) + decoder.flush()
        text = str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
        if "\ufffd" in text:  # see `TextDecoder`
            text = self.decode(ids, inside=True)
            return text.removeprefix(" ") if self._removes_space else text
        # The tokenizer removes the "@@" after a word's beginning, except at the end.
        return text.removesuffix("@@") if self.family.word_tokens else text

    def decoder(self) -> TextDecoder:
        """Decodes ids that come one by one, as `decode` does inside a text."""
        return TextDecoder(self.token_bytes)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes of each token inside a text."""
        return TokenBytes(self.tokenizer, self.family.word_tokens)

    @cached_property
    def _removes_space(self) -> bool:
        """Whether the tokenizer removes the space before a text that it decodes."""
        ids = self._ids("a")
        return self.decode(ids, inside=True) == " " + self.decode(ids)

    @property
    def bos(self) -> list[int]:
        """The ids at the start of every context: one BOS, or none."""
        return [] if self.bos_id is None else [self.bos_id]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that random filler must not contain."""
        return frozenset(self.tokenizer.all_special_ids) | frozenset(
            self.tokenizer.get_added_vocab().values()
        )

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text."""
        ids = [*self._configured_eos(), self.tokenizer.eos_token_id]
        return frozenset(i for i in ids if i is not None)

    def _configured_eos(self) -> Sequence[int | None]:
        """Ids that end a text according to its files, besides the tokenizer's EOS."""
        return ()

    @cached_property
    def banned_ids(self) -> tuple[int, ...]:
        """Ids that are never to be generated."""
        return tuple(sorted(self.family.banned_ids(self.tokenizer)))

    @cached_property
    def bracket_ids(self) -> tuple[int, ...]:
        """Ids whose text contains a square bracket."""
        ids = range(min(self.vocab_size, len(self.tokenizer)))
        return tuple(i for i in ids if re.search(r"[\[\]]", self.decode([i])))

    @cached_property
    def ordinary_ids(self) -> list[int]:
        """Ids of the tokenizer that ordinary text may contain, in order."""
        excluded = self.special_ids | set(self.banned_ids)
        return [i for i in range(min(self.vocab_size, len(self.tokenizer))) if i not in excluded]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The text of each token."""
        size = min(self.vocab_size, len(self.tokenizer))
        return Vocabulary(self.token_bytes, size, self.eos_ids)

    def once(self, make: Callable[[LanguageModel], T]) -> T:
        """What `make` returns for this model: made when first asked for, kept with the model.

        It should refer to the model weakly, so that both are freed together.
        """
        if make not in self._made:
            self._made.setdefault(make, make(self))
        made: T = self._made[make]
        return made

    @cached_property
    def _made(self) -> dict[Callable[[LanguageModel], Any], Any]:
        return {}

    # fingerprints -----------------------------------------------------------------------------

    def fingerprint(self, kind: str) -> dict[str, Any]:
        """The numeric sketch that a prompt of this kind carries (see `model.fingerprint`).

        Computed once, as the weights never change. Callers must not modify it.
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

    @expecting(prompt=PROMPT, any_model=FLAG)
    def check_prompt(self, prompt: Any, any_model: bool = False) -> None:
        """Raises PromptMismatchError when a SoftPrompt was made for another model.

        Args:
            any_model: check the shape only.
        """
        shape = prompt_shape(self, prompt.kind, len(prompt))
        tensor = prompt.embeddings if prompt.kind == "embedding" else prompt.key_values
        if tuple(tensor.shape) != shape:
            other = f" and was made for {prompt.base_model!r}" if prompt.base_model else ""
            load = repr(prompt.base_model) if prompt.base_model else "the model it was made for"
            raise PromptMismatchError(
                f"prompt {prompt.name!r} has shape {tuple(tensor.shape)}{other}; expected {shape} "
                f"for model {self.name!r}; load {load}, or train the prompt for this one"
            )
        if any_model:
            return
        own = self.fingerprint(prompt.kind)
        sketches.check(own, prompt.fingerprint, prompt.name, self.name, prompt.base_model)

    @cached_property
    def _fingerprints(self) -> dict[str, dict[str, Any]]:
        return {}

    def check_steered(self, layers: Sequence[int]) -> None:  # noqa: B027 - most can add to all
        """Raises UnsupportedModelError where control vectors can't be added to these layers."""

    def check_takes_prefix(self) -> None:
        """Raises UnsupportedModelError where `takes_prefix` is False."""
        if not self.takes_prefix:
            raise UnsupportedModelError(
                f"model type {self.model_type!r} caches keys and values of different shapes, "
                "which no prefix prompt can hold; expected one shape for all layers; use "
                "kind='embedding'"
            )


def _listed(ids: Any) -> Sequence[Any]:
    """Ids as they are; of anything else what is no id."""
    return ids if isinstance(ids, Sequence) and not isinstance(ids, str | bytes) else (None,)


def prompt_shape(model: LanguageModel, kind: str, n_tokens: int) -> tuple[int, ...]:
    """The shape of a soft prompt's tensor for a model; rejects a prefix where it takes none."""
    if kind == "embedding":
        return (n_tokens, model.width)
    model.check_takes_prefix()
    return (model.layers, 2, model.kv_heads, n_tokens, model.head_dim)
