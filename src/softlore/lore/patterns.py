r"""Translates JavaScript's regular expressions to the `regex` package, so that they compile safely.

They have JavaScript's meaning, except that `\w`, `\d` and `\b` know the letters of every script;
patterns in experiment files have Python's. What `regex` has beyond these (fuzzy matching,
recursion, named lists) is rejected, since time limits do not hold for all of it. Counted repeats
are limited: compiling copies what they repeat.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import regex

MAX_LENGTH = 2000  # characters of a pattern
MAX_NESTING = 50  # groups within groups, and sets within sets
MAX_COPIES = 10_000  # items of a pattern, its counted repeats expanded
SPECIAL = re.compile(r"[\\^$.|?*+()\[\]{}/]")  # in a pattern between slashes
_NO_ITEM = "*+?|^$"

_FLAGS = {"i": regex.IGNORECASE, "m": regex.MULTILINE, "s": regex.DOTALL}
_KEY = regex.compile(r"/([\s\S]+?)/([gimsuyv]*)")
_UNESCAPED_SLASH = regex.compile(r"(?:^|[^\\])/")
_escape = regex.compile(
    r"\\(?:u\{(?<point>[0-9A-Fa-f]{1,6})\}|c(?<control>[A-Za-z])|(?<back>k)<"
    r"|[pP]\{[\w=]+\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|[1-9]\d*|(?<other>[\s\S]))"
)
_class = regex.compile(r"\[\^?\]|\[(?:\\[\s\S]|[^\]\\])*\]")
# In JavaScript's `v` mode, classes may contain classes.
_nested_class = regex.compile(r"\[(?:\\[\s\S]|[^\[\]\\]|(?R))*\]")
_group = regex.compile(r"\((?:\?(?:[:=!]|<[=!]|<[^\W\d]\w*>|[ims]+(?:-[ims]+)?:|-[ims]+:))?")
_repeat = regex.compile(r"\{(\d+)(?:,\d*)?\}")
_python_item = regex.compile(
    r"\\[\s\S]|\[\^?\]?(?:\\[\s\S]|[^\]\\])*\]|(?<repeat>\{(?<least>\d*)(?:,\d*)?\})|[\s\S]"
)


def split_pattern(key: str) -> tuple[str, str] | None:
    """Returns the pattern and flags of a key `/pattern/flags`; None for a plain key.

    As in SillyTavern, an unknown flag or a slash that is not escaped makes a key plain. Spaces
    around the key do not count.
    """
    key = key.strip()
    match = _KEY.fullmatch(key) if key.startswith("/") else None
    if not match:
        return None
    pattern, flags = match.groups()
    if len(set(flags)) < len(flags) or _UNESCAPED_SLASH.search(pattern):
        return None
    return pattern, flags


@lru_cache(maxsize=2**12)
def escaped(text: str) -> str:
    """Text as an expression that matches it, in Python and in JavaScript."""
    return SPECIAL.sub(r"\\\g<0>", text)


def compile_pattern(pattern: str, flags: str) -> tuple[Any, str]:
    """Returns the compiled pattern and an empty text, or None and why it is invalid.

    The flags `g`, `y` and `u` do not change whether a pattern matches, and are ignored.
    """
    options = regex.V1 if "v" in flags else regex.V0
    for flag in flags:
        options |= _FLAGS.get(flag, 0)
    return _compile(pattern, lambda: regex.compile(_translate(pattern, flags), options))


def key_problem(key: str) -> str:
    """Why a key `/pattern/flags` matches nothing; empty for a valid and for a plain key."""
    parts = split_pattern(key)
    return compile_pattern(*parts)[1] if parts else ""


@lru_cache(maxsize=2**8)
def compile_python_pattern(pattern: str) -> tuple[Any, str]:
    """The same for a pattern of Python's `re`, which has the meaning that it has there."""

    def compile_checked() -> Any:
        re.compile(pattern)  # also rejects most of what `regex` has beyond `re`
        return regex.compile(_translate_python(pattern), regex.V0)

    return _compile(pattern, compile_checked)


def _compile(pattern: str, compile_it: Callable[[], Any]) -> tuple[Any, str]:
    if len(pattern) > MAX_LENGTH:
        return None, f"longer than {MAX_LENGTH} characters"
    try:
        return compile_it(), ""
    except RecursionError:
        return None, "groups are nested too deep"
    except (regex.error, re.error, ValueError, OverflowError) as error:
        return None, f"no valid regular expression: {error}"


class _ExpandedSize:
    """Counts the items of a pattern, its counted repeats expanded. Raises ValueError for many."""

    def __init__(self) -> None:
        self._groups = [0]  # items in each open group
        self._last = 0  # items in what a repeat would apply to

    def open_group(self) -> None:
        self._groups.append(0)
        self._last = 0
        if len(self._groups) > MAX_NESTING + 1:
            raise ValueError(f"groups are nested more than {MAX_NESTING} deep")

    def close_group(self) -> None:
        self._add(self._groups.pop() if len(self._groups) > 1 else 0)

    def repeat(self, least: int) -> None:
        self._add(self._last * (max(least, 1) - 1))

    def item(self, count: int = 1) -> None:
        self._add(count)

    def _add(self, items: int) -> None:
        self._last = items
        self._groups[-1] += items
        if sum(self._groups) > MAX_COPIES:
            raise ValueError(f"its repeats expand to more than {MAX_COPIES:,} items")


def _translate(pattern: str, flags: str) -> str:
    """The pattern in `regex`'s syntax. Raises ValueError for what is not JavaScript's."""
    out: list[str] = []
    size = _ExpandedSize()
    position = 0
    while position < len(pattern):
        char = pattern[position]
        match = None
        if char == "\\":
            match = _escape.match(pattern, position)
            text = _translate_escape(match)
            size.item()
        elif char == "[":
            match = (_nested_class if "v" in flags else _class).match(pattern, position)
            text = _translate_class(match)
            size.item()
        elif char == "(":
            match = _group.match(pattern, position)
            text = match.group()
            if pattern.startswith("?", position + len(text)) and text == "(":
                raise ValueError(f"JavaScript has no group {pattern[position : position + 4]!r}")
            size.open_group()
        elif char == ")":
            text = char
            size.close_group()
        elif match := _repeat.match(pattern, position):
            text = match.group()
            size.repeat(int(match[1]))
        else:
            text = _translate_plain(char, flags)
            size.item(int(char not in _NO_ITEM))
        out.append(text)
        position = match.end() if match else position + 1
    return "".join(out)


def _translate_python(pattern: str) -> str:
    """The pattern in `regex`'s syntax: braces that are no repeat are literal."""
    out: list[str] = []
    size = _ExpandedSize()
    for match in _python_item.finditer(pattern):
        text = match.group()
        if text == "(":
            size.open_group()
        elif text == ")":
            size.close_group()
        elif match["repeat"] and text != "{}":
            size.repeat(int(match["least"] or 0))
        else:
            size.item(int(text not in _NO_ITEM))
            text = "".join("\\" + c if c in "{}" else c for c in text) if text[0] in "{}" else text
        out.append(text)
    return "".join(out)


def _translate_plain(char: str, flags: str) -> str:
    if char == "$" and "m" not in flags:
        return r"\Z"  # Python's `$` also matches before a final line break
    return "\\" + char if char in "{}" else char  # a brace that is no repeat is literal


def _translate_class(match: Any) -> str:
    if match is None:
        raise ValueError("a character set has no closing ]")
    text: str = match.group()
    if text.count("[") > MAX_NESTING and _set_depth(text) > MAX_NESTING:
        raise ValueError(f"sets are nested more than {MAX_NESTING} deep")
    if text in ("[]", "[^]"):  # nothing, and anything
        return r"(?!)" if text == "[]" else r"[\s\S]"
    return _escape.sub(_translate_escape, text)


def _set_depth(text: str) -> int:
    depth = deepest = 0
    for char in regex.sub(r"\\[\s\S]", "", text):
        depth += (char == "[") - (char == "]")
        deepest = max(deepest, depth)
    return deepest


def _translate_escape(match: Any) -> str:
    if match is None:
        raise ValueError("ends in a backslash")
    if point := match["point"]:
        return regex.escape(chr(int(point, 16)))
    if control := match["control"]:
        return f"\\x{ord(control) % 32:02x}"
    if match["back"]:
        return r"\g<"
    other: str | None = match["other"]
    if other is None or other in "dDwWsSbBnrtfv":
        return str(match.group())
    if other == "0":
        return r"\x00"
    return other if other.isalpha() else "\\" + other
