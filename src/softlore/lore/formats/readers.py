"""Finding out, by what it holds, which program's lorebook a file is, and reading it."""

from __future__ import annotations

from typing import Any

from softlore.lore.formats import (
    agnai,
    aidungeon,
    cards,
    charx,
    koboldai,
    novelai,
    png,
    sillytavern,
)
from softlore.lore.formats.forms import BookForm
from softlore.lore.formats.importing import lorebook_fields

# In order; the first one that takes the data reads it. An importer adds itself here.
FORMS: tuple[BookForm, ...] = (
    cards.CARD,
    cards.LOREBOOK,
    novelai.FORM,
    agnai.FORM,
    sillytavern.FORM,
    koboldai.FORM,
    aidungeon.FORM,
    cards.BOOK,
)


def unpacked(content: bytes, source: str, form: str) -> tuple[bytes, str]:
    """Returns the text of a lorebook file and its form, as `files.parse` takes them.

    A picture and an archive give the JSON of the card in them, anything else is text already.

    Raises:
        LoreError: a picture or an archive without a card, or a damaged one.
    """
    if png.is_png(content):
        return png.read_card(content, source), "json"
    if charx.is_zip(content):
        return charx.read_card(content, source), "json"
    return content, form


def recognised(data: Any, name: str) -> Any:
    """Returns the fields of the lorebook that another program's data holds; other data as it is.

    Raises:
        LoreError: it is of a program's format, but broken.
    """
    form = next((form for form in FORMS if form.takes(data)), None)
    return data if form is None else lorebook_fields(data, form, name)
