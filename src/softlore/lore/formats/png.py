"""Character cards in PNG pictures: the text chunks `chara` (version 2) and `ccv3` (version 3)."""

from __future__ import annotations

import base64
import binascii
import struct
import zlib

from softlore.errors import LoreError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEYWORDS = (b"ccv3", b"chara")  # in order of preference
_MAX_CHUNKS = 100_000  # a picture of 16 MiB has some thousands
_MAX_LENGTH = 2**31 - 1  # by the PNG specification
_WIDTH, _HEIGHT, _GREY = 256, 384, 96  # points, and level, of the plain picture


def is_png(content: bytes) -> bool:
    """Whether a file is a PNG picture, by its first bytes."""
    return content.startswith(SIGNATURE)


def read_card(content: bytes, source: str) -> bytes:
    """Returns the JSON text of the card in a picture.

    Raises:
        LoreError: the picture is damaged, or holds no card.
    """
    texts: dict[bytes, bytes] = {}
    for kind, body in _chunks(content, source):
        keyword, _, text = body.partition(b"\0")
        if kind == b"tEXt":
            texts.setdefault(keyword.lower(), text)
    for keyword in _KEYWORDS:
        if keyword in texts:
            return _decode(texts[keyword], keyword.decode(), source)
    raise LoreError(
        f"{source} is a binary file: a PNG picture that holds no character card; expected a tEXt "
        "chunk `ccv3` or `chara`; export the card again (some sites remove such chunks)"
    )


def write_card(picture: bytes, cards: dict[str, bytes], source: str) -> bytes:
    """Returns a picture with other cards in it, given as JSON texts by keyword.

    Raises:
        LoreError: the picture is damaged.
    """
    parts = [SIGNATURE]
    for kind, body in _chunks(picture, source):
        keyword = body.partition(b"\0")[0].lower()
        if kind == b"tEXt" and keyword in _KEYWORDS:
            continue
        if kind == b"IEND":
            for name, text in cards.items():
                parts.append(_chunk(b"tEXt", name.encode() + b"\0" + base64.b64encode(text)))
        parts.append(_chunk(kind, body))
    return b"".join(parts)


def plain_picture() -> bytes:
    """Returns a small grey picture, for cards that have none."""
    header = struct.pack(">2I5B", _WIDTH, _HEIGHT, 8, 0, 0, 0, 0)  # 8 bits of grey a point
    rows = (b"\0" + bytes([_GREY]) * _WIDTH) * _HEIGHT
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return SIGNATURE + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunks(content: bytes, source: str) -> list[tuple[bytes, bytes]]:
    """The chunks up to the end of the picture, as (kind, body). Verifies their checksums."""
    if not is_png(content):
        raise LoreError(f"{source} is not a PNG picture; expected one; convert it to PNG")
    chunks: list[tuple[bytes, bytes]] = []
    place = len(SIGNATURE)
    while True:
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
        if kind == b"IEND":
            return chunks


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _decode(text: bytes, keyword: str, source: str) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error as error:
        raise LoreError(
            f"{source}: the chunk `{keyword}` is not base64 ({error}); expected a card as JSON in "
            "base64; export the card again"
        ) from None


def _damaged(source: str, why: str) -> LoreError:
    return LoreError(
        f"{source} is a binary file: a damaged PNG picture ({why}); expected a complete one with a "
        "character card in it; download it again"
    )
