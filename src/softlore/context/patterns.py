r"""Translates JavaScript's regular expressions to the `regex` package, so that they compile safely.

They have JavaScript's meaning, except that `\w`, `\d` and `\b` know the letters of every script.
What `regex` has beyond JavaScript (fuzzy matching, recursion, named lists) is rejected, since time
limits do not hold for all of it. Counted repeats are limited: compiling copies what they repeat.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import regex

MAX_LENGTH = 2000  # characters of a pattern
MAX_COPIES = 10_000  # items of a pattern, its counted repeats expanded

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


def split_pattern(key: str) -> tuple[str, str] | None:
    """Returns the pattern and flags of a key `/pattern/flags`; None for a plain key.

    As in SillyTavern, an unknown flag or a slash that is not escaped makes a key plain.
    """
    match = _KEY.fullmatch(key)
    if not match:
        return None
    pattern, flags = match.groups()
    if len(set(flags)) < len(flags) or _UNESCAPED_SLASH.search(pattern):
        return None
    return pattern, flags


@lru_cache(maxsize=2**12)
def compile_pattern(pattern: str, flags: str) -> tuple[Any, str]:
    """Returns the compiled pattern and an empty text, or None and why it is invalid.

    The flags `g`, `y` and `u` do not change whether a pattern matches, and are ignored.
    """
    options = regex.V1 if "v" in flags else regex.V0
    for flag in flags:
        options |= _FLAGS.get(flag, 0)
    if len(pattern) > MAX_LENGTH:
        return None, f"longer than {MAX_LENGTH} characters"
    try:
        return regex.compile(_translate(pattern, flags), options), ""
    except RecursionError:
        return None, "groups are nested too deep"
    except (regex.error, ValueError, OverflowError) as error:
        return None, f"no valid regular expression: {error}"


def _translate(pattern: str, flags: str) -> str:
    """The pattern in `regex`'s syntax. Raises ValueError for what is not JavaScript's."""
    out: list[str] = []
    sizes = [0]  # items in each open group, counted repeats expanded
    last = position = 0  # `last`: items in what a repeat would apply to
    while position < len(pattern):
        char = pattern[position]
        match = None
        if char == "\\":
            match = _escape.match(pattern, position)
            text, last = _translate_escape(match), 1
        elif char == "[":
            match = (_nested_class if "v" in flags else _class).match(pattern, position)
            text, last = _translate_class(match), 1
        elif char == "(":
            match = _group.match(pattern, position)
            text, last = match.group(), 0
            if pattern.startswith("?", position + len(text)) and text == "(":
                raise ValueError(f"JavaScript has no group {pattern[position : position + 4]!r}")
            sizes.append(0)
        elif char == ")":
            text, last = char, sizes.pop() if len(sizes) > 1 else 0
        elif match := _repeat.match(pattern, position):
            text, last = match.group(), last * (max(int(match[1]), 1) - 1)
        else:
            text, last = _translate_plain(char, flags), int(char not in "*+?|^$")
        out.append(text)
        sizes[-1] += last
        if sum(sizes) > MAX_COPIES:
            raise ValueError(f"its repeats expand to more than {MAX_COPIES:,} items")
        position = match.end() if match else position + 1
    return "".join(out)


def _translate_plain(char: str, flags: str) -> str:
    if char == "$" and "m" not in flags:
        return r"\Z"  # Python's `$` also matches before a final line break
    return "\\" + char if char in "{}" else char  # a brace that is no repeat is literal


def _translate_class(match: Any) -> str:
    if match is None:
        raise ValueError("a set of characters is not closed")
    text: str = match.group()
    if text in ("[]", "[^]"):  # nothing, and anything
        return r"(?!)" if text == "[]" else r"[\s\S]"
    return _escape.sub(_translate_escape, text)


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
