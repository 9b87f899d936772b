"""Warnings about what is allowed in a lorebook but probably a mistake."""

from __future__ import annotations

from softlore.lore.entry import Block, Entry
from softlore.lore.formats.registry import character_name
from softlore.lore.lorebook import Lorebook
from softlore.lore.macros import CHARACTER, USER, MacroNames, macros_in
from softlore.lore.patterns import key_problem
from softlore.lore.validation import nearest, shorten

_CLOSING, _OPENING = ".,;:!?)]}”’\"'", "“‘([{\"'"  # with a space after, and before


def check(book: Lorebook) -> list[str]:
    """Returns warnings about what is allowed in a lorebook but probably a mistake, a line each.

    Each names the entry and the fix. A lorebook with warnings can be used.
    """
    warnings = [f"lorebook: {fault}" for fault in _misspelt_fields(book)]
    if not book.entries:
        warnings.append("lorebook: it has no entries; add one")
    known = MacroNames(book.char or character_name(book.origin), USER)
    for entry in book:
        faults = [
            *_misspelt_fields(entry),
            *_check_keys(entry),
            *_check_macros(entry, known),
            *_check_blocks(entry),
        ]
        warnings += [f"entry {entry.name!r}: {fault}" for fault in faults]
    return warnings


def _misspelt_fields(model: Lorebook | Entry) -> list[str]:
    """Unknown fields; those that came with another program's file are only kept for it."""
    guesses = {field: nearest(field, list(type(model).model_fields)) for field in model.extra}
    return [
        f"`{field}` is not a field, so it has no effect{guess}"
        for field, guess in guesses.items()
        if guess or model.origin is None
    ]


def _check_keys(entry: Entry) -> list[str]:
    faults = []
    if entry.secondary_keys and not entry.keys:
        faults.append("its secondary keys have no effect without `keys`; add some")
    for key in [*entry.keys, *entry.secondary_keys]:
        if problem := key_problem(key):
            faults.append(f"the key {shorten(key)!r} matches nothing: {problem}; correct it")
    return faults


def _check_macros(entry: Entry, names: MacroNames) -> list[str]:
    """Macros of chat programs that no name stands in for."""
    calls = [f"{block.call} {' '.join(block.responses)}" for block in entry.blocks]
    faults = []
    for macro, field in macros_in(" ".join([entry.text, *calls])).items():
        if not field:
            faults.append(f"{macro} is read and trained as it stands; write what it stands for")
        elif not getattr(names, field):
            faults.append(f"{macro} is read as {CHARACTER!r}; name one: `{field}` of the lorebook")
    return faults


def _check_blocks(entry: Entry) -> list[str]:
    calls = [block.call.strip() for block in entry.blocks]
    repeated = sorted({call for call in calls if calls.count(call) > 1})
    faults = [f"the call {shorten(call)!r} is in several blocks; merge them" for call in repeated]
    faults += [
        f"the held-out call {shorten(block.call)!r} is also trained on, so it measures nothing "
        "new; paraphrase it"
        for block in entry.held_out
        if block.call.strip() in calls
    ]
    for block in [*entry.blocks, *entry.held_out]:
        faults += _check_spaces(block)
    return faults


def _check_spaces(block: Block) -> list[str]:
    """A call and a response are joined with nothing between them, so one must have the space."""
    call, last = shorten(block.call), block.call[-1]
    faults = []
    if twice := {text for text in block.responses if block.responses.count(text) > 1}:
        faults.append(f"after {call!r} the response {shorten(min(twice))!r} is given twice")
    for response in block.responses:
        first, text = response[0], shorten(response)
        if last.isspace() and first.isspace():
            faults.append(
                f"{call!r} ends in a space and {text!r} begins with one; remove the first"
            )
        elif (last.isalnum() or last in _CLOSING) and (first.isalnum() or first in _OPENING):
            faults.append(
                f"there is no space between {call!r} and {text!r}; begin the response with one"
            )
    return faults
