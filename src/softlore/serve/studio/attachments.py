"""Files that come in as bodies, and go out as downloads whose names survive in any browser."""

from __future__ import annotations

from urllib.parse import quote

from starlette.responses import Response

# The description of a body that is a file as it is.
RAW = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def attached(content: bytes, name: str, kind: str = "application/octet-stream") -> Response:
    """An answer that the browser saves under a name, and never shows or runs."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " -_.") else "_" for c in name)
    shown = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
    headers = {"Content-Disposition": shown, "Cache-Control": "no-store"}
    return Response(content, media_type=kind, headers=headers)
