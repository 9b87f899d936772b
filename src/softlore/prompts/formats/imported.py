"""From rows and the metadata of another program's file to a soft prompt."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from softlore.errors import PromptFileError
from softlore.prompts.formats.values import Rows
from softlore.prompts.names import MAX_NAME, is_name
from softlore.prompts.opening import blaming
from softlore.prompts.reasons import Reason
from softlore.prompts.soft_prompt import METADATA_KEYS, SoftPrompt

MAX_METADATA = 256 * 1024  # characters; a native header holds four times as much
_LAST_TIME = 253_402_300_799  # the year 9999 ends


def import_prompt(
    rows: Rows,
    format_name: str,
    names: tuple[object, ...],
    metadata: Mapping[str, Any] | None = None,
    base_model: str = "",
) -> SoftPrompt:
    """An embedding prompt of an unknown model: `rows` `[n_tokens, width]`, float32, finite.

    `description`, `author`, `uuid` and `epoch` (Unix time) of the metadata become the prompt's
    own fields; what else is in it is kept in `extra` as JSON, under `format_name.key`. The first
    of `names` that can be made a prompt's name becomes it. Raises PromptFileError.
    """
    found = dict(metadata or {})
    text = {
        key: found.pop(key)
        for key in ("description", "author", "uuid")
        if isinstance(found.get(key), str) and found[key]
    }
    created = time_of(found.get("epoch"))
    if created:
        del found["epoch"]
    extra = {
        f"{format_name}.{key}": json.dumps(value, ensure_ascii=False)
        for key, value in found.items()
        if not (key == "name" and value == names[0] and is_name(str(value)))
    }
    kept = [*text.values(), *extra, *extra.values(), base_model]
    if sum(map(len, kept)) > MAX_METADATA:
        raise PromptFileError(
            f"the metadata has {sum(map(len, kept)):,} characters; expected at most "
            f"{MAX_METADATA:,}; shorten its description, or leave out what is not needed",
            reason=Reason.METADATA_TOO_LARGE,
        )
    with blaming(Reason.METADATA_VALUE):
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
    """The first candidate that is a prompt's name once what may not stand in one is left out."""
    for candidate in candidates:
        if isinstance(candidate, str):
            # Cut first: composing takes the square of the length for marks in a row.
            composed = unicodedata.normalize("NFC", candidate[: 4 * MAX_NAME])
            letters = (c if c.isalnum() or is_name("a" + c + "a") else " " for c in composed)
            name = " ".join("".join(letters).split())[:MAX_NAME].strip()
            if is_name(name):
                return name
    return "imported"


def time_of(epoch: object) -> str:
    """Unix time as ISO 8601 in UTC, to the second; empty unless it is a time."""
    if isinstance(epoch, bool) or not isinstance(epoch, int | float):
        return ""
    if not 0 <= epoch <= _LAST_TIME or not math.isfinite(epoch):
        return ""
    return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
