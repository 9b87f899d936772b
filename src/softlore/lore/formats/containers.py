"""Character cards in PNG pictures (text chunks `chara` and `ccv3`) and zip archives (.charx).

RisuAI also writes its archives behind a JPEG picture. Source: the PNG specification, on the chunks
tEXt, zTXt and iTXt; the Character Card V3 specification.
"""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import zipfile
import zlib

from softlore.errors import LoreError

PNG = b"\x89PNG\r\n\x1a\n"
_RISUM = b"o\0"
_JPEG = b"\xff\xd8\xff"
_KEYWORDS = (b"ccv3", b"chara")  # cards of version 3 and 2, in order of preference
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")  # chunks of texts: plain, compressed, international
_MAX_CHUNKS = 100_000  # a picture of 16 MiB has some thousands
_MAX_LENGTH = 2**31 - 1  # by the PNG specification
_WIDTH, _HEIGHT, _GREY = 256, 384, 96  # pixels, and level, of the plain picture

MEMBER = "card.json"
MAX_CARD_BYTES = 16 * 2**20
_MAX_TEXT = 24 * 2**20  # of a card in base64
MAX_BYTES = 64 * 2**20  # of all members, unpacked
MAX_MEMBERS = 4096
_ZIP_END = struct.Struct("<4s4H2LH")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may need any amount of memory
_ZIP_FAULTS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, NotImplementedError,
    RuntimeError, ValueError, KeyError, IndexError, EOFError, OSError,
)  # fmt: skip


def read_card(content: bytes, source: str) -> bytes | None:
    """Returns the JSON text of the card in a picture or an archive; None for any other file.

    Raises LoreError for a picture or an archive that is damaged or holds no card.
    """
    if content.startswith(PNG):
        return _read_png(content, source)
    if content.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _read_zip(content, source)
    if content.startswith(_RISUM) and source.lower().endswith(".risum"):
        raise LoreError(
            f"{source} is RisuAI's module in its binary form, which is not read; expected JSON; "
            "in RisuAI, export the module's lorebook, and name that file"
        )
    if not content.startswith(_JPEG):
        return None
    if _zip_end(content) < 0:
        raise LoreError(
            f"{source} is a JPEG picture that holds no character card; expected RisuAI's .charx "
            "archive behind it, or a PNG picture with a card; export the card again"
        )
    return _read_zip(content, source)


def _damaged(source: str, why: str) -> LoreError:
    return LoreError(
        f"{source} is a binary file that cannot be read, damaged or incomplete ({why:.120}); "
        "expected a PNG picture or .charx archive with a character card; download it again"
    )


# Pictures ----------------------------------------------------------------------------------------


def _read_png(content: bytes, source: str) -> bytes:
    texts: dict[bytes, tuple[bytes, bytes]] = {}
    for kind, body in _chunks(content, source):
        if kind in _TEXTS:
            keyword, _, rest = body.partition(b"\0")
            texts.setdefault(keyword.lower(), (kind, rest))
    for keyword in _KEYWORDS:
        if keyword in texts:
            try:
                text = b"".join(_chunk_text(*texts[keyword]).split())
                return base64.b64decode(text, validate=True)
            except (ValueError, zlib.error) as error:  # of base64 too
                raise LoreError(
                    f"{source}: the chunk `{keyword.decode()}` is not base64, or not packed as it "
                    f"says ({error}); expected a card as JSON in base64; export the card again"
                ) from None
    raise LoreError(
        f"{source} is a binary file: a PNG picture that holds no character card; expected a text "
        "chunk `ccv3` or `chara`; export the card again (some sites remove such chunks)"
    )


def _chunk_text(kind: bytes, rest: bytes) -> bytes:
    """The text in a chunk, given what follows its keyword. Raises ValueError, zlib.error."""
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = rest[:1] == b"\x01"
        method = rest[1:2]
        _, _, rest = rest[2:].partition(b"\0")  # the language
        _, _, rest = rest.partition(b"\0")  # the keyword in that language
        rest = method + rest if packed else rest
    if not packed:
        return rest
    if rest[:1] != b"\0":
        raise ValueError("its method of compression is unknown")
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(rest[1:], _MAX_TEXT)
    if not unpacker.eof:
        raise ValueError(f"it is cut, or unpacks to more than {_MAX_TEXT >> 20} MiB")
    return text


def write_png(picture: bytes, cards: dict[str, bytes], source: str) -> bytes:
    """Returns a picture with other cards in it, given as JSON texts by keyword.

    Raises LoreError if the picture is damaged.
    """
    parts = [PNG]
    for kind, body in _chunks(picture, source):
        keyword = body.partition(b"\0")[0].lower()
        if kind in _TEXTS and keyword in _KEYWORDS:
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

    A picture in front of the other archive stays there.

    Raises LoreError if the other archive is damaged or too large.
    """
    with _open_zip(archive, source) if archive else contextlib.nullcontext() as old:
        front = archive[: _zip_start(old)] if archive and old else b""
        content = io.BytesIO(front)
        with zipfile.ZipFile(content, "a" if front else "w", zipfile.ZIP_DEFLATED) as new:
            new.writestr(_member(MEMBER), card)
            if old:
                _copy_members(old, new, source)
    return content.getvalue()


def _copy_members(old: zipfile.ZipFile, new: zipfile.ZipFile, source: str) -> None:
    """Copies what the new archive does not have."""
    remaining = MAX_BYTES
    for info in old.infolist():
        if info.filename not in new.namelist():
            data = _unpack(old, info, remaining, source)
            remaining -= len(data)
            new.writestr(_member(info.filename), data)


def _zip_start(archive: zipfile.ZipFile) -> int:
    """Where the members begin: behind a picture, in RisuAI's archives of that kind."""
    return min((info.header_offset for info in archive.infolist()), default=0)


def _zip_end(content: bytes) -> int:
    """Where the end record of an archive is; -1 if there is none."""
    place = content.rfind(b"PK\x05\x06", max(0, len(content) - _ZIP_END.size - 0xFFFF))
    return place if len(content) - place >= _ZIP_END.size else -1


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)  # dated 1980, so that the same card gives the same bytes
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _open_zip(content: bytes, source: str) -> zipfile.ZipFile:
    """Opens an archive, after its end record says that it has few enough members to list."""
    place = _zip_end(content)
    if place < 0:
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
    if info.compress_type not in _METHODS:
        raise LoreError(
            f"{source}: `{info.filename:.80}` is packed by method {info.compress_type}; expected "
            "no compression or Deflate, as programs write cards; pack the archive again"
        )
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
