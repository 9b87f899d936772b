"""Hashed responses: what a prompt was trained to say, so that it need not be said word for word.

For every run of `RUN` tokens of a response, two numbers are kept: a hash of all but its last
token, and the last token's id hidden under a second hash of the same. Whoever has just written
those tokens learns which one would go on with a response; from the numbers alone no text can be
read. (Short runs can be guessed, as those of any hash can.)
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

RUN = 4  # tokens; copies shorter than this cannot be told
MOST = 4096  # runs a prompt: 12 bytes each, 64 KB in its file
_ENTRY = struct.Struct("<QI")
KEY = "responses"  # what a prompt file calls it, in its `training`


@dataclass(frozen=True)
class HashedResponses:
    """What goes on after any `RUN` - 1 tokens of a response: hash → hidden ids."""

    following: dict[int, tuple[int, ...]]

    @classmethod
    def of(cls, responses: Iterable[Sequence[int]]) -> Self:
        """From the ids of the responses."""
        following: dict[int, tuple[int, ...]] = {}
        runs = 0
        for ids in responses:
            for start in range(len(ids) - RUN + 1):
                *before, last = ids[start : start + RUN]
                key, mask = _hashes(before)
                known = following.get(key, ())
                if (last ^ mask) not in known and runs < MOST:
                    following[key] = (*known, last ^ mask)
                    runs += 1
        return cls(following)

    def next(self, ids: Sequence[int]) -> set[int]:
        """The ids that would go on with a response after the last `RUN` - 1 of `ids`."""
        if len(ids) < RUN - 1:
            return set()
        key, mask = _hashes(ids[len(ids) - RUN + 1 :])
        return {hidden ^ mask for hidden in self.following.get(key, ())}

    def __or__(self, other: HashedResponses) -> HashedResponses:
        joined = dict(self.following)
        for key, hidden in other.following.items():
            joined[key] = tuple(dict.fromkeys((*joined.get(key, ()), *hidden)))
        return HashedResponses(joined)

    def as_text(self) -> str:
        """For a file's metadata: base64 of `<u8 hash, <u4 hidden id` in the order of hashes."""
        entries = sorted((key, one) for key, hidden in self.following.items() for one in hidden)
        return base64.b64encode(b"".join(_ENTRY.pack(*entry) for entry in entries)).decode()

    @classmethod
    def from_text(cls, text: object) -> Self:
        """From a file's metadata; whatever is no such text holds no responses."""
        following: dict[int, tuple[int, ...]] = {}
        if isinstance(text, str) and len(text) <= MOST * _ENTRY.size * 4 // 3 + 4:
            try:
                data = base64.b64decode(text, validate=True)
                for key, hidden in _ENTRY.iter_unpack(data):
                    following[key] = (*following.get(key, ()), hidden)
            except (ValueError, struct.error):
                return cls({})
        return cls(following)


def _hashes(ids: Sequence[int]) -> tuple[int, int]:
    """64 bits that name a run of ids, and 32 that hide what follows it."""
    data = struct.pack(f"<{len(ids)}I", *ids)
    digest = hashlib.blake2b(data, digest_size=12, person=b"softlore").digest()
    key, mask = struct.unpack("<QI", digest)
    return key, mask
