"""Keys in other programs' ways: comma lists, `a & b`, wildcards; to softlore's keys and back.

softlore's keys are plain text or `/regex/flags`. The expressions made here look at a text in time
linear in its length: each is bound to one place, or to the beginnings of words.
"""

from __future__ import annotations

import re

_ITEM = re.compile(r"\s*+(/(?:\\.|[^/\\])++/[dgimsuvy]*+(?=\s*+(?:,|\Z))|[^,]*+)\s*+(?:,|\Z)")
_SPECIAL = re.compile(r"[\\^$.|?*+()\[\]{}/]")
_BEGIN, _END = r"(?<!\w)", r"(?!\w)"  # of a word, also of one like C++
_ALL, _NEXT, _DONE = rf"/^(?=[\s\S]*{_BEGIN}", rf"{_END})(?=[\s\S]*{_BEGIN}", rf"{_END})/i"
_ANY = r"\w{0,40}"  # what `*` stands for
MAX_STARS = 3  # more of them in one key could take long to look for
MAX_COMBINATIONS = 64


def split_list(text: str) -> list[str]:
    """Returns the keys in a comma list; commas within `/.../` part nothing."""
    found = [match[1].strip() for match in _ITEM.finditer(text)]
    return [key for key in found if key]


def join_list(keys: list[str], comma: str = ",") -> str:
    """Returns keys as a comma list."""
    return comma.join(key.strip() for key in keys)


def from_ampersands(key: str) -> str:
    """NovelAI's `a & b` (all of them stand in the text, as whole words) as one expression."""
    parts = [part.strip() for part in key.split("&")]
    if is_regex(key) or len(parts) < 2 or not all(parts):
        return key
    return _ALL + _NEXT.join(map(escaped, parts)) + _DONE


def to_ampersands(key: str) -> str:
    """The twin of `from_ampersands`; a key that it did not make stays as it is."""
    if not (key.startswith(_ALL) and key.endswith(_DONE)):
        return key
    parts = [_unescaped(part) for part in key[len(_ALL) : -len(_DONE)].split(_NEXT)]
    return key if None in parts else " & ".join(map(str, parts))


def combined(keys: list[str], others: list[str], every: bool) -> list[str]:
    """Keys and secondary keys as NovelAI's `a & b`: each key with each other, or with every one."""
    if not others or len(keys) * len(others) > MAX_COMBINATIONS:
        return keys
    if every:
        return [" & ".join([key, *others]) for key in keys]
    return [f"{key} & {other}" for key in keys for other in others]


def from_wildcards(key: str) -> str:
    """Agnai's `*` (any letters) and `?` (any letter) as an expression."""
    short = re.sub(r"\*+", "*", key)
    if is_regex(key) or not re.search(r"[*?]", key) or short.count("*") > MAX_STARS:
        return key
    if not re.search(r"\w", key):  # `?` alone would call the entry up by every letter
        return key
    body = "".join({"*": _ANY, "?": r"\w"}.get(c) or escaped(c) for c in short)
    return f"/{_BEGIN}{body}{_END}/i"


def to_wildcards(key: str) -> str:
    """The twin of `from_wildcards`; a key that it did not make stays as it is."""
    head, tail = f"/{_BEGIN}", f"{_END}/i"
    if not (key.startswith(head) and key.endswith(tail)):
        return key
    inner = key[len(head) : -len(tail)].replace(_ANY, "\0*").replace(r"\w", "\0?")
    parts = [_unescaped(part) for part in re.split(r"\0[*?]", inner)]
    marks = re.findall(r"\0([*?])", inner)
    if None in parts:
        return key
    return "".join(map(str, parts[:1])) + "".join(
        f"{mark}{part}" for mark, part in zip(marks, parts[1:], strict=True)
    )


def is_regex(key: str) -> bool:
    """Whether a key is softlore's and SillyTavern's `/.../flags`."""
    return re.fullmatch(r"/.+/[a-z]*", key, re.DOTALL) is not None


def escaped(text: str) -> str:
    """Text as an expression that finds that text, for Python and JavaScript alike."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def _unescaped(body: str) -> str | None:
    """The text that `escaped` was given, or None if it cannot have made `body`."""
    bare = re.sub(r"\\([\\^$.|?*+()\[\]{}/])", "", body)
    if _SPECIAL.search(bare):
        return None
    return re.sub(r"\\([\\^$.|?*+()\[\]{}/])", r"\1", body)
