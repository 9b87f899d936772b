"""From ids to text as they come: whole characters only, and nothing that a stop string cuts off."""

from __future__ import annotations

from collections.abc import Sequence

from softlore.model import LanguageModel

LONG = 64  # tokens of a line after which a new line is decoded by itself


class Detokenizer:
    """Text of a run of ids, piece by piece, ending before any stop string.

    A piece is held back while a stop string may begin in it. Bytes that make no character, or
    none yet, are left out.
    """

    def __init__(self, model: LanguageModel, stops: Sequence[str] = ()) -> None:
        self.stopped_by: str | None = None
        self._model = model
        self._stops = tuple(stops)
        self._ids: list[int] = []  # since the last line that was let go
        self._text = ""
        self._told = 0

    def feed(self, token: int) -> str:
        """The text that has become sure; `stopped_by` is set once a stop string is whole."""
        self._ids.append(token)
        self._text = self._model.decode(self._ids, inside=True).replace("\ufffd", "")
        if self._stop():
            return self._tell(len(self._text))
        piece = self._tell(len(self._text) - _unsure(self._text, self._stops))
        self._let_go()
        return piece

    def flush(self) -> str:
        """What was held back, once no more ids come."""
        return self._tell(len(self._text))

    def _stop(self) -> bool:
        found = [
            (at, stop)
            for stop in self._stops
            if (at := self._text.find(stop, max(0, self._told - len(stop)))) >= 0
        ]
        if found:
            at, self.stopped_by = min(found)
            self._text = self._text[:at]
        return bool(found)

    def _tell(self, end: int) -> str:
        piece = self._text[self._told : end]
        self._told = max(self._told, end)
        return piece

    def _let_go(self) -> None:
        """Forgets a long line that has ended, so that a long text is not decoded over and over."""
        if len(self._ids) > LONG and self._told == len(self._text) and self._text.endswith("\n"):
            self._ids, self._text, self._told = [], "", 0


def _unsure(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may turn out to begin a stop string."""
    held = (
        n for s in stops for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n])
    )
    return max(held, default=0)
