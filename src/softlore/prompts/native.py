"""softlore's own prompt file: safetensors with one tensor and metadata. See docs/format.md."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from softlore.errors import PromptFileError
from softlore.prompts.header import TENSOR, RawHeader, read_raw_header
from softlore.prompts.metadata import MAX_DEPTH
from softlore.prompts.names import clean_name
from softlore.prompts.opening import blaming, reading
from softlore.prompts.reasons import Reason
from softlore.prompts.shapes import Kind, check_kind, check_shape, tokens_of
from softlore.prompts.soft_prompt import JSON_FIELDS, METADATA_KEYS, TEXT_FIELDS, SoftPrompt
from softlore.prompts.strict_json import parse_json
from softlore.prompts.tensors import read_tensors, write_tensor

FORMAT = "softlore"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"

# What the numbers are, so that a reader need not guess.
CONVENTIONS: dict[Kind, str] = {
    "embedding": "inputs_embeds",  # rows as the forward takes them, already scaled
    "prefix": "past_key_values",  # as they lie in the cache; keys already rotated, from position 0
}
_REQUIRED = ("format", "format_version", "kind", "convention", "name")


@dataclass(frozen=True)
class PromptHeader:
    """What a prompt file says of itself, without its tensor.

    Attributes:
        path: where it was read.
        dtype: of the tensor in the file: "F32", "F16" or "BF16".
        shape: of the tensor.
        data_bytes: size of the tensor in the file.
        metadata: string → string, as in the file.
    """

    path: Path
    name: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    data_bytes: int
    metadata: dict[str, str]

    @property
    def n_tokens(self) -> int:
        """How many tokens the prompt has."""
        return tokens_of(self.kind, self.shape)

    def fields(self) -> dict[str, Any]:
        """SoftPrompt's metadata fields, nested values parsed. Raises PromptFileError."""
        fields: dict[str, Any] = {"name": self.name, "created": self.metadata.get("created", "")}
        fields |= {key: self.metadata.get(key, "") for key in TEXT_FIELDS}
        for key in JSON_FIELDS:
            text = self.metadata.get(key, "{}")
            fields[key] = parse_json(text, f"metadata {key!r}", MAX_DEPTH, Reason.METADATA_VALUE)
        fields["extra"] = {k: v for k, v in self.metadata.items() if k not in METADATA_KEYS}
        return fields


def read_header(path: str | os.PathLike[str]) -> PromptHeader:
    """Reads and checks all but the tensor's values: quick, however large the tensor.

    Raises PromptFileError, with a reason, or StorageError.
    """
    with reading(path) as (file, size):
        return prompt_header(path, read_raw_header(file, size))


def read_prompt(path: str | os.PathLike[str]) -> SoftPrompt:
    """Reads a prompt file; nothing in it is ever run. Raises PromptFileError or StorageError."""
    with reading(path) as (file, size):
        return parse(file, size, Path(path))


def parse(file: BinaryIO, size: int, path: Path) -> SoftPrompt:
    """Reads an open prompt file of `size` bytes from its start. Raises PromptFileError."""
    raw = read_raw_header(file, size)
    header = prompt_header(path, raw)
    fields = header.fields()
    tensor = read_tensors(file, raw)[TENSOR]
    with blaming(Reason.METADATA_VALUE):
        return SoftPrompt(kind=header.kind, tensor=tensor, **fields)


def write_prompt(prompt: SoftPrompt, path: str | os.PathLike[str]) -> None:
    """Writes a prompt file, whole or not at all; equal prompts give equal bytes.

    Raises PromptError for metadata too long for a header, StorageError where the disk refuses.
    """
    write_tensor(path, prompt.tensor, metadata_of(prompt))


def metadata_of(prompt: SoftPrompt) -> dict[str, str]:
    """What a file says of a prompt besides its tensor: string → string."""
    metadata = dict(prompt.extra)
    metadata |= {key: getattr(prompt, key) for key in ("name", "created", *TEXT_FIELDS)}
    for key in JSON_FIELDS:
        metadata[key] = json.dumps(
            getattr(prompt, key), ensure_ascii=False, allow_nan=False, sort_keys=True
        )
    return metadata | {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "kind": prompt.kind,
        "convention": CONVENTIONS[prompt.kind],
    }


def prompt_header(path: str | os.PathLike[str], raw: RawHeader) -> PromptHeader:
    """Checks what the metadata says of format, version, kind, name and the tensor's shape."""
    found, entry = raw.metadata, raw.tensors[TENSOR]
    if found is None:
        raise PromptFileError(
            "the header has no __metadata__; expected softlore's metadata in it; this is "
            "safetensors of another program: import it by that program's format",
            reason=Reason.NO_METADATA,
        )
    if found.get("format") != FORMAT:
        hint = "it may be a PEFT adapter or a model" if found.get("format") == "pt" else ""
        raise PromptFileError(
            f"metadata 'format' is {found.get('format')!r:.40}; expected {FORMAT!r}; this is "
            f"safetensors of another program{': ' + hint if hint else ''}; import it by that "
            "program's format",
            reason=Reason.NOT_SOFTLORE,
        )
    _check_version(found.get("format_version"))
    missing = [key for key in _REQUIRED if key not in found]
    if missing:
        raise PromptFileError(
            f"metadata {', '.join(missing)} is missing; expected {', '.join(_REQUIRED)}; the file "
            "was edited or made by a faulty program: get it again",
            reason=Reason.METADATA_MISSING,
        )
    with blaming(Reason.METADATA_VALUE):
        kind, name = check_kind(found["kind"]), clean_name(found["name"])
    if found["convention"] != CONVENTIONS[kind]:
        raise PromptFileError(
            f"metadata 'convention' is {found['convention']!r:.80}; expected "
            f"{CONVENTIONS[kind]!r} for the {kind} kind; convert the file where it was made",
            reason=Reason.METADATA_VALUE,
        )
    with blaming(Reason.SHAPE):
        check_shape(kind, entry.shape)
    return PromptHeader(Path(path), name, kind, entry.dtype, entry.shape, raw.data_bytes, found)


def _check_version(version: str | None) -> None:
    if version is None or not (version.isascii() and version.isdigit() and len(version) < 10):
        raise PromptFileError(
            f"metadata 'format_version' is {version!r:.40}; expected a whole number, as "
            f"{str(FORMAT_VERSION)!r}; the file was edited or made by a faulty program: get it "
            "again",
            reason=Reason.VERSION,
        )
    if int(version) > FORMAT_VERSION:
        raise PromptFileError(
            f"it was made by a newer softlore (format version {version}); expected version "
            f"{FORMAT_VERSION} or older; update softlore: pip install -U softlore",
            reason=Reason.NEWER_VERSION,
        )
    if int(version) < 1:
        raise PromptFileError(
            f"metadata 'format_version' is {version!r}; expected 1 to {FORMAT_VERSION}; get the "
            "file again",
            reason=Reason.VERSION,
        )
