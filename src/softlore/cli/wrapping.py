"""Wraps text between words as it comes, as a terminal would break a line within one."""

from __future__ import annotations

import re
import shutil
import sys

_PART = re.compile(r"\n|[^\S\n]|\S+")


def terminal_width() -> int | None:
    """The columns of the terminal that standard output is; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class WordWrapper:
    """Wraps text that comes in pieces. Words that are longer than a line are broken.

    Args:
        width: columns; None: the text stays as it is.
    """

    def __init__(self, width: int | None) -> None:
        self._width = width
        self._column = 0
        self._held = ""  # a word that may go on

    def add(self, text: str) -> str:
        """The text that can be printed, up to the last whole word."""
        if self._width is None:
            return text
        *parts, last = _PART.findall(self._held + text) or [""]
        self._held = "" if last.isspace() else last
        return "".join(map(self._place, [*parts, last] if last.isspace() else parts))

    def flush(self) -> str:
        """The word that was held back, once no more text comes."""
        held, self._held = self._held, ""
        return self._place(held)

    def _place(self, part: str) -> str:
        from rich.cells import cell_len

        if part == "\n":
            self._column = 0
            return part
        width = cell_len(part)
        if self._column + width <= (self._width or 0):
            self._column += width
            return part
        self._column = 0 if part.isspace() else width % (self._width or 1)
        return "\n" if part.isspace() else "\n" + part
