"""What each token of a vocabulary writes, so that tokens can be found by text."""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """The tokens of a tokenizer by what they write, whatever its case.

    Texts are casefolded, a character by itself, so that the text of a run of tokens is their
    texts side by side. A token may also be a part of a character; bytes that make no character
    are left out, as in what is told of a text.

    Attributes:
        texts: what each token writes that comes by itself; nothing for a part of a character.
        parts: ids that may end a character which the tokens before them began.
        start: what stands before the first token (CTRL puts a space between words).
    """

    def __init__(
        self, tokenizer: Any, size: int, silent: Collection[int] = (), joined: bool = False
    ) -> None:
        """Reads a tokenizer.

        Args:
            tokenizer: a transformers tokenizer.
            size: how many ids there are.
            silent: ids that write nothing, such as the end of the text.
            joined: tokens are words and beginnings of words, as CTRL's.
        """
        written = _words(tokenizer, size) if joined else _bytes(tokenizer, size)
        self._bytes = [b"" if i in silent else one for i, one in enumerate(written)]
        self.start = " " if joined else ""
        self.texts = [_told(one) for one in self._bytes]
        self.parts = [i for i, one in enumerate(self._bytes) if one and one[0] & 0xC0 == 0x80]
        self._sorted = sorted((text, i) for i, text in enumerate(self.texts) if text)

    def text(self, ids: Sequence[int], least: int) -> tuple[str, bytes]:
        """The end of a text, `least` characters or all, and the bytes of a character begun."""
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

    def holding(self, text: str) -> list[int]:
        """Ids whose text holds `text` anywhere."""
        wanted = text.casefold()
        return [i for i, one in enumerate(self.texts) if wanted in one]

    def beginning(self, text: str) -> list[int]:
        """Ids whose text begins with `text`, which is casefolded."""
        found = []
        at = bisect_left(self._sorted, (text, -1))
        while at < len(self._sorted) and self._sorted[at][0].startswith(text):
            found.append(self._sorted[at][1])
            at += 1
        return found

    def mended(self, begun: bytes) -> list[tuple[int, str]]:
        """The ids of `parts` with what they write after bytes that began a character."""
        return [(i, _told(begun + self._bytes[i])) for i in self.parts]


def _told(written: bytes) -> str:
    return written.decode("utf-8", "ignore").replace("\ufffd", "").casefold()


def _words(tokenizer: Any, size: int) -> list[bytes]:
    """Words with a space after each, and beginnings of words, which end in "@@", without."""
    words = [str(one) for one in tokenizer.convert_ids_to_tokens(list(range(size)))]
    return [(one[:-2] if one.endswith("@@") else one + " ").encode() for one in words]


def _bytes(tokenizer: Any, size: int) -> list[bytes]:
    """What each token writes inside a text; parts of characters are read from their symbols."""
    head = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    texts = tokenizer.batch_decode(
        [head, *([*head, i] for i in range(size))], clean_up_tokenization_spaces=False
    )
    before = len(texts.pop(0))
    alphabet = _byte_alphabet()
    written = []
    for i, text in enumerate(texts):
        if "\ufffd" not in text:
            written.append(text[before:].encode())
            continue
        symbol = str(tokenizer.convert_ids_to_tokens(i))
        byte = _BYTE.fullmatch(symbol)
        if byte:
            written.append(bytes([int(byte[1], 16)]))
        elif all(one in alphabet for one in symbol):
            written.append(bytes(alphabet[one] for one in symbol))
        else:
            written.append(text[before:].replace("\ufffd", "").encode())
    return written


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in GPT-2's and later byte-level tokenizers."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}
