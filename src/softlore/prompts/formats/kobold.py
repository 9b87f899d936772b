"""KoboldAI's soft prompts: a zip of `tensor.npy` and `meta.json`, read and written."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from softlore.disk import write_atomically
from softlore.errors import PromptError, PromptFileError
from softlore.prompts.formats.imported import MAX_METADATA, import_prompt
from softlore.prompts.formats.npy import MAX_NPY_BYTES, read_npy, write_npy
from softlore.prompts.formats.zips import Archive
from softlore.prompts.metadata import MAX_DEPTH
from softlore.prompts.reasons import Reason
from softlore.prompts.soft_prompt import SoftPrompt
from softlore.prompts.strict_json import parse_json

NAME = "kobold"
TENSOR, META = "tensor.npy", "meta.json"
_MAX_META_BYTES = 4 * MAX_METADATA


def parse_archive(archive: Archive, path: Path) -> SoftPrompt:
    """Reads an archive that holds both members. Raises PromptFileError."""
    meta = parse_meta(archive.read(META, _MAX_META_BYTES))
    rows = read_npy(archive.read(TENSOR, MAX_NPY_BYTES))
    supported = meta.get("supported")
    one = supported[0] if isinstance(supported, list) and len(supported) == 1 else None
    base_model = one if isinstance(one, str) else ""
    if base_model:
        del meta["supported"]
    return import_prompt(rows, NAME, (meta.get("name"), path.stem), meta, base_model)


def parse_meta(data: bytes) -> dict[str, Any]:
    """The object in meta.json. Raises PromptFileError."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptFileError(
            f"byte {error.start} of meta.json is not UTF-8; expected UTF-8; save it again as such",
            reason=Reason.NOT_UTF8,
        ) from None
    meta = parse_json(text, "meta.json", MAX_DEPTH, Reason.NOT_JSON)
    if not isinstance(meta, dict):
        raise PromptFileError(
            f"meta.json holds {type(meta).__name__}; expected an object of name, author, supported "
            "and description; write one",
            reason=Reason.METADATA_TYPE,
        )
    return meta


def write(prompt: SoftPrompt, path: str | os.PathLike[str]) -> None:
    """Writes a prompt of the embedding kind for KoboldAI, whole or not at all.

    float32; equal prompts give equal bytes. Raises PromptError for the prefix kind, which
    KoboldAI has no place for, and StorageError where the disk refuses.
    """
    check_rows_only(prompt, "KoboldAI")
    meta: dict[str, Any] = {"name": prompt.name, "description": prompt.description}
    if prompt.author.strip():
        meta["author"] = prompt.author
    meta["supported"] = [prompt.base_model] if prompt.base_model else []
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        _add(archive, TENSOR, write_npy(prompt.embeddings.numpy()))
        _add(archive, META, json.dumps(meta, ensure_ascii=False, indent=2).encode())
    write_atomically(path, packed.getbuffer())


def check_rows_only(prompt: SoftPrompt, program: str) -> None:
    """Raises PromptError for a prefix, which a format of rows cannot hold."""
    if prompt.kind != "embedding":
        raise PromptError(
            f"prompt {prompt.name!r} is of the {prompt.kind} kind; {program} takes rows in place "
            "of word embeddings only; expected the embedding kind; train it again with "
            "kind='embedding' (--kind embedding), or convert it to PEFT"
        )


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Adds a member with a fixed date and system, so that equal prompts give equal files."""
    member = zipfile.ZipInfo(name)  # 1980-01-01
    member.create_system = 3
    member.external_attr = 0o644 << 16
    member.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(member, data)
