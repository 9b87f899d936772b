"""softlore's own prompt file: safetensors with metadata. See docs/format.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlore.prompts.fields import (
    JSON_FIELDS,
    MAX_DEPTH,
    METADATA_KEYS,
    TEXT_FIELDS,
    Kind,
    check_shape,
    clean_kind,
    clean_name,
    tokens_of,
)
from softlore.prompts.opening import PromptFile, is_safetensors, looks_like, open_prompt, parse_json
from softlore.prompts.reasons import Reason, as_file_error, refuse
from softlore.prompts.safetensors_file import (
    TENSOR,
    SafetensorsHeader,
    read_safetensors_header,
    read_tensors,
)

FORMAT = "softlore"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"

# The meaning of the tensor.
CONVENTIONS: dict[Kind, str] = {
    "embedding": "inputs_embeds",  # rows as the forward takes them, already scaled
    "prefix": "past_key_values",  # as in the cache; keys already rotated, from position 0
}
_REQUIRED = ("format", "format_version", "kind", "convention", "name")


@dataclass(frozen=True)
class PromptHeader:
    """A prompt file's metadata, without its tensor.

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
        """The number of the prompt's tokens."""
        return tokens_of(self.kind, self.shape)

    def fields(self) -> dict[str, Any]:
        """SoftPrompt's fields except kind and tensor. Raises PromptFileError."""
        fields: dict[str, Any] = {"name": self.name, "created": self.metadata.get("created", "")}
        fields |= {key: self.metadata.get(key, "") for key in TEXT_FIELDS}
        for key in JSON_FIELDS:
            fields[key] = parse_object(self.metadata.get(key, "{}"), key)
        fields["extra"] = {k: v for k, v in self.metadata.items() if k not in METADATA_KEYS}
        return fields


def matches(file: PromptFile) -> bool:
    """Safetensors by its bytes, or by its suffix if no other format matches (truncated files)."""
    by_name = file.path.suffix == SUFFIX and not file.is_folder
    return is_safetensors(file.start) or (by_name and not looks_like(file.start))


def read_header(path: str | os.PathLike[str]) -> PromptHeader:
    """Reads and checks all but the tensor's values: fast, however large the tensor.

    Raises PromptFileError, with a reason, or StorageError.
    """
    with open_prompt(path) as file:
        return check_header(path, read_safetensors_header(file))


def read_fields(file: PromptFile) -> dict[str, Any]:
    """All fields of a SoftPrompt from an open file. Raises PromptFileError."""
    stored = read_safetensors_header(file)
    header = check_header(file.path, stored)
    fields = header.fields()
    return fields | {"kind": header.kind, "tensor": read_tensors(file.stream, stored)[TENSOR]}


def metadata_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """A file's metadata, string → string, from the fields of a SoftPrompt."""
    metadata = dict(fields["extra"])
    metadata |= {key: fields[key] for key in ("name", "created", *TEXT_FIELDS)}
    for key in JSON_FIELDS:
        metadata[key] = json.dumps(fields[key], ensure_ascii=False, allow_nan=False, sort_keys=True)
    return metadata | {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "kind": fields["kind"],
        "convention": CONVENTIONS[fields["kind"]],
    }


def check_header(path: str | os.PathLike[str], stored: SafetensorsHeader) -> PromptHeader:
    """Checks format, version, kind and name in the metadata, and the tensor's shape."""
    metadata, entry = stored.metadata, stored.tensors[TENSOR]
    if metadata is None:
        refuse(
            Reason.NO_METADATA,
            "the header has no __metadata__; expected softlore's metadata in it; this is "
            "safetensors of another program: import it by that program's format",
        )
    if metadata.get("format") != FORMAT:
        hint = ": it may be a PEFT adapter or a model" if metadata.get("format") == "pt" else ""
        refuse(
            Reason.NOT_SOFTLORE,
            f"metadata 'format' is {metadata.get('format')!r:.40}; expected {FORMAT!r}; this is "
            f"safetensors of another program{hint}; import it by that program's format",
        )
    _check_version(metadata.get("format_version"))
    missing = [key for key in _REQUIRED if key not in metadata]
    if missing:
        refuse(
            Reason.METADATA_MISSING,
            f"metadata {', '.join(missing)} is missing; expected {', '.join(_REQUIRED)}; the file "
            "was edited or made by a faulty program: get it again",
        )
    with as_file_error(Reason.METADATA_VALUE):
        kind, name = clean_kind(metadata["kind"]), clean_name(metadata["name"])
    if metadata["convention"] != CONVENTIONS[kind]:
        refuse(
            Reason.METADATA_VALUE,
            f"metadata 'convention' is {metadata['convention']!r:.80}; expected "
            f"{CONVENTIONS[kind]!r} for the {kind} kind; convert the file where it was made",
        )
    with as_file_error(Reason.SHAPE):
        check_shape(kind, entry.shape)
    return PromptHeader(
        Path(path), name, kind, entry.dtype, entry.shape, stored.data_bytes, metadata
    )


def parse_object(text: str, key: str) -> dict[str, Any]:
    """A JSON object in a file's metadata. Raises PromptFileError."""
    value = parse_json(text, f"metadata {key!r}", MAX_DEPTH, Reason.METADATA_VALUE)
    if not isinstance(value, dict):
        refuse(
            Reason.METADATA_VALUE,
            f"metadata {key!r} holds {type(value).__name__} as JSON; expected an object; "
            "the file was edited or made by a faulty program: get it again",
        )
    return value


def _check_version(version: str | None) -> None:
    if version is None or not (version.isascii() and version.isdigit() and len(version) < 10):
        refuse(
            Reason.VERSION,
            f"metadata 'format_version' is {version!r:.40}; expected a whole number, as "
            f"{str(FORMAT_VERSION)!r}; the file was edited or made by a faulty program: get it "
            "again",
        )
    if int(version) > FORMAT_VERSION:
        refuse(
            Reason.NEWER_VERSION,
            f"it was made by a newer softlore (format version {version}); expected version "
            f"{FORMAT_VERSION} or older; update softlore: pip install -U softlore",
        )
    if int(version) < 1:
        refuse(
            Reason.VERSION,
            f"metadata 'format_version' is {version!r}; expected 1 to {FORMAT_VERSION}; get the "
            "file again",
        )
