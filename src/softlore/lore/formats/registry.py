"""Lists the formats: finds the one that a file has, and writes a lorebook in any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlore.disk import write_atomically
from softlore.errors import LoreError
from softlore.lore.files import read_bytes
from softlore.lore.formats import (
    agnai,
    aidungeon,
    cards,
    charx,
    koboldai,
    mkultra,
    novelai,
    png,
    sillytavern,
)
from softlore.lore.formats.exporting import BookContent, export_lorebook
from softlore.lore.formats.format import BookFormat
from softlore.lore.formats.importing import import_lorebook
from softlore.lore.validation import nearest

# In order; the first that detects its data reads it. A new format is added here and to EXPORTERS.
FORMATS: tuple[BookFormat, ...] = (
    cards.CARD,
    cards.LOREBOOK,
    novelai.FORMAT,
    agnai.FORMAT,
    sillytavern.FORMAT,
    koboldai.FORMAT,
    aidungeon.FORMAT,
    cards.BOOK,
)


@dataclass(frozen=True)
class LoreExporter:
    """A format that lorebooks are written in.

    Attributes:
        description: what is written, as messages call it.
        suffix: of files of the format.
        data: makes the file's content of a lorebook.
        card_version: of a character card, which may also go into a picture or an archive; else 0.
    """

    description: str
    suffix: str
    data: Callable[[BookContent], Any]
    card_version: int = 0


def _by(format: BookFormat) -> Callable[[BookContent], Any]:
    return lambda book: export_lorebook(book, format)


def _card(version: int) -> LoreExporter:
    def data(book: BookContent) -> Any:
        return cards.as_version(export_lorebook(book, cards.CARD), version)

    return LoreExporter(f"a character card of version {version}", ".json", data, version)


# By the name that `softlore lore export --to` takes.
EXPORTERS: dict[str, LoreExporter] = {
    "sillytavern": LoreExporter("SillyTavern's World Info", ".json", _by(sillytavern.FORMAT)),
    "card-v2": _card(2),
    "card-v3": _card(3),
    "lorebook-v3": LoreExporter("a version 3 lorebook by itself", ".json", _by(cards.LOREBOOK)),
    "character-book": LoreExporter("a card's lorebook by itself", ".json", _by(cards.BOOK)),
    "novelai": LoreExporter("NovelAI's lorebook", ".lorebook", _by(novelai.FORMAT)),
    "koboldai": LoreExporter("KoboldAI's World Info", ".json", _by(koboldai.FORMAT)),
    "aidungeon": LoreExporter("AI Dungeon's story cards", ".json", _by(aidungeon.FORMAT)),
    "agnai": LoreExporter("Agnai's memory book", ".json", _by(agnai.FORMAT)),
    "mkultra": LoreExporter(
        "mkultra's calls and responses", ".json", lambda book: mkultra.to_pairs(book.entries)
    ),
}


def unpack(content: bytes, source: str) -> bytes | None:
    """Returns the JSON text of the card in a picture or an archive; None for any other file.

    Raises:
        LoreError: a picture or an archive without a card, or a damaged one.
    """
    if png.is_png(content):
        return png.read_card(content, source)
    return charx.read_card(content, source) if charx.is_zip(content) else None


def lorebook_fields(data: Any, name: str) -> dict[str, Any] | None:
    """Returns the fields of the lorebook in another program's data; None for data of no program.

    Raises:
        LoreError: it is of a program's format, but malformed.
    """
    format = next((format for format in FORMATS if format.detect(data)), None)
    return import_lorebook(data, format, name) if format else None


def find_exporter(name: str) -> LoreExporter:
    """Returns a format of `EXPORTERS`. Raises LoreError for an unknown one."""
    if name not in EXPORTERS:
        raise LoreError(
            f"there is no format {name!r}; expected one of {', '.join(EXPORTERS)}"
            f"{nearest(name, list(EXPORTERS)) or '; choose one'}"
        )
    return EXPORTERS[name]


def export_file(book: BookContent, path: Path, to: str, into: Path | None = None) -> None:
    """Writes a lorebook in another program's format, atomically.

    A card goes into a picture where the path ends in .png, into an archive where it ends in
    .charx; else it is JSON.

    Args:
        to: a name in `EXPORTERS`.
        into: the picture or archive that the card is put into; it is not changed itself.

    Raises:
        LoreError: an unknown format, or one that does not go into such a file.
        StorageError: the file cannot be written.
    """
    exporter = find_exporter(to)
    suffix = path.suffix.lower()
    packed = suffix in (".png", ".charx")
    if not exporter.card_version and (packed or into):
        raise LoreError(
            f"{path}: {exporter.description} does not go into a picture or an archive; expected a "
            f"name that ends in {exporter.suffix}, or a character card (card-v2, card-v3); change "
            "the name or the format"
        )
    if into and not packed:
        raise LoreError(
            f"{path} is JSON, which does not go into a picture or an archive; expected a name that "
            "ends in .png or .charx; change the name, or leave out the other file"
        )
    data = exporter.data(book)
    container = read_bytes(into) if into else None
    if suffix == ".png":
        content = _to_picture(data, exporter.card_version, container, str(into))
    elif suffix == ".charx":  # which always holds version 3
        content = charx.write_card(_to_json(cards.as_version(data, 3)), container, str(into))
    else:
        content = _to_json(data)
    write_atomically(path, content)


def _to_picture(card: Any, version: int, picture: bytes | None, source: str) -> bytes:
    """A picture that programs of either version can read; more programs read version 2."""
    chunks = {"chara": _to_json(cards.as_version(card, 2))}
    if version == 3:
        chunks["ccv3"] = _to_json(card)
    return png.write_card(picture or png.plain_picture(), chunks, source)


def _to_json(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()
