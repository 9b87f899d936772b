"""Files that the page uploads and downloads: their names, request bodies and attachments."""

from __future__ import annotations

from collections.abc import Container
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import quote

from starlette.responses import Response

from softlore.lore.names import as_name, file_name_problem

# OpenAPI's description of a request whose body is a file.
RAW_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_MAX_GIVEN = 1000  # characters that are read of a name which the browser sends


def attachment(
    content: bytes, filename: str, media_type: str = "application/octet-stream"
) -> Response:
    """A response that the browser saves as a file and never displays or runs.

    The name is sent twice: in ASCII, and percent-encoded for browsers that read RFC 5987.
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " -_.") else "_" for c in filename)
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
    headers = {"Content-Disposition": disposition, "Cache-Control": "no-store"}
    return Response(content, media_type=media_type, headers=headers)


def base_name(path: str) -> str:
    """The last part of a file's path as a browser sends it, at most 120 characters."""
    name = PureWindowsPath(PurePosixPath(path[:_MAX_GIVEN].replace("\0", "")).name).name
    return name.encode("utf-8", "replace").decode()[-120:]


def name_for(name: str, filename: str, fallback: str) -> str:
    """The nearest legal name to `name`, or to the file's name where that is empty."""
    wanted = name[:_MAX_GIVEN] or PurePosixPath(base_name(filename)).stem
    legal = as_name(wanted.encode("utf-8", "replace").decode(), fallback).lstrip(".").strip()
    legal = legal[:60].strip()
    return fallback if file_name_problem(legal) else legal


def free_name(name: str, taken: Container[str]) -> str:
    """`name`, with a number appended if it is among `taken`, which are case-folded names."""
    free, number = name, 1
    while free.casefold() in taken:
        number += 1
        free = f"{name} {number}"
    return free
