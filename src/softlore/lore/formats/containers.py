"""Character cards in PNG pictures (text chunks `chara` and `ccv3`) and zip archives (.charx)."""

from __future__ import annotations

import base64
import binascii
import io
import lzma
import struct
import zipfile
import zlib

from softlore.errors import LoreError

PNG = b"\x89PNG\r\n\x1a\n"
_KEYWORDS = (b"ccv3", b"chara")  # cards of version 3 and 2, in order of preference
_MAX_CHUNKS = 100_000  # a picture of 16 MiB has some thousands
_MAX_LENGTH = 2**31 - 1  # by the PNG specification
_WIDTH, _HEIGHT, _GREY = 256, 384, 96  # pixels, and level, of the plain picture

MEMBER = "card.json"
MAX_CARD_BYTES = 16 * 2**20
MAX_BYTES = 64 * 2**20  # of all members, unpacked
MAX_MEMBERS = 4096
_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP_FAULTS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, struct.error,
    NotImplementedError, RuntimeError, ValueError, KeyError, IndexError, EOFError, OSError,
)  # fmt: skip


def read_card(content: bytes, source: str) -> bytes | None:
    """Returns the JSON text of the card in a picture or an archive; None for any other file.

    Raises LoreError for a picture or an archive that is damaged or holds no card.
    """
    if content.startswith(PNG):
        return _read_png(content, source)
    return (
        _read_zip(content, source) if content.startswith((b"PK\x03\x04", b"PK\x05\x06")) else None
    )


def _damaged(source: str, why: str) -> LoreError:
    return LoreError(
        f"{source} is a binary file that cannot be read, damaged or incomplete ({why:.120}); "
        "expected a PNG picture or .charx archive with a character card; download it again"
    )


# Pictures ----------------------------------------------------------------------------------------


def _read_png(content: bytes, source: str) -> bytes:
    texts: dict[bytes, bytes] = {}
    for kind, body in _chunks(content, source):
        keyword, _, text = body.partition(b"\0")
        if kind == b"tEXt":
            texts.setdefault(keyword.lower(), text)
    for keyword in _KEYWORDS:
        if keyword in texts:
            try:
                return base64.b64decode(b"".join(texts[keyword].split()), validate=True)
            except binascii.Error as error:
                raise LoreError(
                    f"{source}: the chunk `{keyword.decode()}` is not base64 ({error}); expected a "
                    "card as JSON in base64; export the card again"
                ) from None
    raise LoreError(
        f"{source} is a binary file: a PNG picture that holds no character card; expected a tEXt "
        "chunk `ccv3` or `chara`; export the card again (some sites remove such chunks)"
    )


def write_png(picture: bytes, cards: dict[str, bytes], source: str) -> bytes:
    """Returns a picture with other cards in it, given as JSON texts by keyword.

    Raises LoreError if the picture is damaged.
    """
    parts = [PNG]
    for kind, body in _chunks(picture, source):
        keyword = body.partition(b"\0")[0].lower()
        if kind == b"tEXt" and keyword in _KEYWORDS:
            continue
        if kind == b"IEND":
            texts = [name.encode() + b"\0" + base64.b64encode(cards[name]) for name in cards]
            parts += [_chunk(b"tEXt", text) for text in texts]
        parts.append(_chunk(kind, body))
    return b"".join(parts)


def plain_picture() -> bytes:
    """Returns a small grey picture, for cards that have none."""
    header = struct.pack(">2I5B", _WIDTH, _HEIGHT, 8, 0, 0, 0, 0)  # 8 bits of grey per pixel
    rows = (b"\0" + bytes([_GREY]) * _WIDTH) * _HEIGHT
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return PNG + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunks(content: bytes, source: str) -> list[tuple[bytes, bytes]]:
    """The chunks up to the end of the picture, as (kind, body). Verifies their checksums."""
    if not content.startswith(PNG):
        raise LoreError(f"{source} is not a PNG picture; expected one; convert it to PNG")
    chunks: list[tuple[bytes, bytes]] = []
    place = len(PNG)
    while not chunks or chunks[-1][0] != b"IEND":
        if len(content) - place < 12 or len(chunks) > _MAX_CHUNKS:
            raise _damaged(source, "it has no end")
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 12 + length
        if length > _MAX_LENGTH or end > len(content):
            raise _damaged(source, f"a chunk of {length:,} bytes exceeds the file")
        body = content[place + 8 : end - 4]
        if struct.unpack_from(">I", content, end - 4)[0] != zlib.crc32(kind + body):
            raise _damaged(source, f"the checksum of the chunk at byte {place:,} does not match")
        chunks.append((kind, body))
        place = end
    return chunks


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# Archives ----------------------------------------------------------------------------------------


def _read_zip(content: bytes, source: str) -> bytes:
    with _open_zip(content, source) as archive:
        if MEMBER in archive.namelist():
            return _unpack(archive, archive.getinfo(MEMBER), MAX_CARD_BYTES, source)
    raise LoreError(
        f"{source} is a binary file: a zip archive that holds no character card; expected "
        f"`{MEMBER}` in it; name a .charx file"
    )


def write_zip(card: bytes, archive: bytes | None, source: str) -> bytes:
    """Returns an archive with the card in it, and all other members of another archive.

    Raises LoreError if the other archive is damaged or too large.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr(_member(MEMBER), card)
        if archive is not None:
            with _open_zip(archive, source) as old:
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


def _open_zip(content: bytes, source: str) -> zipfile.ZipFile:
    """Opens an archive, after its end record says that it has few enough members to list."""
    place = content.rfind(b"PK\x05\x06", max(0, len(content) - _ZIP_END.size - 0xFFFF))
    if place < 0 or len(content) - place < _ZIP_END.size:
        raise _damaged(source, "it has no end record")
    count = _ZIP_END.unpack_from(content, place)[4]
    if count > MAX_MEMBERS or content[max(0, place - 20) :][:4] == b"PK\x06\x07":  # ZIP64
        raise LoreError(
            f"{source} is an archive of too many files; expected at most {MAX_MEMBERS}; name "
            "a character card"
        )
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        if len(archive.infolist()) == count:
            return archive
    except _ZIP_FAULTS as error:
        raise _damaged(source, str(error)) from None
    raise _damaged(source, "its directory does not match its end record")


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int, source: str) -> bytes:
    try:
        with archive.open(info) as file:
            data = file.read(limit + 1)
    except _ZIP_FAULTS as error:
        raise _damaged(source, str(error)) from None
    if len(data) > limit:
        raise LoreError(
            f"{source}: `{info.filename:.80}` unpacks to more than {limit / 2**20:.0f} MiB; "
            "expected less; do not use the file"
        )
    return data
