"""Placeholder ids, which represent a prefix, or several side by side, in a request to vLLM.

vLLM knows cached keys and values by the token ids they were computed from. A prefix was computed
from none, so it gets ids of its own: drawn from the vocabulary by a digest of its tensor, so that
another version of a prompt has other ids, and no text begins with them. A set of prefixes has its
own too, as the keys of its members are at other positions than alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache


def placeholder(digest: str, count: int, vocabulary: Sequence[int]) -> list[int]:
    """`count` ids for the prompt of a digest, out of the ids that ordinary text has."""
    return [vocabulary[number % len(vocabulary)] for number in _numbers(digest, count)]


def of_set(members: Mapping[str, Sequence[int]]) -> list[int]:
    """The ids of a set, given the ids of each member by its digest: theirs in another order."""
    if len(members) == 1:
        return list(next(iter(members.values())))
    digests = sorted(members)
    ids = [i for digest in digests for i in members[digest]]
    order = sorted(range(len(ids)), key=_numbers("+".join(digests), len(ids)).__getitem__)
    return [ids[i] for i in order]


@lru_cache(maxsize=1024)  # every request needs some
def _numbers(text: str, count: int) -> tuple[int, ...]:
    hashes = (hashlib.sha256(f"{text}:{i}".encode()).digest() for i in range(count))
    return tuple(int.from_bytes(digest[:8], "big") for digest in hashes)
