"""mkultra's data: a bare list of calls and responses, which is a lorebook of one entry.

Reads `[{"call": ..., "response": ...}, ...]` and `[(call, [responses]), ...]`; writes the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from softlore.errors import LoreError
from softlore.lore.entry import Entry
from softlore.lore.validation import describe


def to_blocks(items: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns a bare list as blocks, each call once, where it is first.

    Raises LoreError for an item that is no call with a response.
    """
    responses: dict[str, list[Any]] = {}
    for number, item in enumerate(items, start=1):
        call, answers = _call_and_responses(item, number)
        if not isinstance(call, str):
            raise LoreError(
                f"item {number}: `call` must be text, but is {describe(call)}; change it"
            )
        listed = list(answers) if isinstance(answers, list | tuple) else [answers]
        responses.setdefault(call, []).extend(listed)
    return [{"call": call, "responses": answers} for call, answers in responses.items()]


def _call_and_responses(item: Any, number: int) -> tuple[Any, Any]:
    if isinstance(item, list | tuple) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, dict) and "call" in item:
        for field in ("response", "responses"):
            if field in item:
                return item["call"], item[field]
        raise LoreError(f"item {number}: `response` is missing; add it")
    raise LoreError(
        f"item {number} must be {{call, response}}, a pair [call, [responses]], or an entry with "
        f"its `name`, but is {describe(item)}; change it"
    )


def to_pairs(entries: Iterable[Entry]) -> list[dict[str, str]]:
    """Returns the blocks of all entries as pairs, one for each response.

    Raises LoreError if there are none: mkultra's data has no place for text.
    """
    pairs = [
        {"call": block.call, "response": response}
        for entry in entries
        for block in entry.blocks
        for response in block.responses
    ]
    if not pairs:
        raise LoreError(
            "the lorebook has no blocks, and mkultra's data holds nothing else; expected calls "
            "with responses; give its entries `blocks`, or choose another format"
        )
    return pairs
