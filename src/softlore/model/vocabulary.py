"""The text of tokens: as ids come, one by one, and of a whole vocabulary, to look tokens up."""

from __future__ import annotations

import codecs
import functools
import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """The bytes of each token inside a text, read from a tokenizer as they are asked for.

    Joined they are the text of a run of tokens in UTF-8. A token may be a part of a character.

    Args:
        tokenizer: a transformers tokenizer.
        words: tokens are words, which have a space after them, and beginnings of words
            (`Family.word_tokens`).
    """

    def __init__(self, tokenizer: Any, words: bool = False) -> None:
        self.words = words
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}

    def __call__(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each of `ids`."""
        if missing := [i for i in dict.fromkeys(ids) if i not in self._known]:
            read = _words if self.words else _bytes
            self._known.update(zip(missing, read(self._tokenizer, missing), strict=True))
        return [self._known[i] for i in ids]


class TextDecoder:
    """Decodes ids one by one into the text that they have inside a text.

    A character is returned with its last byte. Bytes that make no character become U+FFFD, each
    run of them by itself; decoders of tokenizers with byte fallback (Gemma, Llama 2, Mistral)
    would give up all characters in bytes beside them.
    """

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._space = " " if token_bytes.words else ""  # between words

    def add(self, ids: Sequence[int]) -> str:
        """The text of more ids, as far as it is complete."""
        text = self._decoder.decode(b"".join(self._bytes(ids)))
        if not self._bytes.words or not text:
            return text
        text = self._space + text
        self._space = " " if text.endswith(" ") else ""
        return text.removesuffix(" ")

    def flush(self) -> str:
        """U+FFFD for a character whose rest has not come."""
        return self._decoder.decode(b"", final=True)


class Vocabulary:
    """The tokens of a tokenizer by their text, ignoring case.

    Texts are casefolded, each character by itself, so that the text of a run of tokens is the
    concatenation of theirs. A token may also be a part of a character; bytes that make no
    character are left out, as when text is decoded.

    Attributes:
        texts: the text of each token by itself; empty for a part of a character.
        parts: ids that may complete a character which the tokens before them began.
        start: the text before the first token (CTRL puts a space between words).
    """

    def __init__(self, token_bytes: TokenBytes, size: int, silent: Collection[int] = ()) -> None:
        """Reads a tokenizer.

        Args:
            size: the number of ids.
            silent: ids without text, such as the end of the text.
        """
        every = enumerate(token_bytes(range(size)))
        self._bytes = [b"" if i in silent else token for i, token in every]
        self.start = " " if token_bytes.words else ""
        self.texts = [_folded(token) for token in self._bytes]
        self.parts = [i for i, token in enumerate(self._bytes) if token and _is_part(token)]
        self._sorted = sorted((text, i) for i, text in enumerate(self.texts) if text)

    @functools.cached_property
    def letters(self) -> list[int]:
        """Ids whose text begins with a letter that has an upper and a lower case."""
        firsts = [text[:1] for text in self.texts]
        return [i for i, first in enumerate(firsts) if first.lower() != first.upper()]

    @functools.cached_property
    def _sorted_bytes(self) -> list[tuple[bytes, int]]:
        return sorted((token, i) for i, token in enumerate(self._bytes) if token)

    def extending(self, text: bytes) -> list[int]:
        """Ids whose text begins with `text` and is longer. Case counts."""
        ids = []
        at = bisect_left(self._sorted_bytes, (text, -1))
        while at < len(self._sorted_bytes) and self._sorted_bytes[at][0].startswith(text):
            if len(self._sorted_bytes[at][0]) > len(text):
                ids.append(self._sorted_bytes[at][1])
            at += 1
        return ids

    def text(self, ids: Sequence[int], least: int) -> tuple[str, bytes]:
        """The end of a text, at least `least` characters of it, and the bytes of a partial one."""
        count = least
        while True:
            run = [self._bytes[i] for i in ids[-count:] if i < len(self._bytes)]
            decoder = codecs.getincrementaldecoder("utf-8")("ignore")
            text = decoder.decode(b"".join(run)).replace("\ufffd", "").casefold()
            if count >= len(ids):
                return self.start + text, decoder.getstate()[0]
            if len(text) >= least:
                return text, decoder.getstate()[0]
            count *= 2

    def containing(self, text: str) -> list[int]:
        """Ids whose text contains `text`."""
        folded = text.casefold()
        return [i for i, token in enumerate(self.texts) if folded in token]

    def starting_with(self, text: str) -> list[int]:
        """Ids whose text starts with `text`, which is casefolded."""
        ids = []
        at = bisect_left(self._sorted, (text, -1))
        while at < len(self._sorted) and self._sorted[at][0].startswith(text):
            ids.append(self._sorted[at][1])
            at += 1
        return ids

    def completions(self, partial: bytes) -> list[tuple[int, str]]:
        """The ids of `parts`, with their text after the bytes of a partial character."""
        return [(i, _folded(partial + self._bytes[i])) for i in self.parts]


def _folded(token: bytes) -> str:
    return token.decode("utf-8", "ignore").replace("\ufffd", "").casefold()


def _is_part(token: bytes) -> bool:
    """Whether a token begins inside a character of UTF-8."""
    return token[0] & 0xC0 == 0x80


def _words(tokenizer: Any, ids: Sequence[int]) -> list[bytes]:
    """Words with a space after each, and beginnings of words, which end in "@@", without."""
    words = [str(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    return [(word[:-2] if word.endswith("@@") else word + " ").encode() for word in words]


def _bytes(tokenizer: Any, ids: Sequence[int]) -> list[bytes]:
    """The bytes of each token inside a text; parts of characters are read from their symbols."""
    first = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    texts = tokenizer.batch_decode(
        [first, *([*first, i] for i in ids)], clean_up_tokenization_spaces=False
    )
    before = len(texts.pop(0))
    alphabet = _byte_alphabet()
    token_bytes = []
    for i, text in zip(ids, texts, strict=True):
        if "\ufffd" not in text:
            token_bytes.append(text[before:].encode("utf-8", "replace"))
            continue
        symbol = str(tokenizer.convert_ids_to_tokens(i))
        byte = _BYTE.fullmatch(symbol)
        if byte:
            token_bytes.append(bytes([int(byte[1], 16)]))
        elif all(character in alphabet for character in symbol):
            token_bytes.append(bytes(alphabet[character] for character in symbol))
        else:
            token_bytes.append(text[before:].encode())
    return token_bytes


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level tokenizers, GPT-2's and later ones."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}
