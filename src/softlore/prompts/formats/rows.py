"""Makes a SoftPrompt of rows of other programs' files: checks them and widens to float32."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from softlore.errors import PromptError
from softlore.lore.names import MAX_NAME, as_name
from softlore.prompts.fields import METADATA_KEYS, check_shape, is_name
from softlore.prompts.reasons import Reason, as_file_error, refuse
from softlore.prompts.soft_prompt import SoftPrompt

# 2047 rows × 8192 columns in float32: as much as the largest model of these formats' time takes.
# Reading such a file keeps the whole process below 512 MB.
MAX_BYTES = 64 * 1024 * 1024
MAX_METADATA = 256 * 1024  # characters; a native header holds four times as much
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_LAST_TIME = 253_402_300_799  # the end of the year 9999

Rows = NDArray[np.float32]


def check_rows(shape: Sequence[int]) -> tuple[int, int]:
    """The sizes of a tensor `[n_tokens, width]`, or of one with a batch axis of 1 before them.

    Raises PromptFileError for any other shape, and for one that takes more than MAX_BYTES.
    """
    rows = list(shape[1:]) if len(shape) == 3 and shape[0] == 1 else list(shape)
    with as_file_error(Reason.SHAPE):
        check_shape("embedding", rows)
    if 4 * rows[0] * rows[1] > MAX_BYTES:
        refuse(
            Reason.SHAPE,
            f"the tensor's shape {rows} takes {4 * rows[0] * rows[1]:,} bytes in float32; expected "
            f"at most {MAX_BYTES:,} from a file of another program; use fewer tokens",
        )
    return rows[0], rows[1]


def to_float32(data: bytes | memoryview, dtype: str) -> Rows:
    """Little-endian numbers of `dtype` (a key of ITEM_BYTES) as float32, widened exactly: `[n]`."""
    if dtype == "F32":
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def check_finite(rows: Rows) -> Rows:
    """Returns the rows, or raises PromptFileError if any number is NaN or infinite."""
    invalid = rows.size - int(np.count_nonzero(np.isfinite(rows)))
    if invalid:
        refuse(
            Reason.NOT_FINITE,
            f"{invalid} of the tensor's {rows.size} values are NaN or infinite; expected finite "
            "numbers; the prompt's training diverged, or the file was damaged: get another",
        )
    return rows


def check_embedding_kind(prompt: SoftPrompt, program: str, instead: str) -> None:
    """Raises PromptError for a prefix, which a format of rows cannot hold.

    Args:
        program: that reads the format, for the message.
        instead: what else to do with a prefix.
    """
    if prompt.kind != "embedding":
        raise PromptError(
            f"prompt {prompt.name!r} is of the {prompt.kind} kind; {program} takes rows in place "
            "of word embeddings only; expected the embedding kind; train it again with "
            f"kind='embedding' (--kind embedding), or {instead}"
        )


def import_prompt(
    rows: Rows,
    format_name: str,
    names: tuple[object, ...],
    metadata: Mapping[str, Any] | None = None,
    base_model: str = "",
) -> SoftPrompt:
    """An embedding prompt without a fingerprint, from another program's rows and metadata.

    Args:
        rows: `[n_tokens, width]`, finite.
        format_name: stored in `training`, and the prefix of keys in `extra`.
        names: candidates for the prompt's name; the first that can be made a valid one is used.
        metadata: `description`, `author`, `uuid` and `epoch` (Unix time) become fields of the
            prompt; the rest is stored in `extra` as JSON, as `format_name.key`.

    Raises PromptFileError.
    """
    rest = dict(metadata or {})
    text = {
        key: rest.pop(key)
        for key in ("description", "author", "uuid")
        if isinstance(rest.get(key), str) and rest[key]
    }
    created = time_of(rest.get("epoch"))
    if created:
        del rest["epoch"]
    extra = {
        f"{format_name}.{key}": json.dumps(value, ensure_ascii=False)
        for key, value in rest.items()
        if not (key == "name" and value == names[0] and is_name(str(value)))
    }
    characters = sum(map(len, [*text.values(), *extra, *extra.values(), base_model]))
    if characters > MAX_METADATA:
        refuse(
            Reason.METADATA_TOO_LARGE,
            f"the metadata has {characters:,} characters; expected at most {MAX_METADATA:,}; "
            "shorten its description, or leave out what is not needed",
        )
    with as_file_error(Reason.METADATA_VALUE):
        return SoftPrompt(
            name=import_name(*names),
            kind="embedding",
            tensor=torch.from_numpy(rows if rows.flags.writeable else rows.copy()),
            created=created,
            base_model=base_model,
            library_version="",
            training={"method": "import", "format": format_name},
            extra={key: value for key, value in extra.items() if key not in METADATA_KEYS},
            **text,
        )


def import_name(*candidates: object) -> str:
    """The first candidate that is a valid name once invalid characters are removed."""
    texts = (text[: 4 * MAX_NAME] for text in candidates if isinstance(text, str))
    return next((name for name in (as_name(text, "") for text in texts) if name), "imported")


def time_of(epoch: object) -> str:
    """Unix time as ISO 8601 in UTC, to the second; empty unless it is a time."""
    if isinstance(epoch, bool) or not isinstance(epoch, int | float):
        return ""
    if not 0 <= epoch <= _LAST_TIME or not math.isfinite(epoch):
        return ""
    return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
