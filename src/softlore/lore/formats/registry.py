"""The registry of formats: detects the format of a file, and writes a lorebook in any of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlore.disk import write_atomically
from softlore.errors import LoreError
from softlore.lore.files import read_bytes
from softlore.lore.formats.cards import BOOK, CARD, LOREBOOK, as_version
from softlore.lore.formats.chat_programs import AGNAI, JANITORAI, RISUAI
from softlore.lore.formats.containers import plain_picture, write_png, write_zip
from softlore.lore.formats.exporting import BookContent, export_lorebook
from softlore.lore.formats.format import BookFormat
from softlore.lore.formats.importing import import_lorebook
from softlore.lore.formats.programs import (
    AIDUNGEON,
    KOBOLDAI,
    NOVELAI,
    SILLYTAVERN,
    has_key_and_content,
    is_list_of,
    unknown_fields,
)
from softlore.lore.opening import CardOpening
from softlore.lore.validation import nearest, shorten

# In order; the first that detects its data reads it. A new format is added here and to EXPORTERS.
FORMATS = (
    CARD, LOREBOOK, RISUAI, NOVELAI, AGNAI, SILLYTAVERN, KOBOLDAI, JANITORAI, AIDUNGEON, BOOK,
)  # fmt: skip


@dataclass(frozen=True)
class LoreExporter:
    """A format that lorebooks are written in, with its `description` in messages."""

    description: str
    format: BookFormat | None  # None: mkultra's calls and responses
    suffix: str = ".json"
    card_version: int = 0  # of a character card, which may be put into a picture or an archive

    def data(self, book: BookContent) -> Any:
        """Returns the content of a file that holds the lorebook."""
        if self.format is None:
            return _pairs(book)
        data = export_lorebook(book, self.format)
        return as_version(data, self.card_version) if self.card_version else data


# By the name that `softlore lore export --to` takes.
EXPORTERS: dict[str, LoreExporter] = {
    "sillytavern": LoreExporter("SillyTavern's World Info", SILLYTAVERN),
    "card-v2": LoreExporter("a character card of version 2", CARD, card_version=2),
    "card-v3": LoreExporter("a character card of version 3", CARD, card_version=3),
    "lorebook-v3": LoreExporter("a version 3 lorebook by itself", LOREBOOK),
    "character-book": LoreExporter("a card's lorebook by itself", BOOK),
    "novelai": LoreExporter("NovelAI's lorebook", NOVELAI, ".lorebook"),
    "koboldai": LoreExporter("KoboldAI's World Info", KOBOLDAI),
    "aidungeon": LoreExporter("AI Dungeon's story cards", AIDUNGEON),
    "agnai": LoreExporter("Agnai's memory book", AGNAI),
    "janitorai": LoreExporter("JanitorAI's lorebook", JANITORAI),
    "risuai": LoreExporter("RisuAI's lorebook", RISUAI),
    "mkultra": LoreExporter("mkultra's calls and responses", None),
}


def lorebook_fields(data: Any, name: str) -> dict[str, Any] | None:
    """Returns the fields of the lorebook in another program's data; None for data of no program.

    Raises LoreError if it is of a program's format, but malformed, or of one that is not read.
    """
    format = next((format for format in FORMATS if format.detect(data)), None)
    if format:
        return import_lorebook(data, format, name)
    _refuse_others(data)
    return None


def character_name(origin: Any) -> str:
    """The name of the character of the card that an origin holds; empty for none."""
    format = _format_of(origin)
    return format.character_name(origin["data"]) if format else ""


def card_opening(origin: Any) -> CardOpening:
    """How the story of the card begins that an origin holds; an empty one for no card."""
    format = _format_of(origin)
    return format.read_opening(origin["data"]) if format else CardOpening()


def _format_of(origin: Any) -> BookFormat | None:
    if not isinstance(origin, dict) or not isinstance(origin.get("data"), dict):
        return None
    return next((format for format in FORMATS if format.name == origin.get("format")), None)


def _refuse_others(data: Any) -> None:
    """Raises LoreError for entries of programs that are not read, which look like others'."""
    entries = data.get("entries", data) if isinstance(data, dict) else data
    listed = list(entries.values()) if isinstance(entries, dict) else entries
    if is_list_of(listed, lambda foreign: isinstance(foreign.get("strategy"), dict)):
        raise LoreError(
            "these are entries of Tavern Helper (`strategy`), which are not read; expected "
            "SillyTavern's World Info; export the lorebook in SillyTavern's World Info panel"
        )
    if is_list_of(listed, has_key_and_content):
        fields = ", ".join(f"`{shorten(name, 40)}`" for name in unknown_fields(listed)[:4])
        raise LoreError(
            f"these are entries of an unknown program: like KoboldAI's, but with {fields}; "
            "expected a format of docs/lore-formats.md; export the lorebook as SillyTavern's World "
            "Info"
        )


def find_exporter(name: str) -> LoreExporter:
    """Returns a format of `EXPORTERS`. Raises LoreError for an unknown name."""
    if name not in EXPORTERS:
        raise LoreError(
            f"there is no format {name!r}; expected one of {', '.join(EXPORTERS)}"
            f"{nearest(name, list(EXPORTERS)) or '; choose one'}"
        )
    return EXPORTERS[name]


def export_file(book: BookContent, path: Path, to: str, into: Path | None = None) -> None:
    """Writes a lorebook in another program's format, atomically.

    A card is embedded in a picture if the path ends in .png, in an archive if it ends in .charx;
    else it is JSON.

    Args:
        to: a name in `EXPORTERS`.
        into: a picture or archive to copy and put the card into.

    Raises LoreError for an unknown format, or one that does not go into such a file.
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
    content = _to_json(data)
    container = read_bytes(into) if into else None
    if suffix == ".png":  # programs of either version can read it; more programs read version 2
        chunks = {"chara": _to_json(as_version(data, 2))}
        if exporter.card_version == 3:
            chunks["ccv3"] = content
        content = write_png(container or plain_picture(), chunks, str(into))
    elif suffix == ".charx":  # which always holds version 3
        content = write_zip(_to_json(as_version(data, 3)), container, str(into))
    write_atomically(path, content)


def _pairs(book: BookContent) -> list[dict[str, str]]:
    """A pair of call and response for each response, as mkultra stores them."""
    pairs = [
        {"call": block.call, "response": response}
        for entry in book.entries
        for block in entry.blocks
        for response in block.responses
    ]
    if not pairs:
        raise LoreError(
            "the lorebook has no blocks, and mkultra's data holds nothing else; expected calls "
            "with responses; give its entries `blocks`, or choose another format"
        )
    return pairs


def _to_json(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()
