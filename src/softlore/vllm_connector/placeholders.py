"""Placeholders: token ids that stand for a prefix, or for several in company.

vLLM knows cached keys and values by the ids they were made from. A prefix was made from none, so it
gets ids of its own: drawn from the vocabulary by a digest of the tensor, so that another version of
a prompt has others, and no text begins with them. A set has its own too, as its keys stand at other
positions than those of its members alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache


def placeholder(digest: str, count: int, vocabulary: Sequence[int]) -> list[int]:
    """`count` ids for a prompt, of the ids that ordinary text has."""
    return [vocabulary[number % len(vocabulary)] for number in _numbers(digest, count)]


def of_set(members: Mapping[str, Sequence[int]]) -> list[int]:
    """The ids for prompts in company, given each one's by digest, in an order of their own."""
    if len(members) == 1:
        return list(next(iter(members.values())))
    digests = sorted(members)
    whole = "+".join(digests)
    ids = [i for digest in digests for i in members[digest]]
    order = sorted(range(len(ids)), key=_numbers(whole, len(ids)).__getitem__)
    return [ids[place] for place in order]


@lru_cache(maxsize=1024)  # every request asks for some
def _numbers(text: str, count: int) -> tuple[int, ...]:
    hashes = (hashlib.sha256(f"{text}:{place}".encode()).digest() for place in range(count))
    return tuple(int.from_bytes(one[:8], "big") for one in hashes)
