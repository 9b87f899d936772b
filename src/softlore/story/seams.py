"""Seams between turns: model turns end with a sentence, writer turns begin with a space."""

from __future__ import annotations

import re

from softlore.lore.sentences import ends, is_complete

HELD = 40  # tokens at the end of a turn that are passed on by the sentence, at most half of it
SHORTEST = 24  # tokens of a turn that is trimmed
_OPENING = "“‘([{«—–"
_CAPITAL = r"(?![a-zß-öø-ÿ])[^\W\d_]"
_WORD = rf"{_CAPITAL}[\w'’.-]{{0,30}}"
_NAMED = re.compile(rf"\n\s*{_WORD}(?: {_WORD}){{0,2}}:")  # a line that begins with a name
_MAYBE_NAMED = re.compile(rf"\n\s*(?:{_WORD}(?: (?:{_WORD})?){{0,2}})?\Z")


class SentenceTrimmer:
    """Passes on generated text so that a turn which is cut off by its length ends with a sentence.

    All text is passed on as it comes, but near the turn's length: there it is held until its
    sentence is complete. What is held at the end is left out where the length ended the turn.

    Args:
        tokens: the most tokens of the turn.
        enabled: False: all is passed on at once.
        lead: passed on before the first text.
        strip: the first text is passed on without spaces before it.
        chat: it ends before a line that begins with a name, whoever's that is.

    Attributes:
        text: all that was passed on.
        ended: whether it has ended before a name: the rest is left out.
    """

    def __init__(
        self,
        tokens: int,
        enabled: bool = True,
        lead: str = "",
        strip: bool = False,
        chat: bool = False,
    ) -> None:
        self.text = ""
        self.ended = False
        self.lead, self.strip, self._chat = lead, strip, chat
        self._line = ""  # of a chat, the beginning of a line that may be a name
        self._tokens = tokens
        self._held = ""
        self._whole = False  # what was passed on ends with a sentence that was held
        self._enabled = enabled
        self._left = tokens
        self._hold_at = min(HELD, tokens // 2) if tokens >= SHORTEST else 0

    def copy(self) -> SentenceTrimmer:
        """One for another text of the same turn."""
        return SentenceTrimmer(self._tokens, self._enabled, self.lead, self.strip, self._chat)

    def add(self, text: str) -> str:
        """The text of one more token; returns what is passed on."""
        self._left -= 1
        text = self._before_names(text) if self._chat else text
        if not self._enabled or self._left >= self._hold_at:
            return self._pass_on(text)
        self._held += text
        end = max(ends(self._held), default=0)
        self._whole = self._whole or end > 0
        return self._release(end)

    def flush(self, finish: str | None) -> str:
        """The rest of the turn. `finish`: why it ended; only its length and context cut it off."""
        self._held, self._line = self._held + self._line, ""
        if finish not in ("length", "context") or is_complete(self._held):
            return self._release(len(self._held))
        if self._whole or is_complete(self.text):
            return ""
        # A sentence that is longer than what is held: it ends with a word.
        return self._release(len(self._held.rstrip().rpartition(" ")[0]))

    def _before_names(self, text: str) -> str:
        """Text of a chat up to a line that begins with a name, or may yet turn out to."""
        text, self._line = "" if self.ended else self._line + text, ""
        if match := _NAMED.search(text):
            self.ended = True
            return text[: match.start()]
        if match := _MAYBE_NAMED.search(text):
            text, self._line = text[: match.start()], match[0]
        return text

    def _release(self, end: int) -> str:
        text, self._held = self._held[:end], self._held[end:]
        return self._pass_on(text)

    def _pass_on(self, text: str) -> str:
        if not self.text:
            text = text.lstrip() if self.strip else text
            text = self.lead + text if text else ""
        self.text += text
        return text


def join_turns(before: str, text: str) -> str:
    """A turn of the writer, with a space at its beginning where one belongs."""
    if not before or not text or before[-1].isspace() or before[-1] in _OPENING:
        return text
    begins = text[0].isalnum() or text[0] in _OPENING + '"'
    if '"' in (before[-1], text[0]):  # in a quotation it stands at a quotation's begin or end
        begins = begins and before.rpartition("\n")[2].count('"') % 2 == 0
    return " " + text if begins else text
