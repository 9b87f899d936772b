"""Detokenizer: ids to text as they are generated, in complete characters, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from softlore.model import LanguageModel


class Detokenizer:
    """Decodes ids one by one into text that ends before any stop string.

    Text is held back while a stop string may begin in it. Bytes that make no character, or
    none yet, are left out. All that is returned, joined, is the text of the ids in one piece.

    Args:
        skipped: text that stands at the beginning, and is not returned.

    Attributes:
        stopped_by: the stop string that ended the text; None while there is none.
    """

    def __init__(self, model: LanguageModel, stops: Sequence[str] = (), skipped: str = "") -> None:
        self.stopped_by: str | None = None
        self._skip = len(skipped)
        self._decoder = model.decoder()
        self._stops = tuple(stops)
        self._held = ""  # text that may begin a stop string

    def add(self, token: int) -> str:
        """The text that can no longer change; sets `stopped_by` once a stop string is complete."""
        new = self._decoder.add([token]).replace("\ufffd", "")
        new, self._skip = new[self._skip :], max(0, self._skip - len(new))
        text = self._held + new
        matches = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            end, self.stopped_by = min(matches)
            self._held = ""
        else:
            end = len(text) - _count_uncertain(text, self._stops)
            self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """The text that was held back, once no more ids come."""
        held, self._held = self._held, ""
        return held


def _count_uncertain(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may turn out to begin a stop string."""
    beginnings = (
        n for s in stops for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n])
    )
    return max(beginnings, default=0)
