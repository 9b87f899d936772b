"""mkultra's data: a bare list of calls and responses. It is read by Lorebook.from_data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softlore.errors import LoreError

if TYPE_CHECKING:
    from softlore.lore.lorebook import Lorebook


def pairs_of(book: Lorebook) -> list[dict[str, Any]]:
    """Returns the blocks of all entries as pairs, one for each response.

    Raises LoreError if there are none: mkultra's data has no place for text.
    """
    pairs = [
        {"call": block.call, "response": response}
        for entry in book
        for block in entry.blocks
        for response in block.responses
    ]
    if not pairs:
        raise LoreError(
            f"lorebook {book.name!r} has no blocks, and mkultra's data holds nothing else; give "
            "its entries `blocks`, or choose another format"
        )
    return pairs
