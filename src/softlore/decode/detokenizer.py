"""From ids to text as they come: only complete characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from softlore.model import LanguageModel

LONG = 64  # tokens after which a new line is decoded by itself


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
        self._ids: list[int] = []  # since the last line that is done with
        self._text = ""  # of these ids
        self._returned = 0  # characters of it

    def add(self, token: int) -> str:
        """The text that has become certain; sets `stopped_by` once a stop string is complete."""
        self._ids.append(token)
        self._text = self._model.decode(self._ids, inside=True).replace("\ufffd", "")
        if self._stop():
            return self._advance(len(self._text))
        piece = self._advance(len(self._text) - _count_uncertain(self._text, self._stops))
        self._drop_finished_line()
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

    def _drop_finished_line(self) -> None:
        """Forgets a long line that has ended, as decoding takes time that grows with the ids."""
        finished = self._returned == len(self._text) and self._text.endswith("\n")
        if finished and len(self._ids) > LONG:
            self._ids, self._text, self._returned = [], "", 0


def _count_uncertain(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may turn out to begin a stop string."""
    beginnings = (
        n for s in stops for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n])
    )
    return max(beginnings, default=0)
