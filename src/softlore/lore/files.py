"""Reads lorebook files as plain data, and writes them. Nothing in a file is ever executed."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from softlore.disk import write_atomically
from softlore.errors import LoreError
from softlore.lore.plain import MAX_DEPTH, mend_halves, plain, read_yaml, write_yaml
from softlore.lore.validation import one_line

MAX_BYTES = 16 * 2**20  # 16 MiB; the largest lorebooks shared today are under 1 MiB
MAX_TOML = 2 * 2**20  # characters; tomllib reads about one Mi a second
_PART = r"(?:[A-Za-z0-9_-]++|\"(?:[^\"\\\n]|\\[^\n])*+\"?|'[^'\n]*+'?)"
_TOML_PART = re.compile(_PART)
# What may hold dots or quotes: texts of several lines, dotted keys and texts, comments. A text that
# has no end is a token too, so that the search stays linear.
_TOML_TOKEN = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"{3,5})?|'
    r"'''(?:[^']|'(?!''))*+(?:'{3,5})?|"
    rf"(?P<key>{_PART}(?:[ \t]*+\.[ \t]*+{_PART})*+)|"
    r"#[^\n]*+",
    re.DOTALL,
)


def read_bytes(path: Path) -> bytes:
    """Returns the bytes of a lorebook file. Raises LoreError if it is unreadable or too large."""
    try:
        if path.is_dir():
            raise LoreError(f"{path} is a folder; expected a file; name a lorebook file in it")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise LoreError(f"{path} does not exist; check the name and the folder") from None
    except PermissionError:
        raise LoreError(f"{path} may not be read; change its permissions") from None
    except (OSError, ValueError) as error:
        raise LoreError(f"{path} cannot be read: {error}; check the file") from None
    check_size(max(size, len(content)), str(path))
    return content


def check_size(size: int, source: str) -> None:
    """Raises LoreError if a file of `size` bytes is too large for a lorebook."""
    if size > MAX_BYTES:
        raise LoreError(
            f"{source} is too large for a lorebook: {size / 2**20:.1f} MiB; expected at most "
            f"{MAX_BYTES // 2**20} MiB; split it into several files"
        )


def parse(content: bytes, source: str, syntax: str = "") -> Any:
    """Returns the plain data in a file's content. Raises LoreError if it cannot be parsed.

    Args:
        source: the file's path, for messages.
        syntax: `json`, `yaml`, `toml`, or empty to guess it from the content.
    """
    text = _decode(content, source).removeprefix("\ufeff")
    if not text.strip():
        raise LoreError(f"{source} is empty; write a lorebook in it (see docs/lorebook.md)")
    guesses = ["json", "toml", "yaml"] if text.lstrip()[0] in "{[" else ["yaml", "toml"]
    problems = []
    for name in [syntax] if syntax else guesses:
        try:
            data = plain(_READERS[name](text), mend=True)
            if isinstance(data, dict | list):
                return data
            problems.append("it holds neither fields nor a list; see docs/lorebook.md")
        except RecursionError:
            problems.append("lists and mappings are nested too deep; use fewer levels")
        except ValueError as error:
            too_large = "integer string conversion" in str(error)  # Python's own limit
            problems.append("a number is too large; write it as text" if too_large else str(error))
    raise LoreError(one_line(f"{source}: {problems[0]}"))


def syntax_of(path: Path) -> str:
    """Returns the syntax that a file's suffix stands for: `json`, `yaml`, `toml`, or empty."""
    syntax = path.suffix.lower()[1:].replace("yml", "yaml")
    return syntax if syntax in _READERS else ""


def write(data: Any, path: Path) -> None:
    """Writes `data` as YAML or JSON, by the path's suffix, atomically.

    Raises LoreError for any other suffix, StorageError if the file cannot be written.
    """
    if syntax_of(path) == "json":
        text = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
    elif syntax_of(path) == "yaml":
        text = write_yaml(data)
    else:
        raise LoreError(f"{path}: lorebooks are saved as .yaml or .json; change the suffix")
    write_atomically(path, text.encode("utf-8"))


def _decode(content: bytes, source: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LoreError(f"{source} is UTF-16 text; save it as UTF-8")
    if b"\0" in content[:8192] or content.startswith((b"\x89PNG", b"PK\x03\x04", b"GIF8", b"%PDF")):
        raise LoreError(f"{source} is a binary file; expected a lorebook, as text; name another")
    try:
        return mend_halves(content.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise LoreError(
            f"{source} is not UTF-8 text (byte 0x{content[error.start]:02x} in line {line}); save "
            "it as UTF-8"
        ) from None


def _read_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_fields, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {error.lineno}: this is not JSON ({error.msg.lower()}); fix it"
        ) from None


def _read_toml(text: str) -> Any:
    """Parses TOML, whose keys have at most MAX_DEPTH parts: tomllib's time is quadratic in them."""
    if len(text) > MAX_TOML:
        raise ValueError(
            f"it is longer than the {MAX_TOML // 2**20} Mi characters that are read of TOML; save "
            "it as YAML or JSON, or split it into several files"
        )
    for token in _TOML_TOKEN.finditer(text):
        key = token["key"]
        if key and key.count(".") >= MAX_DEPTH and len(_TOML_PART.findall(key)) > MAX_DEPTH:
            line = text.count("\n", 0, token.start()) + 1
            raise ValueError(
                f"line {line}: a key has more than {MAX_DEPTH} parts, so lists and mappings are "
                "nested too deep; use fewer levels"
            )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"this is not TOML ({error}); fix it") from None


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"the field {name!r:.60} is given twice in one place; keep one")
        fields[name] = value
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON; change it")


_READERS: dict[str, Callable[[str], Any]] = {
    "json": _read_json,
    "yaml": read_yaml,
    "toml": _read_toml,
}
