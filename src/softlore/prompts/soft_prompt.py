"""A soft prompt: what is trained, in float32, and what is needed to use it again."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from softlore import __version__
from softlore.errors import PromptError
from softlore.prompts.metadata import clean_created, clean_extra, clean_json, clean_text, now
from softlore.prompts.names import clean_name
from softlore.prompts.shapes import Kind, check_kind, check_shape, tokens_of

if TYPE_CHECKING:
    from softlore.prompts.pieces import Context

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
# What the native format writes besides the fields; `extra` may use none of these names.
FORMAT_KEYS = ("format", "format_version", "kind", "convention")
METADATA_KEYS = frozenset(("name", "created", *TEXT_FIELDS, *JSON_FIELDS, *FORMAT_KEYS))


class PromptModel(Protocol):
    """What a frozen model must offer for prompts to be made from text with it."""

    @property
    def name(self) -> str:
        """The name it is loaded by."""
        ...

    @property
    def tokenizer_fingerprint(self) -> str:
        """A hash of the vocabulary."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, no special tokens."""
        ...

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Ids `[n]` (int64) → rows `[n, width]`, as the forward takes them."""
        ...

    def keys_values(self, ids: list[int], n_tokens: int | None = None) -> Tensor:
        """The cache after these ids: `[layers, 2, kv_heads, n, head_dim]`, float32.

        `n_tokens`: of a text read whole, only so many tokens.
        """
        ...

    def fingerprint(self, kind: Kind) -> dict[str, Any]:
        """A numeric sketch of the model, as JSON."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class SoftPrompt:
    """A trained tensor with its name, its model's fingerprint and where it came from.

    Attributes:
        name: letters, digits, space and `-_.'`; text names the prompt `[[soft:NAME]]`.
        kind: "embedding" (rows that stand in the text) or "prefix" (keys and values at the head
            of the cache).
        tensor: float32, on the CPU, contiguous, without gradient: embedding `[n_tokens, width]`;
            prefix `[layers, 2, kv_heads, n_tokens, head_dim]`, keys at 0 and values at 1. A copy
            of what was given; do not write into it.
        fingerprint: a numeric sketch of the frozen model, JSON, made and compared by the model.
        created: ISO 8601 in UTC, or empty if unknown.
        base_model: the name of the frozen model.
        training, metrics: how it was trained and how well it does, JSON, finite numbers only.
        data_hash: of the lore it was made from.
        extra: metadata of the file that this version of softlore does not know, kept as it was.

    Prompts are equal when all of this is. Raises PromptError on anything that a file could not
    hold, and on NaN and infinity.
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
        put("kind", check_kind(self.kind))
        put("tensor", _clean_tensor(self.name, self.kind, self.tensor))
        for key in TEXT_FIELDS:
            clean_text(key, getattr(self, key))
        clean_created(self.created)
        for key in JSON_FIELDS:
            put(key, clean_json(key, getattr(self, key)))
        put("extra", clean_extra(self.extra, METADATA_KEYS))

    @classmethod
    def from_text(
        cls,
        text: str,
        model: PromptModel,
        name: str = "text",
        kind: Kind = "embedding",
        n_tokens: int | None = None,
        **metadata: Any,
    ) -> SoftPrompt:
        """Makes a prompt that does to `model` what the text itself would do.

        Every token of the text gives one token of the prompt. Fewer `n_tokens` are a start for
        training, no longer the text: rows of the embedding kind are kept at evenly spaced places
        (the first and the last among them, from 2 on), keys and values from a text that was read
        whole (`FrozenModel.keys_values`). Special tokens are not added.

        The embedding kind is the default, because it is the text: rows where its tokens would
        stand. (Training's default is the prefix kind.) `metadata` sets other fields.

        Raises PromptError for text without tokens and for more `n_tokens` than it has.
        """
        check_kind(kind)
        ids = model.encode(text)
        n_tokens = len(ids) if n_tokens is None else n_tokens
        places = _spread(len(ids), n_tokens, text)
        with torch.no_grad():
            if kind == "embedding":
                tensor = model.embed_ids(torch.tensor(ids, dtype=torch.int64))[places]
            else:
                tensor = model.keys_values(ids, n_tokens)
        made: dict[str, Any] = {
            "fingerprint": model.fingerprint(kind),
            "base_model": model.name,
            "tokenizer_fingerprint": model.tokenizer_fingerprint,
            "training": {"method": "text", "text_tokens": len(ids)},
            "data_hash": "sha256:" + hashlib.sha256(text.encode()).hexdigest(),
        }
        return cls(name=name, kind=kind, tensor=tensor, **(made | metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SoftPrompt:
        """Reads the native format. Raises PromptFileError, or StorageError."""
        from softlore.prompts.native import read_prompt

        return read_prompt(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the native format, whole or not at all. Raises StorageError."""
        from softlore.prompts.native import write_prompt

        write_prompt(self, path)

    @property
    def embeddings(self) -> Tensor:
        """Rows `[n_tokens, width]`, as the model's forward takes them; embedding kind only."""
        self._expect("embedding", "key_values")
        return self.tensor

    @property
    def key_values(self) -> Tensor:
        """`[layers, 2, kv_heads, n_tokens, head_dim]`, as they lie in the cache; prefix only."""
        self._expect("prefix", "embeddings")
        return self.tensor

    @cached_property
    def digest(self) -> str:
        """SHA-256 of kind, shape and numbers, in hex."""
        shape = f"{self.kind} {tuple(self.tensor.shape)} ".encode()
        return hashlib.sha256(shape + self.tensor.numpy().astype("<f4").tobytes()).hexdigest()

    def cast(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """The tensor as a model takes it: cast once for each device and dtype, then kept."""
        key = torch.device(device), dtype
        if key not in self._casts:
            self._casts[key] = self.tensor.to(device=device, dtype=dtype)
        return self._casts[key]

    @cached_property
    def _casts(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    @property
    def tag(self) -> str:
        """How plain text names this prompt."""
        return f"[[soft:{self.name}]]"

    def made_for(self, model: PromptModel) -> SoftPrompt:
        """This prompt, saying that it was made for `model`: other programs' files do not say."""
        return self.replace(
            fingerprint=model.fingerprint(self.kind),
            base_model=model.name,
            tokenizer_fingerprint=model.tokenizer_fingerprint,
        )

    def replace(self, **changes: Any) -> SoftPrompt:
        """A prompt like this one but for `changes`."""
        return replace(self, **changes)

    def __len__(self) -> int:
        return tokens_of(self.kind, self.tensor.shape)

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return self.tag

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.tensor.shape))
        made_for = f", for {self.base_model!r}" if self.base_model else ""
        return f"SoftPrompt({self.name!r}, {self.kind}, {len(self)} tokens, {shape}{made_for})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SoftPrompt):
            return NotImplemented
        if self is other:
            return True
        plain = (item.name for item in fields(self) if item.name != "tensor")
        same = all(getattr(self, name) == getattr(other, name) for name in plain)
        return same and torch.equal(self.tensor, other.tensor)

    def __hash__(self) -> int:
        return hash((self.name, self.kind, self.uuid, tuple(self.tensor.shape)))

    def __add__(self, other: object) -> Context:
        from softlore.prompts.pieces import Context

        return Context(self) + other if Context.takes(other) else NotImplemented

    def __radd__(self, other: object) -> Context:
        from softlore.prompts.pieces import Context

        return other + Context(self) if Context.takes(other) else NotImplemented

    def _expect(self, kind: str, instead: str) -> None:
        if self.kind != kind:
            raise PromptError(
                f"prompt {self.name!r} is of the {self.kind} kind; expected the {kind} kind; use "
                f"its .{instead}, or train one with kind={kind!r}"
            )


def _clean_tensor(name: str, kind: Kind, tensor: object) -> Tensor:
    """A float32 copy of the tensor on the CPU, or PromptError: wrong type, shape or values."""
    if not isinstance(tensor, Tensor):
        raise PromptError(
            f"prompt {name!r} was given {type(tensor).__name__}; expected a torch.Tensor"
        )
    if not tensor.is_floating_point():
        raise PromptError(
            f"prompt {name!r} was given a tensor of {tensor.dtype}; expected floating point"
        )
    check_shape(kind, tensor.shape)
    copied = tensor.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
    unfit = copied.numel() - int(np.isfinite(copied.numpy()).sum())  # torch's makes more copies
    if unfit:
        raise PromptError(
            f"prompt {name!r} holds {unfit} values of {copied.numel()} that are NaN or infinite "
            "in float32; expected finite numbers; train it again, with a lower learning rate if "
            "the training diverged"
        )
    return copied


def _spread(total: int, count: int, text: str) -> list[int]:
    """`count` places evenly spread over `range(total)`, both ends included."""
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
