r"""JavaScript's regular expressions, as the `regex` package reads them, and safe to compile.

They are read as in JavaScript, but `\w`, `\d` and `\b` know the letters of every script. What
`regex` has beyond JavaScript (fuzzy matching, recursion, named lists) is not let through: time
limits do not hold for all of it. Counted repeats are bounded, as compiling copies what is repeated.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import regex

MAX_LENGTH = 2000  # characters of a pattern
MAX_COPIES = 10_000  # items of a pattern once its counted repeats are written out

_KEY = regex.compile(r"/([\s\S]+?)/([gimsuyv]*)")
_UNESCAPED_SLASH = regex.compile(r"(?:^|[^\\])/")
_escape = regex.compile(
    r"\\(?:u\{(?<point>[0-9A-Fa-f]{1,6})\}|c(?<control>[A-Za-z])|(?<back>k)<"
    r"|[pP]\{[\w=]+\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|[1-9]\d*|(?<other>[\s\S]))"
)
_class = regex.compile(r"\[\^?\]|\[(?:\\[\s\S]|[^\]\\])*\]")
# In JavaScript's `v` mode, sets may hold sets.
_nested_class = regex.compile(r"\[(?:\\[\s\S]|[^\[\]\\]|(?R))*\]")
_group = regex.compile(r"\((?:\?(?:[:=!]|<[=!]|<[^\W\d]\w*>|[ims]+(?:-[ims]+)?:|-[ims]+:))?")
_repeat = regex.compile(r"\{(\d+)(?:,\d*)?\}")


def split_pattern(key: str) -> tuple[str, str] | None:
    """The pattern and flags of a key `/pattern/flags`; None for a plain key.

    As in SillyTavern, an unknown flag or a slash that is not escaped makes it plain.
    """
    match = _KEY.fullmatch(key)
    if not match:
        return None
    pattern, flags = match.groups()
    if len(set(flags)) < len(flags) or _UNESCAPED_SLASH.search(pattern):
        return None
    return pattern, flags


@lru_cache(maxsize=2**12)
def compiled(pattern: str, flags: str) -> tuple[Any, str]:
    """A compiled pattern and no complaint, or None and why it is no valid one.

    `g` and `y` say where to go on searching, and `u` how to read code points: they change nothing
    about whether a pattern is found.
    """
    chosen = regex.V1 if "v" in flags else regex.V0
    for flag, value in (("i", regex.IGNORECASE), ("m", regex.MULTILINE), ("s", regex.DOTALL)):
        if flag in flags:
            chosen |= value
    if len(pattern) > MAX_LENGTH:
        return None, f"longer than {MAX_LENGTH} characters"
    try:
        return regex.compile(_translated(pattern, flags), chosen), ""
    except RecursionError:
        return None, "groups too deep in one another"
    except (regex.error, ValueError, OverflowError) as error:
        return None, f"no valid regular expression: {error}"


def _translated(pattern: str, flags: str) -> str:
    """The pattern in `regex`'s own writing. Raises ValueError for what is not JavaScript's."""
    out: list[str] = []
    sizes = [0]  # items in each group that is open, counted repeats written out
    last = at = 0  # items in what a repeat would stand for
    while at < len(pattern):
        char = pattern[at]
        match = None
        if char == "\\":
            match = _escape.match(pattern, at)
            text, last = _escaped(match), 1
        elif char == "[":
            match = (_nested_class if "v" in flags else _class).match(pattern, at)
            text, last = _set(match), 1
        elif char == "(":
            match = _group.match(pattern, at)
            text, last = match.group(), 0
            if pattern.startswith("?", at + len(text)) and text == "(":
                raise ValueError(f"JavaScript knows no group {pattern[at : at + 4]!r}")
            sizes.append(0)
        elif char == ")":
            text, last = char, sizes.pop() if len(sizes) > 1 else 0
        elif match := _repeat.match(pattern, at):
            copies = last * (max(int(match[1]), 1) - 1)
            text, last = match.group(), copies
        else:
            text, last = _plain(char, flags), int(char not in "*+?|^$")
        out.append(text)
        sizes[-1] += last
        if sum(sizes) > MAX_COPIES:
            raise ValueError(f"its repeats come to more than {MAX_COPIES:,} items")
        at = match.end() if match else at + 1
    return "".join(out)


def _plain(char: str, flags: str) -> str:
    if char == "$" and "m" not in flags:
        return r"\Z"  # Python's also stands before a last line's end
    return "\\" + char if char in "{}" else char  # a brace that is no repeat means itself


def _set(match: Any) -> str:
    if match is None:
        raise ValueError("a set of characters is not closed")
    text: str = match.group()
    if text in ("[]", "[^]"):  # nothing, and anything
        return r"(?!)" if text == "[]" else r"[\s\S]"
    return _escape.sub(_escaped, text)


def _escaped(match: Any) -> str:
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
