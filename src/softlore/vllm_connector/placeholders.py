"""Placeholders: token ids that stand for a prefix, or for several in company.

vLLM knows cached keys and values by the ids they were made from. A prefix was made from none, so it
gets ids of its own: drawn from the vocabulary by a digest of the tensor, so that another version of
a prompt has others, and no text begins with them. A set has its own too, as its keys stand at other
positions than those of its members alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence


def placeholder(digest: str, count: int, vocabulary: Sequence[int]) -> list[int]:
    """`count` ids for a prompt, of the ids that ordinary text has."""
    return [vocabulary[_number(digest, place) % len(vocabulary)] for place in range(count)]


def of_set(members: Mapping[str, Sequence[int]]) -> list[int]:
    """The ids for prompts in company, given each one's by digest, in an order of their own."""
    if len(members) == 1:
        return list(next(iter(members.values())))
    digests = sorted(members)
    whole = "+".join(digests)
    ids = [i for digest in digests for i in members[digest]]
    order = sorted(range(len(ids)), key=lambda place: _number(whole, place))
    return [ids[place] for place in order]


def _number(text: str, place: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{text}:{place}".encode()).digest()[:8], "big")
