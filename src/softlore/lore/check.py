"""What is allowed in a lorebook, but likely not meant."""

from __future__ import annotations

import re

from softlore.lore.complaints import nearest, shorten
from softlore.lore.entry import Block, Entry
from softlore.lore.lorebook import Lorebook

_CLOSING = ".,;:!?)]}”’\"'"  # after these, and before those, a space is due
_OPENING = "“‘([{\"'"


def check(book: Lorebook) -> list[str]:
    """Returns warnings in plain words, one line each; an empty list if all is well.

    Each names the entry and says how to mend it. Nothing here keeps a lorebook from being used.
    """
    warnings = [f"lorebook: {fault}" for fault in _unknown_fields(book)]
    if not book.entries:
        warnings.append("lorebook: it has no entries; add one")
    for entry in book:
        faults = [*_unknown_fields(entry), *_keys(entry), *_blocks(entry)]
        warnings += [f"entry {entry.name!r}: {fault}" for fault in faults]
    return warnings


def _unknown_fields(piece: Lorebook | Entry) -> list[str]:
    """Only fields that look like misspelt ones: others were left by another program."""
    known = list(type(piece).model_fields)
    guesses = [(field, nearest(field, known)) for field in piece.extra]
    return [f"`{field}` is not a field{guess}" for field, guess in guesses if guess]


def _keys(entry: Entry) -> list[str]:
    faults = []
    if not entry.keys and not entry.constant:
        tag = f"[[soft:{entry.name}]]"
        faults.append(f"it has no keys, so only {tag} calls it up; add keys, or `constant: true`")
    if entry.secondary_keys and not entry.keys:
        faults.append("its secondary keys do nothing without `keys`")
    for key in [*entry.keys, *entry.secondary_keys]:
        pattern = re.fullmatch(r"/(.+)/[a-z]*", key, re.DOTALL)
        try:
            re.compile(pattern[1] if pattern else "")
        except re.error as error:
            faults.append(f"the key {shorten(key)!r} is no regular expression: {error}")
    return faults


def _blocks(entry: Entry) -> list[str]:
    faults: list[str] = []
    trained = [block.call.strip() for block in entry.blocks]
    for call in sorted({call for call in trained if trained.count(call) > 1}):
        faults.append(f"the call {shorten(call)!r} stands in several blocks; make them one")
    for block in entry.held_out:
        if block.call.strip() in trained:
            faults.append(
                f"the held-out call {shorten(block.call)!r} is also trained on, so it measures "
                "nothing new; paraphrase it"
            )
    for block in [*entry.blocks, *entry.held_out]:
        faults += _joints(block)
    return faults


def _joints(block: Block) -> list[str]:
    """How a call and its responses meet: they are joined with nothing between."""
    call = shorten(block.call)
    faults = []
    twice = {text for text in block.responses if block.responses.count(text) > 1}
    if twice:
        faults.append(f"after {call!r} the response {shorten(min(twice))!r} is given twice")
    last = block.call[-1]
    for response in block.responses:
        first = response[0]
        if last.isspace() and first.isspace():
            faults.append(
                f"{call!r} ends in a space and {shorten(response)!r} begins with one; let only the "
                "response have it"
            )
        elif (last.isalnum() or last in _CLOSING) and (first.isalnum() or first in _OPENING):
            faults.append(
                f"no space stands between {call!r} and {shorten(response)!r}; begin the response "
                "with one"
            )
    return faults
