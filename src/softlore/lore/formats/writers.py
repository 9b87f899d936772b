"""Writing a lorebook in any format that other programs read: the twin of readers.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlore.disk import write_atomically
from softlore.errors import LoreError
from softlore.lore import files
from softlore.lore.complaints import nearest
from softlore.lore.formats import agnai, aidungeon, cards, charx, koboldai, mkultra, novelai, png
from softlore.lore.formats import sillytavern as tavern
from softlore.lore.formats.exporting import lorebook_data
from softlore.lore.formats.forms import BookForm

if TYPE_CHECKING:
    from softlore.lore.lorebook import Lorebook


@dataclass(frozen=True)
class LoreExporter:
    """One format that lorebooks are written in.

    Attributes:
        makes: what a program finds there.
        suffix: what file names of the format end in.
        data: the content of the file, given the lorebook.
        card: the version of character card, which may also go into a picture or an archive.
    """

    makes: str
    suffix: str
    data: Callable[[Lorebook], Any]
    card: int = 0


def _of(form: BookForm) -> Callable[[Lorebook], Any]:
    return lambda book: lorebook_data(book, form)


def _card(version: int) -> Callable[[Lorebook], Any]:
    return lambda book: cards.as_version(lorebook_data(book, cards.CARD), version)


# By the name that `softlore lore export --to` takes. An exporter adds itself here.
WRITERS: dict[str, LoreExporter] = {
    "sillytavern": LoreExporter("SillyTavern's World Info", ".json", _of(tavern.FORM)),
    "card-v2": LoreExporter("a character card of version 2", ".json", _card(2), card=2),
    "card-v3": LoreExporter("a character card of version 3", ".json", _card(3), card=3),
    "lorebook-v3": LoreExporter("a version 3 lorebook by itself", ".json", _of(cards.LOREBOOK)),
    "character-book": LoreExporter("a card's lorebook by itself", ".json", _of(cards.BOOK)),
    "novelai": LoreExporter("NovelAI's lorebook", ".lorebook", _of(novelai.FORM)),
    "koboldai": LoreExporter("KoboldAI's World Info", ".json", _of(koboldai.FORM)),
    "aidungeon": LoreExporter("AI Dungeon's story cards", ".json", _of(aidungeon.FORM)),
    "agnai": LoreExporter("Agnai's memory book", ".json", _of(agnai.FORM)),
    "mkultra": LoreExporter("mkultra's calls and responses", ".json", mkultra.pairs_of),
}


def write_as(book: Lorebook, path: Path, to: str, into: Path | None = None) -> None:
    """Writes a lorebook in another program's format; the file is there whole or not at all.

    A card goes into a picture where the path ends in .png, into an archive where it ends in
    .charx, else it is JSON.

    Args:
        to: a name in `WRITERS`.
        into: the picture or archive that a card is to be put into; it is not changed itself.

    Raises:
        LoreError: no such format, or nothing that it has a place for.
        StorageError: the disk refuses.
    """
    if to not in WRITERS:
        raise LoreError(
            f"there is no format {to!r}; expected one of {', '.join(WRITERS)}"
            f"{nearest(to, list(WRITERS))}"
        )
    writer = WRITERS[to]
    packed = path.suffix.lower() in (".png", ".charx")
    if not writer.card and (packed or into):
        raise LoreError(
            f"{path}: {writer.makes} does not go into a picture or an archive; expected a name "
            f"that ends in {writer.suffix}, or a character card (card-v2, card-v3); mend one"
        )
    if into and not packed:
        raise LoreError(
            f"{path} is to be JSON, which goes into no picture or archive; expected a name that "
            "ends in .png or .charx; mend it, or leave the other file out"
        )
    data = writer.data(book)
    if not packed:
        write_atomically(path, _text(data))
        return
    held = files.read_bytes(into) if into else None
    if path.suffix.lower() == ".png":
        content = _picture(data, writer.card, held, str(into))
    else:
        content = charx.write_card(_text(cards.as_version(data, 3)), held, str(into))
    write_atomically(path, content)


def _picture(card: Any, version: int, picture: bytes | None, source: str) -> bytes:
    """A picture that programs of either version can read; the older one is read by more."""
    chunks = {"chara": _text(cards.as_version(card, 2))}
    if version == 3:
        chunks["ccv3"] = _text(card)
    return png.write_card(picture or png.plain_picture(), chunks, source)


def _text(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()
