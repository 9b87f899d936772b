"""The fields of a soft prompt, and their checks: name, kind, tensor, text, JSON.

Each `clean_…` function returns its value, where needed as a copy in the form that a file gives
back, or raises PromptError.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from softlore import __version__
from softlore.errors import PromptError
from softlore.lore.names import NAME_RULE, name_problem, normalize_name

Kind = Literal["embedding", "prefix"]
KINDS: tuple[str, ...] = get_args(Kind)

TEXT_FIELDS = (
    "uuid",
    "description",
    "author",
    "licence",
    "base_model",
    "tokenizer_fingerprint",
    "library_version",
    "data_hash",
)
JSON_FIELDS = ("fingerprint", "training", "metrics")
# What the native format stores besides the fields; `extra` may use none of these names.
FORMAT_KEYS = ("format", "format_version", "kind", "convention")
METADATA_KEYS = frozenset(("name", "created", *TEXT_FIELDS, *JSON_FIELDS, *FORMAT_KEYS))

MAX_TOKENS = 2047
MAX_TENSOR_BYTES = 2 * 1024**3
MAX_DEPTH = 16  # of nested lists and objects in JSON fields

# The largest size of each axis, in order, and its name. Generous: ten times today's models.
_AXES: dict[str, tuple[tuple[str, int], ...]] = {
    "embedding": (("n_tokens", MAX_TOKENS), ("width", 262_144)),
    "prefix": (
        ("layers", 1024),
        ("key and value", 2),
        ("kv_heads", 1024),
        ("n_tokens", MAX_TOKENS),
        ("head_dim", 8192),
    ),
}


def now() -> str:
    """The current time, ISO 8601 in UTC, to the second: `2026-11-23T19:10:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, eq=False, repr=False)
class PromptFields:
    """The fields of a `SoftPrompt`: a trained tensor, its model's fingerprint, its origin.

    Attributes:
        name: letters, digits, space and `-_.'`; text names the prompt `[[soft:NAME]]`.
        kind: "embedding" (rows among those of the text's tokens) or "prefix" (keys and values at
            the start of the cache).
        tensor: float32, on the CPU, contiguous, without gradient: embedding `[n_tokens, width]`;
            prefix `[layers, 2, kv_heads, n_tokens, head_dim]`, keys at 0 and values at 1. A copy
            of the argument; do not modify it.
        fingerprint: a numeric sketch of the frozen model, JSON (see `model.fingerprint`).
        created: ISO 8601 in UTC, or empty if unknown.
        base_model: the name of the frozen model.
        training, metrics: how it was trained and evaluated, JSON, finite numbers only.
        data_hash: of the lore it was made from.
        extra: metadata of the file that this version of softlore does not know, unchanged.

    Prompts are equal when all fields are. Raises PromptError for values that a file could not
    hold, and for NaN and infinity.
    """

    name: str
    kind: Kind
    tensor: Tensor
    fingerprint: dict[str, Any] = field(default_factory=dict)
    uuid: str = field(default_factory=lambda: str(uuid4()))
    description: str = ""
    author: str = ""
    licence: str = ""
    created: str = field(default_factory=now)
    base_model: str = ""
    tokenizer_fingerprint: str = ""
    library_version: str = __version__
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    data_hash: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("name", clean_name(self.name))
        put("kind", clean_kind(self.kind))
        put("tensor", clean_tensor(self.name, self.kind, self.tensor))
        for key in TEXT_FIELDS:
            clean_text(key, getattr(self, key))
        clean_created(self.created)
        for key in JSON_FIELDS:
            put(key, clean_json(key, getattr(self, key)))
        put("extra", clean_extra(self.extra, METADATA_KEYS))

    def __len__(self) -> int:
        return tokens_of(self.kind, self.tensor.shape)

    def __bool__(self) -> bool:
        return True

    @property
    def late(self) -> bool:
        """Whether it was trained to be seen by new text only, not by the text before.

        Stories place such a prefix before their newest text. Others are seen from the start of the
        context.
        """
        return self.kind == "prefix" and self.training.get("placement") == "late"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PromptFields):
            return NotImplemented
        if self is other:
            return True
        plain = (item.name for item in fields(self) if item.name != "tensor")
        same = all(getattr(self, name) == getattr(other, name) for name in plain)
        return same and torch.equal(self.tensor, other.tensor)

    def __hash__(self) -> int:
        return hash((self.name, self.kind, self.uuid, tuple(self.tensor.shape)))


def check_fields(names: Iterable[str]) -> None:
    """Raises PromptError for what is no field of a prompt."""
    known = [item.name for item in fields(PromptFields)]
    if unknown := [name for name in names if name not in known]:
        raise PromptError(
            f"a soft prompt has no field {unknown[0]!r:.60}; expected one of {', '.join(known)}; "
            "fix the name"
        )


def _describe_axes(kind: Kind) -> str:
    """The axes of a kind, for messages: `[n_tokens, width]`."""
    return (
        "[" + ", ".join("2" if axis == "key and value" else axis for axis, _ in _AXES[kind]) + "]"
    )


def clean_kind(kind: object) -> Kind:
    """A kind, or PromptError."""
    if kind not in KINDS:
        raise PromptError(f"prompt kind {kind!r:.80} is unknown; expected 'embedding' or 'prefix'")
    return kind  # type: ignore[return-value]


def check_shape(kind: Kind, shape: Sequence[int]) -> None:
    """Raises PromptError unless `shape` is one that `kind` can have, within the limits."""
    axes, sizes = _AXES[kind], list(shape)
    if len(sizes) != len(axes):
        raise PromptError(
            f"the tensor's shape {sizes} has {len(sizes)} axes; expected {len(axes)} for the "
            f"{kind} kind: {_describe_axes(kind)}"
        )
    for size, (axis, most) in zip(sizes, axes, strict=True):
        least = 2 if axis == "key and value" else 1
        if not least <= size <= most:
            raise PromptError(
                f"the tensor's shape {sizes} has {size} for {axis}; expected {least} to {most} in "
                f"{_describe_axes(kind)}"
            )
    n_bytes = 4 * math.prod(sizes)
    if n_bytes > MAX_TENSOR_BYTES:
        raise PromptError(
            f"the tensor's shape {sizes} takes {n_bytes:,} bytes in float32; expected at most "
            f"{MAX_TENSOR_BYTES:,}; use fewer tokens"
        )


def tokens_of(kind: Kind, shape: Sequence[int]) -> int:
    """The number of tokens of a tensor of this shape."""
    return int(shape[0] if kind == "embedding" else shape[3])


def clean_name(name: object) -> str:
    """A prompt's name in Unicode's composed form (NFC), or PromptError.

    The rule is that of entries, see `lore.names.name_problem`.
    """
    if not isinstance(name, str):
        raise PromptError(f"a prompt's name is a string; got {type(name).__name__} {name!r:.80}")
    name = normalize_name(name)
    if problem := name_problem(name):
        raise PromptError(
            f"prompt name {name!r:.160} {problem}; expected {NAME_RULE} (such as 'dog' or "
            '"Emma\'s house"); give it another name'
        )
    return name


def is_name(name: str) -> bool:
    """Whether `name`, once composed, is a valid prompt name."""
    return not name_problem(normalize_name(name))


def clean_text(field: str, value: object) -> str:
    """Text that UTF-8 can encode, or PromptError."""
    if not isinstance(value, str):
        raise PromptError(
            f"{field} is {type(value).__name__} {value!r:.80}; expected a string (an empty one if "
            "there is nothing to say)"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{field} holds half a character (a lone surrogate) at {error.start}; expected "
            "Unicode text; remove that character"
        ) from None
    return value


def clean_created(value: object) -> str:
    """A time in ISO 8601 and UTC, or empty; else PromptError."""
    text = clean_text("created", value)
    try:
        if not text or datetime.fromisoformat(text).utcoffset() == timedelta(0):
            return text
    except ValueError:
        pass
    raise PromptError(
        f"created is {text!r:.80}; expected ISO 8601 in UTC, such as '2026-11-23T19:10:00Z', or "
        "an empty string if it is not known"
    )


def clean_json(field: str, value: object) -> dict[str, Any]:
    """A deep copy of a JSON object, as a file would give it back, or PromptError.

    Numbers are finite, keys are strings, depth is at most 16. Tuples become lists.
    """
    if not isinstance(value, dict):
        raise PromptError(f"{field} is {type(value).__name__}; expected a dict of JSON values")
    _check_json(field, value, MAX_DEPTH)
    try:
        text = json.dumps(value, allow_nan=False)
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise PromptError(
            f"{field} cannot be stored as JSON: {error}; expected strings, finite numbers, true, "
            "false, None, and lists and dicts of these; convert the value, or leave it out"
        ) from None


def clean_extra(value: object, known: frozenset[str]) -> dict[str, str]:
    """A copy of the metadata that this version of softlore does not know, or PromptError."""
    if not isinstance(value, dict):
        raise PromptError(f"extra is {type(value).__name__}; expected a dict of strings")
    for key, text in value.items():
        clean_text("a key of extra", key)
        clean_text(f"extra[{key!r:.80}]", text)
        if key in known:
            raise PromptError(f"extra holds {key!r}, a key of the format itself; set that field")
    return copy.copy(value)


def _check_json(field: str, value: object, depth: int) -> None:
    """Rejects what json.dumps would silently change or fail on: keys, depth, surrogates."""
    if isinstance(value, str):
        clean_text(field, value)
    elif isinstance(value, dict | list | tuple):
        if depth == 0:
            raise PromptError(f"{field} is nested more than {MAX_DEPTH} deep; flatten it")
        if isinstance(value, dict):
            for key in value:
                clean_text(f"a key of {field}", key)
            value = list(value.values())
        for item in value:
            _check_json(field, item, depth - 1)


def clean_tensor(name: str, kind: Kind, tensor: object) -> Tensor:
    """A float32 copy of the tensor on the CPU, or PromptError: wrong type, shape or values."""
    if isinstance(tensor, Tensor):
        check_shape(kind, tensor.shape)
    return check_tensor(f"prompt {name!r}", tensor)


def check_tensor(what: str, tensor: object) -> Tensor:
    """A float32 copy on the CPU of the tensor of a file, or PromptError: wrong type or values."""
    if not isinstance(tensor, Tensor):
        raise PromptError(f"{what} was given {type(tensor).__name__}; expected a torch.Tensor")
    if not tensor.is_floating_point():
        raise PromptError(f"{what} was given a tensor of {tensor.dtype}; expected floating point")
    copied = tensor.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
    invalid = copied.numel() - int(
        np.isfinite(copied.numpy()).sum()
    )  # torch.isfinite makes more copies
    if invalid:
        raise PromptError(
            f"{what} holds {invalid} values of {copied.numel()} that are NaN or infinite in "
            "float32; expected finite numbers; train it again, with a lower learning rate if the "
            "training diverged"
        )
    return copied


def spaced_places(total: int, count: int, text: str) -> list[int]:
    """`count` indices evenly spread over `range(total)`, both ends included."""
    if total == 0:
        raise PromptError(f"the text {text!r:.80} has no tokens; expected at least one")
    if not 1 <= count <= total:
        raise PromptError(
            f"n_tokens is {count}, but the text has {total} tokens; expected 1 to {total}; give "
            "a longer text, or fewer n_tokens"
        )
    if count == 1:
        return [total // 2]
    return [(2 * i * (total - 1) + count - 1) // (2 * (count - 1)) for i in range(count)]
