"""Sentences of a text: where they end, and where others begin."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

# No sentence ends with a title before a name. What closes one, such as quotes, belongs to it; it
# is matched possessively, so that a text which comes in parts is not cut before its last quote.
_TITLE = "".join(
    rf"(?<!\b{title})" for title in "Mr Mrs Ms Dr St Mt Prof Capt Col Gen Lt Sgt Rev".split()
)
_CLOSING = r"[\"'”’»)\]*_」』）]*+"
_END = rf"(?:{_TITLE}[.!?…]++{_CLOSING}(?=\s)|[。！？]++{_CLOSING}(?=[\s\S]))"
_SENTENCE = re.compile(_END)
_SENTENCE_OR_LINE = re.compile(rf"{_END}|(?<=\S)(?=\n)")
_BREAK = re.compile(rf"{_END}\s*|\n+")
_COMPLETE = re.compile(rf"{_TITLE}[.!?…。！？]++{_CLOSING}\s*\Z")


def ends(text: str, lines: bool = True) -> Iterator[int]:
    """The offsets behind sentences, closing quotes included, before the text that follows.

    A sentence ends with a full stop, a question or exclamation mark or an ellipsis before a space,
    or with their East Asian forms. The text's own end is not among them, since it may go on.

    Args:
        lines: the ends of lines as well.
    """
    return (match.end() for match in (_SENTENCE_OR_LINE if lines else _SENTENCE).finditer(text))


def starts(text: str) -> Iterator[int]:
    """The offsets at which another sentence or line begins, behind the spaces before it."""
    return (match.end() for match in _BREAK.finditer(text))


def is_complete(text: str) -> bool:
    """Whether a text ends with a sentence."""
    return _COMPLETE.search(text) is not None


def sentences(text: str) -> list[str]:
    """A text's sentences, without the spaces between; they may go over several lines."""
    cuts = [0, *ends(text, lines=False), len(text)]
    parts = (text[start:end].strip() for start, end in itertools.pairwise(cuts))
    return [part for part in parts if part]
