"""Character cards in zip archives (.charx): `card.json`, and pictures and sounds beside it."""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib

from softlore.errors import LoreError

MEMBER = "card.json"
MAX_CARD_BYTES = 16 * 2**20
MAX_BYTES = 64 * 2**20  # of all members, unpacked
MAX_MEMBERS = 4096
_END = struct.Struct("<4s4H2LH")
_FAULTS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, struct.error,
    NotImplementedError, RuntimeError, ValueError, KeyError, IndexError, EOFError, OSError,
)  # fmt: skip


def is_zip(content: bytes) -> bool:
    """Whether a file is a zip archive, by its first bytes."""
    return content.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def read_card(content: bytes, source: str) -> bytes:
    """Returns the JSON text of the card in an archive.

    Raises:
        LoreError: the archive is damaged, holds no card, or one that is too large.
    """
    with _open(content, source) as archive:
        if MEMBER not in archive.namelist():
            raise LoreError(
                f"{source} is a binary file: a zip archive that holds no character card; expected "
                f"`{MEMBER}` in it; name a .charx file"
            )
        return _unpack(archive, archive.getinfo(MEMBER), MAX_CARD_BYTES, source)


def write_card(card: bytes, archive: bytes | None, source: str) -> bytes:
    """Returns an archive with the card in it, and all other members of another archive.

    Raises:
        LoreError: the other archive is damaged or too large.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr(_member(MEMBER), card)
        if archive is not None:
            with _open(archive, source) as old:
                remaining = MAX_BYTES
                for info in old.infolist():
                    if info.filename not in (MEMBER, *new.namelist()):
                        data = _unpack(old, info, remaining, source)
                        remaining -= len(data)
                        new.writestr(_member(info.filename), data)
    return content.getvalue()


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)  # dated 1980, so that the same card gives the same bytes
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _open(content: bytes, source: str) -> zipfile.ZipFile:
    """Opens an archive, once its end record says that it has few enough members to be listed."""
    place = content.rfind(b"PK\x05\x06", max(0, len(content) - _END.size - 0xFFFF))
    if place < 0 or len(content) - place < _END.size:
        raise _damaged(source, "it has no end record")
    _, _, _, _, count, _, _, _ = _END.unpack_from(content, place)
    if count > MAX_MEMBERS or content[max(0, place - 20) :][:4] == b"PK\x06\x07":  # ZIP64
        raise LoreError(
            f"{source} is an archive of too many files; expected at most {MAX_MEMBERS}; name "
            "a character card"
        )
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        if len(archive.infolist()) != count:
            raise _damaged(source, "its directory does not match its end record")
        return archive
    except _FAULTS as error:
        raise _damaged(source, str(error)) from None


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int, source: str) -> bytes:
    try:
        with archive.open(info) as file:
            data = file.read(limit + 1)
    except _FAULTS as error:
        raise _damaged(source, str(error)) from None
    if len(data) > limit:
        raise LoreError(
            f"{source}: `{info.filename:.80}` unpacks to more than {limit / 2**20:.0f} MiB; "
            "expected less; do not use the file"
        )
    return data


def _damaged(source: str, why: str) -> LoreError:
    return LoreError(
        f"{source} is a binary file: a zip archive that cannot be read ({why:.120}); expected a "
        "complete .charx; download it again"
    )
