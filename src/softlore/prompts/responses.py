"""Hashes of a prompt's training responses, so that decoding can avoid copying them.

For every run of `RUN` tokens of a response, two numbers are stored: a hash of all but its last
token, and the last token's id XORed with a second hash of the same tokens. Decoding that has just
generated those tokens can compute which token would continue a response; from the numbers alone no
text can be read. (Short runs can be guessed, as with any hash.)
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

RUN = 4  # tokens; shorter copies are not recognized
MAX_RUNS = 4096  # runs per prompt: 12 bytes each, 64 KB in its file
_ENTRY = struct.Struct("<QI")
KEY = "responses"  # in the `training` metadata of a prompt file


@dataclass(frozen=True)
class HashedResponses:
    """Maps a hash of any `RUN` - 1 tokens of a response to the masked ids that follow them."""

    following: dict[int, tuple[int, ...]]

    @classmethod
    def of(cls, responses: Iterable[Sequence[int]]) -> Self:
        """Hashes the token ids of responses."""
        following: dict[int, tuple[int, ...]] = {}
        runs = 0
        for ids in responses:
            for start in range(len(ids) - RUN + 1):
                *before, last = ids[start : start + RUN]
                key, mask = _hashes(before)
                hidden = following.get(key, ())
                if (last ^ mask) not in hidden and runs < MAX_RUNS:
                    following[key] = (*hidden, last ^ mask)
                    runs += 1
        return cls(following)

    def next(self, ids: Sequence[int]) -> set[int]:
        """The ids that would continue a response after the last `RUN` - 1 of `ids`."""
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
        """Text for metadata: base64 of pairs, sorted.

        A pair is a hash (uint64) and a masked token id (uint32), both little-endian.
        """
        entries = sorted((key, i) for key, hidden in self.following.items() for i in hidden)
        return base64.b64encode(b"".join(_ENTRY.pack(*entry) for entry in entries)).decode()

    @classmethod
    def from_text(cls, text: object) -> Self:
        """Parses the text of `as_text`; anything else gives no responses."""
        following: dict[int, tuple[int, ...]] = {}
        if isinstance(text, str) and len(text) <= MAX_RUNS * _ENTRY.size * 4 // 3 + 4:
            try:
                data = base64.b64decode(text, validate=True)
                for key, hidden in _ENTRY.iter_unpack(data):
                    following[key] = (*following.get(key, ()), hidden)
            except (ValueError, struct.error):
                return cls({})
        return cls(following)


def _hashes(ids: Sequence[int]) -> tuple[int, int]:
    """64 bits that identify a run of ids, and 32 that hide the id after it."""
    data = struct.pack(f"<{len(ids)}I", *ids)
    digest = hashlib.blake2b(data, digest_size=12, person=b"softlore").digest()
    key, mask = struct.unpack("<QI", digest)
    return key, mask
