"""Story files of other programs and text: read by their content, written by their suffix."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softlore.disk import storage_error, write_atomically
from softlore.errors import ConfigError, StoryError, StoryFileError
from softlore.story.files import koboldai, markdown
from softlore.story.story import Story
from softlore.story.turns import StoryDraft

MAX_BYTES = 64 * 2**20  # 64 MiB; saves with pictures in them have reached 30


@dataclass(frozen=True)
class Format:
    """A format of story files.

    Attributes:
        suffixes: of the files it is written to.
        recognizes: whether a text is in this format.
        read: makes a draft of a text; raises ValueError.
        write: makes a text of a draft, with its lorebook if the format has a place for it.
    """

    suffixes: tuple[str, ...]
    recognizes: Callable[[str], bool]
    read: Callable[[str], StoryDraft]
    write: Callable[[StoryDraft], str]


# A text is read by the first one that recognizes it; plain text recognizes all.
FORMATS = {
    "koboldai": Format((".json",), koboldai.recognizes, koboldai.read, koboldai.write),
    "markdown": Format((".md", ".markdown"), markdown.recognizes, markdown.read, markdown.write),
    "text": Format(
        (".txt", ".text"), lambda text: True, markdown.read_plain, lambda draft: draft.text
    ),
}
_BINARY = {
    b"SQLite format 3\0": "an SQLite file; if it is a story of softlore, open it instead",
    b"PK\x03\x04": "a zip archive; extract the story first",
    b"\x89PNG": "a picture; character cards have no story",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}


def read_story(path: str | os.PathLike[str]) -> StoryDraft:
    """Reads a story from a KoboldAI save, Markdown or plain text, by the file's content.

    Raises:
        StoryFileError: it cannot be read as any of these.
        StorageError: the file cannot be read.
    """
    path = Path(path)
    return parse_story(_read_bytes(path), path)


def parse_story(content: bytes, path: Path) -> StoryDraft:
    """Returns the story in a file's content; raises StoryFileError. `path` is for messages."""
    text = _decoded(content, path)
    name, form = next((name, form) for name, form in FORMATS.items() if form.recognizes(text))
    try:
        return form.read(text)
    except (ConfigError, StoryError) as error:
        raise StoryFileError(f"{str(path)!r}: {error}") from None
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise StoryFileError(
            f"{str(path)!r} cannot be read as a story: {why:.300}; expected a KoboldAI save, "
            f"Markdown or plain text, and this looks like {name}; export it again"
        ) from None


def write_story(
    story: Story | StoryDraft,
    path: str | os.PathLike[str],
    format: str | None = None,
    lorebook: Any = None,
) -> None:
    """Writes a story, without its other branches; replaces an existing file.

    Args:
        format: "koboldai", "markdown" or "text"; by the path's suffix if left out.
        lorebook: World Info for a KoboldAI save, as plain JSON in its form; that of the imported
            save if left out.

    Raises:
        StoryError: an unknown format.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    if format is None:
        known = {suffix: name for name, form in FORMATS.items() for suffix in form.suffixes}
        format = known.get(path.suffix.lower())
        if format is None:
            raise StoryError(
                f"{str(path)!r} has no suffix of a story format; expected a name that ends in "
                f"one of {', '.join(known)}; choose such a name, or pass a format"
            )
    if format not in FORMATS:
        raise StoryError(
            f"there is no story format {format!r:.80}; expected one of {', '.join(FORMATS)}; "
            "choose one"
        )
    draft = story.draft() if isinstance(story, Story) else story
    if lorebook is not None:
        draft = StoryDraft(draft.settings, draft.turns, lorebook)
    write_atomically(path, FORMATS[format].write(_portable(draft)).encode())


def _portable(draft: StoryDraft) -> StoryDraft:
    """A draft whose settings name no folder of this machine: absolute paths become names."""
    named = {name: getattr(draft.settings, name) for name in ("lorebook", "prompts", "model")}
    names = {name: Path(path).name for name, path in named.items() if Path(path).is_absolute()}
    return replace(draft, settings=draft.settings.changed(**names)) if names else draft


def _read_bytes(path: Path) -> bytes:
    """The content of a file of at most MAX_BYTES."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(MAX_BYTES + 1) if size <= MAX_BYTES else b""
    except OSError as error:
        raise storage_error("read", path, error) from error
    except ValueError:  # a name with a zero byte
        raise StoryError(
            f"{str(path)!r:.160} is not a path; expected one; choose another name"
        ) from None
    size = max(size, len(content))
    if size > MAX_BYTES:
        raise StoryFileError(
            f"{str(path)!r} is too large for a story: {size / 2**20:.1f} MiB; expected at most "
            f"{MAX_BYTES // 2**20} MiB; split it into several files"
        )
    return content


def _decoded(content: bytes, path: Path) -> str:
    for start, what in _BINARY.items():
        if content.startswith(start):
            raise StoryFileError(f"{str(path)!r} is not text: it is {what}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StoryFileError(
            f"{str(path)!r} is not UTF-8 text (byte 0x{content[error.start]:02x} in line {line}); "
            "expected UTF-8; save it so"
        ) from None
    if "\0" in text[:8192]:
        raise StoryFileError(f"{str(path)!r} is a binary file; expected text; choose another file")
    return text.removeprefix("\ufeff")
