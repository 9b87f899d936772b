"""mkultra's soft prompts: JSON of `metadata` and a pickled `tensor`, read and written.

The tensor is base64 of a pickle, which mkultra itself loads, and so runs; here it is parsed.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from softlore.disk import write_atomically
from softlore.errors import PromptFileError
from softlore.prompts.formats.imported import import_prompt
from softlore.prompts.formats.kobold import check_rows_only
from softlore.prompts.formats.torch_files import tensor_in_pickle
from softlore.prompts.metadata import MAX_DEPTH
from softlore.prompts.opening import read_all
from softlore.prompts.reasons import Reason
from softlore.prompts.soft_prompt import SoftPrompt
from softlore.prompts.strict_json import parse_json

NAME = "mkultra"
MAX_FILE_BYTES = 48 * 1024 * 1024  # 2047 rows × 4096 columns in float32, in base64, and metadata
_MAX_MARKS = 400_000  # brackets, commas and quotes: a prompt has about thirty
_MAX_NESTING = 4  # JSON in a string in JSON in a string
_BOM_AND_SPACE = b"\xef\xbb\xbf \t\r\n"


def takes(path: Path, head: bytes) -> bool:
    """Whether a file begins as JSON does: an object, a list, or a string that may hold one."""
    return head.lstrip(_BOM_AND_SPACE)[:1] in (b"{", b"[", b'"')


def parse(file: BinaryIO, size: int, path: Path) -> SoftPrompt:
    """Reads an open file of `size` bytes. Raises PromptFileError."""
    data = read_all(file, size, MAX_FILE_BYTES, "mkultra's JSON")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptFileError(
            f"byte {error.start} of the file is not UTF-8; expected JSON in UTF-8; save it again "
            "as such",
            reason=Reason.NOT_UTF8,
        ) from None
    return from_json(text, path.stem)


def from_json(text: str, name: str = "") -> SoftPrompt:
    """The prompt in JSON text, also where it is a string within another JSON.

    `name` is the prompt's where its metadata has none. Raises PromptFileError.
    """
    data = _parse(text)
    found = list(_search(data, 0))
    if len(found) != 1:
        keys = ", ".join(f"{key!r:.30}" for key in data) if isinstance(data, dict) else ""
        what = f"an object of {keys:.200}" if keys else f"{type(data).__name__}"
        raise PromptFileError(
            f"the JSON is {what}, and holds {len(found)} mkultra soft prompts; expected one, an "
            "object of metadata and tensor; "
            + ("save each to a file of its own" if found else "if it is a lorebook, train it"),
            reason=Reason.SEVERAL_PROMPTS if found else Reason.OTHER_FORMAT,
        )
    return _prompt(found[0], name)


def write(prompt: SoftPrompt, path: str | os.PathLike[str]) -> None:
    """Writes a prompt of the embedding kind for mkultra, whole or not at all.

    Raises PromptError for the prefix kind, which mkultra has no place for, and StorageError
    where the disk refuses.
    """
    write_atomically(path, to_json(prompt).encode())


def to_json(prompt: SoftPrompt) -> str:
    """The prompt as mkultra's JSON text. Raises PromptError for the prefix kind."""
    check_rows_only(prompt, "mkultra")
    created = datetime.fromisoformat(prompt.created) if prompt.created else datetime.now(UTC)
    metadata = {
        "name": prompt.name,
        "uuid": prompt.uuid,
        "description": prompt.description,
        "epoch": created.timestamp(),
    }
    if prompt.author:
        metadata["author"] = prompt.author
    for key, value in prompt.extra.items():
        if key.startswith(f"{NAME}."):
            metadata.setdefault(key.removeprefix(f"{NAME}."), _value(value))
    pickled = pickle.dumps(prompt.embeddings.clone(), protocol=4)
    tensor = base64.b64encode(pickled).decode("ascii")
    return json.dumps({"metadata": metadata, "tensor": tensor}, ensure_ascii=False)


def _value(text: str) -> Any:
    """What a key of `extra` holds: JSON as the reader put it there, or text by another hand."""
    try:
        return parse_json(text, "extra", MAX_DEPTH, Reason.NOT_JSON)
    except PromptFileError:
        return text


def _parse(text: str) -> Any:
    """Parses JSON of not too many values: empty lists would take twenty times their text."""
    marks = sum(map(text.count, '[{,"'))
    if marks > _MAX_MARKS:
        raise PromptFileError(
            f"the JSON has {marks:,} brackets, commas and quotes; expected at most {_MAX_MARKS:,}; "
            "it holds something else, or far more than one soft prompt: take the prompt out of it",
            reason=Reason.TOO_LARGE,
        )
    return parse_json(text, "the JSON", MAX_DEPTH, Reason.NOT_JSON)


def _search(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    """The objects that have a tensor and metadata; strings that hold such an object, too."""
    if isinstance(value, str):
        if depth < _MAX_NESTING and value.lstrip()[:1] in ("{", "[", '"'):
            yield from _search(_parse(value), depth + 1)
    elif isinstance(value, dict) and isinstance(value.get("tensor"), str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _search(inner, depth)


def _prompt(found: dict[str, Any], name: str) -> SoftPrompt:
    metadata = found.get("metadata", {})
    if not isinstance(metadata, dict):
        raise PromptFileError(
            f"its metadata is {type(metadata).__name__}; expected an object of name, description, "
            "uuid and epoch; mend it, or leave it out",
            reason=Reason.METADATA_TYPE,
        )
    try:
        pickled = base64.b64decode(found["tensor"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise PromptFileError(
            f"its tensor is not base64: {error!s:.120}; expected base64 of a pickle; the file was "
            "cut or damaged: get it again",
            reason=Reason.BASE64,
        ) from None
    rows = tensor_in_pickle(pickled).rows()
    return import_prompt(rows, NAME, (metadata.get("name"), name), metadata)
