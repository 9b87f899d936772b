"""KoboldAI's soft prompts: a zip of `tensor.npy` and `meta.json`, read and written."""

from __future__ import annotations

import io
import json
import os
import zipfile
from typing import Any

from softlore.disk import write_atomically
from softlore.prompts.fields import MAX_DEPTH
from softlore.prompts.formats.npy import MAX_NPY_BYTES, parse_npy, to_npy
from softlore.prompts.formats.rows import MAX_METADATA, check_embedding_kind, import_prompt
from softlore.prompts.formats.safe.zips import Archive, is_zip
from softlore.prompts.opening import PromptFile, decode_utf8, parse_json
from softlore.prompts.reasons import Reason, refuse
from softlore.prompts.soft_prompt import SoftPrompt

NAME = "kobold"
TENSOR, META = "tensor.npy", "meta.json"
_MAX_META_BYTES = 4 * MAX_METADATA


def matches(file: PromptFile) -> bool:
    """Whether it is a zip with both members."""
    return is_zip(file) and {TENSOR, META} <= Archive(file).members.keys()


def read(file: PromptFile) -> SoftPrompt:
    """Reads a zip with both members. Raises PromptFileError."""
    archive = Archive(file)
    meta = _parse_meta(archive.read(META, _MAX_META_BYTES))
    rows = parse_npy(archive.read(TENSOR, MAX_NPY_BYTES))
    supported = meta.get("supported")
    first = supported[0] if isinstance(supported, list) and len(supported) == 1 else None
    base_model = first if isinstance(first, str) else ""
    if base_model:
        del meta["supported"]
    return import_prompt(rows, NAME, (meta.get("name"), file.path.stem), meta, base_model)


def _parse_meta(data: bytes) -> dict[str, Any]:
    meta = parse_json(decode_utf8(data, META), META, MAX_DEPTH, Reason.NOT_JSON)
    if not isinstance(meta, dict):
        refuse(
            Reason.METADATA_TYPE,
            f"meta.json holds {type(meta).__name__}; expected an object of name, author, supported "
            "and description; write one",
        )
    return meta


def write(prompt: SoftPrompt, path: str | os.PathLike[str]) -> None:
    """Writes a prompt of the embedding kind for KoboldAI, atomically.

    float32; equal prompts give equal bytes. Raises PromptError for the prefix kind, which
    KoboldAI does not support, and StorageError where the disk refuses.
    """
    check_embedding_kind(prompt, "KoboldAI", "convert it to PEFT")
    meta: dict[str, Any] = {"name": prompt.name, "description": prompt.description}
    if prompt.author.strip():
        meta["author"] = prompt.author
    meta["supported"] = [prompt.base_model] if prompt.base_model else []
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        _add(archive, TENSOR, to_npy(prompt.embeddings.numpy()))
        _add(archive, META, json.dumps(meta, ensure_ascii=False, indent=2).encode())
    write_atomically(path, packed.getbuffer())


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Adds a member with a fixed date and system, so that equal prompts give equal files."""
    member = zipfile.ZipInfo(name)  # 1980-01-01
    member.create_system = 3
    member.external_attr = 0o644 << 16
    member.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(member, data)
