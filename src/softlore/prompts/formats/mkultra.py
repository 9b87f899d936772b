"""mkultra's soft prompts: JSON of `metadata` and a pickled `tensor`, read and written.

The tensor is base64 of a pickle, which mkultra itself unpickles; here it is only parsed.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from softlore.disk import write_atomically
from softlore.errors import PromptFileError
from softlore.prompts.fields import MAX_DEPTH
from softlore.prompts.formats.rows import check_embedding_kind, import_prompt
from softlore.prompts.formats.safe.torch_files import parse_pickled_tensor
from softlore.prompts.opening import PromptFile, decode_utf8, parse_json
from softlore.prompts.reasons import Reason, refuse
from softlore.prompts.soft_prompt import SoftPrompt

NAME = "mkultra"
MAX_FILE_BYTES = 48 * 1024 * 1024  # 2047 rows × 4096 columns in float32, in base64, and metadata
_MAX_MARKS = 400_000  # brackets, commas and quotes: a prompt has about thirty
_MAX_NESTING = 4  # JSON in a string in JSON in a string
_BOM_AND_SPACE = b"\xef\xbb\xbf \t\r\n"


def matches(file: PromptFile) -> bool:
    """Whether it begins like JSON: an object, a list, or a string that may hold one."""
    return file.start.lstrip(_BOM_AND_SPACE)[:1] in (b"{", b"[", b'"')


def read(file: PromptFile) -> SoftPrompt:
    """Reads mkultra's JSON. Raises PromptFileError."""
    data = file.read_all(MAX_FILE_BYTES, "mkultra's JSON")
    return from_json(decode_utf8(data, "the file"), file.path.stem)


def from_json(text: str, name: str = "") -> SoftPrompt:
    """The prompt in JSON text, also where it is a string within another JSON.

    `name` is used where its metadata has none. Raises PromptFileError.
    """
    data = _parse(text)
    prompts = list(_search(data, 0))
    if len(prompts) != 1:
        keys = ", ".join(f"{key!r:.30}" for key in data) if isinstance(data, dict) else ""
        what = f"an object of {keys:.200}" if keys else f"{type(data).__name__}"
        refuse(
            Reason.SEVERAL_PROMPTS if prompts else Reason.OTHER_FORMAT,
            f"the JSON is {what}, and holds {len(prompts)} mkultra soft prompts; expected one, an "
            "object of metadata and tensor; "
            + ("save each to a separate file" if prompts else "if it is a lorebook, train it"),
        )
    return _prompt(prompts[0], name)


def write(prompt: SoftPrompt, path: str | os.PathLike[str]) -> None:
    """Writes a prompt of the embedding kind for mkultra, atomically.

    Raises PromptError for the prefix kind, which mkultra does not support, and StorageError where
    the disk refuses.
    """
    write_atomically(path, to_json(prompt).encode())


def to_json(prompt: SoftPrompt) -> str:
    """The prompt as mkultra's JSON text. Raises PromptError for the prefix kind."""
    check_embedding_kind(prompt, "mkultra", "convert it to PEFT")
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
    """The value of a key of `extra`: JSON as `read` stored it, or any other text."""
    try:
        return parse_json(text, "extra", MAX_DEPTH, Reason.NOT_JSON)
    except PromptFileError:
        return text


def _parse(text: str) -> Any:
    """Parses JSON with a limit on values: empty lists would take twenty times their text."""
    marks = sum(map(text.count, '[{,"'))
    if marks > _MAX_MARKS:
        refuse(
            Reason.TOO_LARGE,
            f"the JSON has {marks:,} brackets, commas and quotes; expected at most {_MAX_MARKS:,}; "
            "it holds something else, or far more than one soft prompt: take the prompt out of it",
        )
    return parse_json(text, "the JSON", MAX_DEPTH, Reason.NOT_JSON)


def _search(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    """The objects with a tensor and metadata, also inside strings of JSON."""
    if isinstance(value, str):
        if depth < _MAX_NESTING and value.lstrip()[:1] in ("{", "[", '"'):
            yield from _search(_parse(value), depth + 1)
    elif isinstance(value, dict) and isinstance(value.get("tensor"), str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _search(inner, depth)


def _prompt(stored: dict[str, Any], name: str) -> SoftPrompt:
    metadata = stored.get("metadata", {})
    if not isinstance(metadata, dict):
        refuse(
            Reason.METADATA_TYPE,
            f"its metadata is {type(metadata).__name__}; expected an object of name, description, "
            "uuid and epoch; fix it, or leave it out",
        )
    try:
        pickled = base64.b64decode(stored["tensor"], validate=True)
    except (binascii.Error, ValueError) as error:
        refuse(
            Reason.BASE64,
            f"its tensor is not base64: {error!s:.120}; expected base64 of a pickle; the file was "
            "cut or damaged: get it again",
        )
    rows = parse_pickled_tensor(pickled).rows()
    return import_prompt(rows, NAME, (metadata.get("name"), name), metadata)
