"""Zip archives, read safely: every size is known and capped before a member is unpacked.

Python's `zipfile` trusts the archive in too many ways for files from strangers. This module reads
what prompt files need: stored, deflated and LZMA members below 4 GiB. Members may not overlap, and
each is read from the open file into memory; nothing is ever written to a disk.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from dataclasses import dataclass, replace
from typing import NoReturn

from softlore.prompts.opening import PromptFile, changed
from softlore.prompts.reasons import Reason, refuse

MAX_MEMBERS = 1024
MAX_DIRECTORY_BYTES = 256 * 1024
# Floats hardly compress at all; small text may, and is harmless.
MAX_RATIO = 100
RATIO_FREE_BYTES = 1024 * 1024

_STORED, _DEFLATED, _LZMA = 0, 8, 14
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_UTF8_FLAG = 0x800
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 0xFFFF


@dataclass(frozen=True)
class Member:
    """A file in an archive, as described in the directory at the archive's end.

    Attributes:
        packed, size: bytes in the archive, and unpacked.
        start, end: where its local header begins, and where the next member or the directory does.
    """

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    start: int
    end: int


def is_zip(file: PromptFile) -> bool:
    """Whether a file begins as a zip archive does, an empty one too."""
    return file.start.startswith((b"PK\x03\x04", b"PK\x05\x06"))


class Archive:
    """An open zip archive. Raises PromptFileError for anything malformed.

    Attributes:
        members: by name, in the order of the file.
    """

    def __init__(self, file: PromptFile) -> None:
        self._stream = file.stream
        directory, count, end = self._find_directory(file.size)
        self.members = _members(directory, count, end)

    def read(self, name: str, max_bytes: int) -> bytes:
        """Unpacks the member, which must have at most `max_bytes` bytes."""
        member = self.members[name]
        _check_size(member, max_bytes)
        packed = self._packed(member)
        if member.method == _STORED:
            data = packed
        elif member.method == _DEFLATED:
            data = _inflate(member, packed)
        elif member.method == _LZMA:
            data = _unlzma(member, packed)
        else:
            refuse(
                Reason.ZIP_METHOD,
                f"member {name!r:.80} is packed by method {member.method}; expected stored (0), "
                "deflate (8) or LZMA (14); unpack it and zip it again",
            )
        if len(data) != member.size:
            _refuse_damaged(
                f"member {name!r:.80} unpacks to {len(data):,} bytes; expected {member.size:,}"
            )
        if zlib.crc32(data) != member.crc:
            refuse(
                Reason.ZIP_CHECKSUM,
                f"member {name!r:.80} does not have the checksum that the archive gives for it; "
                f"expected {member.crc:08x}; get it again",
            )
        return data

    def _read_at(self, offset: int, count: int) -> bytes:
        self._stream.seek(offset)
        data = self._stream.read(count)
        if len(data) != count:
            raise changed()
        return data

    def _find_directory(self, size: int) -> tuple[bytes, int, int]:
        """The directory's bytes, its number of members, and where it begins."""
        length = min(size, _END.size + _MAX_COMMENT)
        tail = self._read_at(size - length, length)
        offset = tail.rfind(b"PK\x05\x06")
        if offset < 0 or len(tail) - offset < _END.size:
            _refuse_damaged("the archive has no end record; expected one in its last bytes")
        _, disk, first, here, count, bytes_, begin, comment = _END.unpack_from(tail, offset)
        end = size - length + offset
        if (disk, first, here) != (0, 0, count) or offset + _END.size + comment != len(tail):
            _refuse_damaged(
                "the archive's end record is of another archive, or of one in several parts; "
                "expected a single complete archive"
            )
        if count > MAX_MEMBERS or bytes_ > MAX_DIRECTORY_BYTES:
            _refuse_hostile(
                Reason.ZIP_MEMBERS,
                f"the archive is said to hold {count:,} members; expected at most {MAX_MEMBERS:,} "
                f"in a directory of at most {MAX_DIRECTORY_BYTES:,} bytes",
            )
        if begin + bytes_ > end:
            _refuse_damaged(
                f"the archive's directory is said to end at byte {begin + bytes_:,}, after the "
                f"end record at {end:,}; expected it before"
            )
        return self._read_at(begin, bytes_), count, begin

    def _packed(self, member: Member) -> bytes:
        """The member's packed bytes, once its local header agrees with the directory."""
        raw = self._read_at(member.start, _LOCAL.size)
        magic, _, flags, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(raw)
        body = member.start + _LOCAL.size + name_bytes + extra_bytes
        if magic != b"PK\x03\x04" or body + member.packed > member.end:
            _refuse_damaged(
                f"member {member.name!r:.80} is not where the directory says; expected its "
                f"{member.packed:,} bytes before {member.end:,}"
            )
        name = _decode(self._read_at(member.start + _LOCAL.size, name_bytes), flags)
        if (name, method) != (member.name, member.method):
            _refuse_hostile(
                Reason.ZIP_NAME,
                f"member {member.name!r:.80} calls itself {name!r:.80}, method {method}; expected "
                f"what the directory says, method {member.method}",
            )
        if (flags | member.flags) & _ENCRYPTED_FLAGS:
            refuse(
                Reason.ZIP_ENCRYPTED,
                f"member {member.name!r:.80} is encrypted; expected a plain archive; unpack it "
                "with its password and zip it again",
            )
        return self._read_at(body, member.packed)


def _members(directory: bytes, count: int, end: int) -> dict[str, Member]:
    """The members by name, in the order of the file; `end` is where the last one may end."""
    listed: list[Member] = []
    offset = 0
    for _ in range(count):
        if len(directory) - offset < _ENTRY.size or directory[offset : offset + 4] != b"PK\x01\x02":
            _refuse_damaged(
                f"the archive's directory breaks off at its byte {offset}; expected {count} members"
            )
        entry = _ENTRY.unpack_from(directory, offset)
        _, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, _, start = entry
        name_bytes, extra_bytes, comment_bytes = lengths
        name = _decode(directory[offset + _ENTRY.size :][:name_bytes], flags)
        if 0xFFFFFFFF in (packed, size, start):
            _refuse_hostile(
                Reason.TOO_LARGE,
                f"member {name!r:.80} is said to have 4 GiB or more (ZIP64); expected less",
            )
        _check_name(name)
        listed.append(Member(name, flags, method, crc, packed, size, start, end))
        offset += _ENTRY.size + name_bytes + extra_bytes + comment_bytes
    if offset > len(directory):
        _refuse_damaged(
            f"the archive's directory has {len(directory):,} bytes; expected {offset:,}"
        )
    return _check_overlap(listed, end)


def _check_overlap(listed: list[Member], end: int) -> dict[str, Member]:
    """The members with their ends set; rejects duplicate names and overlapping members."""
    members: dict[str, Member] = {}
    for member in sorted(listed, key=lambda member: member.start, reverse=True):
        if member.name in members:
            _refuse_hostile(
                Reason.ZIP_NAME,
                f"the archive holds two members {member.name!r:.80}; expected each name once, "
                "since readers would disagree on which one holds",
            )
        if member.start + _LOCAL.size + len(member.name) + member.packed > end:
            _refuse_hostile(
                Reason.ZIP_OVERLAP,
                f"member {member.name!r:.80} overlaps what follows it at byte {end:,}; expected "
                "members side by side",
            )
        members[member.name] = replace(member, end=end)
        end = member.start
    return dict(reversed(members.items()))


def _decode(raw: bytes, flags: int) -> str:
    return raw.decode("utf-8" if flags & _UTF8_FLAG else "cp437", "replace")


def _check_name(name: str) -> None:
    """Rejects names that leave the folder: nothing is written, but only attackers use them."""
    parts = name.replace("\\", "/").split("/")
    if not name or name[:1] in "/\\" or ".." in parts or ":" in name or "\0" in name:
        _refuse_hostile(
            Reason.ZIP_NAME,
            f"the archive holds a member named {name!r:.80}; expected a plain name that stays in "
            "the archive's folder",
        )


def _check_size(member: Member, max_bytes: int) -> None:
    if member.size > max_bytes:
        _refuse_hostile(
            Reason.TOO_LARGE,
            f"member {member.name!r:.80} is said to have {member.size:,} bytes; expected at most "
            f"{max_bytes:,}",
        )
    if member.size > RATIO_FREE_BYTES and member.size > MAX_RATIO * member.packed:
        _refuse_hostile(
            Reason.ZIP_BOMB,
            f"member {member.name!r:.80} would unpack from {member.packed:,} bytes to "
            f"{member.size:,}; expected at most {MAX_RATIO} times as many, since numbers hardly "
            "compress",
        )


def _inflate(member: Member, packed: bytes) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(packed, member.size + 1)
    except zlib.error as error:
        _refuse_stream(member, str(error))
    return _check_end(member, data, unpacker.eof, unpacker.unused_data)


def _unlzma(member: Member, packed: bytes) -> bytes:
    """LZMA in a zip: version (2 bytes), length of the properties (2), properties, the stream."""
    if len(packed) < 9 or packed[2:4] != b"\5\0" or packed[4] >= 9 * 5 * 5:
        _refuse_stream(member, "its LZMA properties are wrong")
    rest, literal_bits = divmod(packed[4], 9)
    position_bits, literal_position_bits = divmod(rest, 5)
    dict_size = int.from_bytes(packed[5:9], "little")
    kind = {
        "id": lzma.FILTER_LZMA1,
        "lc": literal_bits,
        "lp": literal_position_bits,
        "pb": position_bits,
        # Allocated before anything is unpacked; more than the output is never used.
        "dict_size": max(4096, min(dict_size, member.size)),
    }
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[kind])
        data = unpacker.decompress(packed[9:], member.size + 1)
    except (lzma.LZMAError, EOFError) as error:
        _refuse_stream(member, str(error))
    # The marker at the stream's end is optional.
    return _check_end(member, data, unpacker.eof or len(data) == member.size, unpacker.unused_data)


def _check_end(member: Member, data: bytes, ended: bool, unused: bytes) -> bytes:
    """The unpacked bytes, if the stream ended where the archive says it does."""
    if len(data) > member.size:
        _refuse_hostile(
            Reason.ZIP_BOMB,
            f"member {member.name!r:.80} unpacks to more than the {member.size:,} bytes that it "
            "is said to have; expected exactly as many",
        )
    if not ended or unused:
        _refuse_stream(member, "its stream does not end where it should")
    return data


def _refuse_stream(member: Member, why: str) -> NoReturn:
    _refuse_damaged(
        f"member {member.name!r:.80} cannot be unpacked: {why:.120}; expected a complete stream"
    )


def _refuse_damaged(message: str) -> NoReturn:
    refuse(Reason.ZIP_DAMAGED, f"{message}; the archive was cut or damaged: get it again")


def _refuse_hostile(reason: Reason, message: str) -> NoReturn:
    refuse(reason, f"{message}; no soft prompt is packed like this: do not trust the file")
