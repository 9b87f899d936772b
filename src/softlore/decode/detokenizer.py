"""Detokenizer: ids to text as they are generated, in complete characters, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from softlore.model import LanguageModel

WINDOW = 16  # tokens that are decoded together, at most, where they can be separated
OVERLAP = 4  # tokens of a window that are decoded again with the next one


class Detokenizer:
    """Decodes ids one by one into text that ends before any stop string.

    Text is held back while a stop string may begin in it. Bytes that make no character, or
    none yet, are left out.

    Attributes:
        stopped_by: the stop string that ended the text; None while there is none.
    """

    def __init__(self, model: LanguageModel, stops: Sequence[str] = ()) -> None:
        self.stopped_by: str | None = None
        self._model = model
        self._stops = tuple(stops)
        self._ids: list[int] = []  # the last `WINDOW` or so
        self._text = ""  # the text of `_ids`
        self._returned = 0  # characters of `_text` that have been returned

    def add(self, token: int) -> str:
        """The text that can no longer change; sets `stopped_by` once a stop string is complete."""
        self._ids.append(token)
        self._text = self._decode(self._ids)
        if self._stop():
            return self._advance(len(self._text))
        piece = self._advance(len(self._text) - _count_uncertain(self._text, self._stops))
        if len(self._ids) > WINDOW:
            self._shorten()
        return piece

    def flush(self) -> str:
        """The text that was held back, once no more ids come."""
        return self._advance(len(self._text))

    def _stop(self) -> bool:
        matches = [
            (at, stop)
            for stop in self._stops
            if (at := self._text.find(stop, max(0, self._returned - len(stop)))) >= 0
        ]
        if matches:
            at, self.stopped_by = min(matches)
            self._text = self._text[:at]
        return bool(matches)

    def _advance(self, end: int) -> str:
        piece = self._text[self._returned : end]
        self._returned = max(self._returned, end)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids, inside=True).replace("\ufffd", "")

    def _shorten(self) -> None:
        """Drops ids whose text is returned, as decoding takes time that grows with them.

        Only where the text of the others does not depend on them: not within a character, say.
        """
        old, new = self._ids[:-OVERLAP], self._ids[-OVERLAP:]
        text = self._decode(old)
        if len(text) <= self._returned and text + self._decode(new) == self._text:
            self._ids, self._text = new, self._text[len(text) :]
            self._returned -= len(text)


def _count_uncertain(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may turn out to begin a stop string."""
    beginnings = (
        n for s in stops for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n])
    )
    return max(beginnings, default=0)
