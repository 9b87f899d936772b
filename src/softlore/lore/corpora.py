"""Reads corpora for control codes: texts by genre or tone, from a folder or JSON lines."""

from __future__ import annotations

import json
import lzma
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softlore.errors import LoreError
from softlore.lore.names import as_name

MAX_BYTES = 1 << 30  # bytes of text of all codes, unpacked
_LINES = (".jsonl", ".jsonl.xz")


def holds_corpora(path: Path) -> bool:
    """Whether a path is one that `read_corpora` reads: a folder, or JSON lines."""
    return path.is_dir() or path.name.endswith(_LINES)


def read_corpora(path: Path) -> dict[str, str]:
    """Returns texts by code, sorted by name; several texts of a code are joined by an empty line.

    In a folder, each .txt file and each folder of .txt files is a code; each JSON line has `code`
    and `text`. Raises LoreError if there is no text, or other content than text.
    """
    parts: dict[str, list[str]] = defaultdict(list)
    size = 0
    try:
        for code, text in _folder(path) if path.is_dir() else _lines(path):
            size += len(text)
            if size > MAX_BYTES:
                raise LoreError(
                    f"{str(path)!r} holds more than {MAX_BYTES >> 30} GiB of text; expected less; "
                    "use a part of it"
                )
            parts[code].append(text.strip())
    except (OSError, UnicodeDecodeError, lzma.LZMAError) as error:
        why = getattr(error, "strerror", None) or error
        raise LoreError(
            f"{str(path)!r} can't be read ({why}); expected UTF-8 text; check the file"
        ) from error
    texts = {code: "\n\n".join(filter(None, parts[code])) for code in sorted(parts)}
    if not any(texts.values()):
        raise LoreError(
            f"{str(path)!r} holds no texts; expected .txt files, one or a folder of them for each "
            "code, or JSON lines with `code` and `text`; add some"
        )
    return texts


def _folder(path: Path) -> Iterator[tuple[str, str]]:
    for child in sorted(path.iterdir()):
        if child.is_dir():
            for file in sorted(child.glob("*.txt")):
                yield as_name(child.name), file.read_text(encoding="utf-8")
        elif child.suffix == ".txt":
            yield as_name(child.stem), child.read_text(encoding="utf-8")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    packed = path.name.endswith(".xz")
    with lzma.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row: Any = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            match row:
                case {"code": str(code), "text": str(text)}:
                    yield as_name(code), text
                case _:
                    raise LoreError(
                        f"line {number} of {str(path)!r} is {line.strip()!r:.60}; expected a JSON "
                        "object with the texts `code` and `text`; fix the line"
                    )
