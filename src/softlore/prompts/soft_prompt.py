"""SoftPrompt, and Context: text and soft prompts in the order that a model reads them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from softlore.errors import ContextError, PromptError
from softlore.prompts import native
from softlore.prompts.control_vector import ControlVector, checked_strengths
from softlore.prompts.fields import Kind, PromptFields, check_fields, clean_kind, spaced_places
from softlore.prompts.opening import PromptFile, open_prompt
from softlore.prompts.reasons import Reason, as_file_error
from softlore.prompts.safetensors_file import write_tensor
from softlore.prompts.tags import drop_cut_tag, escape_tags, split_tags, tag_of
from softlore.prompts.token_count import TokenCount
from softlore.settings import arguments as args

if TYPE_CHECKING:
    from softlore.model import FrozenModel, LanguageModel


@dataclass(frozen=True, eq=False, repr=False)
class SoftPrompt(PromptFields):
    """A trained soft prompt: a tensor with its name, its model's fingerprint and its origin.

    Its fields are described in `PromptFields`. Immutable; `replace` makes a changed copy.
    """

    @classmethod
    @args.expecting(text=args.TEXT, model=args.FROZEN, n_tokens=args.COUNT.optional)
    def from_text(
        cls,
        text: str,
        model: FrozenModel,
        name: str = "text",
        kind: Kind = "embedding",
        n_tokens: int | None = None,
        **metadata: Any,
    ) -> SoftPrompt:
        """Makes a prompt with the same effect on `model` as the text itself.

        Each token of the text gives one token of the prompt; special tokens are not added. With
        fewer `n_tokens` the prompt is only a start for training: the embedding kind
        takes rows at evenly spaced places (from 2 on the first and the last among them), the
        prefix kind keys and values of the whole text, see `FrozenModel.keys_values`.

        Args:
            kind: "embedding" by default, as that is the text itself: the rows of its tokens.
                (The default of training is "prefix".)
            n_tokens: default: one for each token of the text.
            metadata: other fields.

        Raises PromptError for text without tokens and for more `n_tokens` than it has.
        """
        clean_kind(kind)
        check_fields(metadata)
        ids = model.encode(text)
        n_tokens = len(ids) if n_tokens is None else n_tokens
        places = spaced_places(len(ids), n_tokens, text)
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
        made |= {"name": name, "kind": kind, "tensor": tensor}
        return cls(**(made | metadata))

    @classmethod
    @args.expecting(path=args.PATHLIKE)
    def load(cls, path: str | os.PathLike[str]) -> SoftPrompt:
        """Reads the native format; no code in it is run. Raises PromptFileError or StorageError."""
        with open_prompt(path) as file:
            return cls.read(file)

    @classmethod
    def read(cls, file: PromptFile) -> SoftPrompt:
        """Reads the native format from an open file. Raises PromptFileError."""
        values = native.read_fields(file)
        with as_file_error(Reason.METADATA_VALUE):
            return cls(**values)

    @args.expecting(PromptError, path=args.PATH)
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the native format atomically; equal prompts give equal bytes.

        Raises PromptError for metadata too long for a header, StorageError where the disk refuses.
        """
        write_tensor(path, self.tensor, self.metadata)

    @property
    def metadata(self) -> dict[str, str]:
        """What a file stores besides the tensor: string → string."""
        return native.metadata_of(vars(self))

    @property
    def embeddings(self) -> Tensor:
        """Rows `[n_tokens, width]`, as the model's forward takes them; embedding kind only."""
        self._expect("embedding", "key_values")
        return self.tensor

    @property
    def key_values(self) -> Tensor:
        """`[layers, 2, kv_heads, n_tokens, head_dim]`, as in the cache; prefix kind only."""
        self._expect("prefix", "embeddings")
        return self.tensor

    @cached_property
    def digest(self) -> str:
        """SHA-256 of kind, shape and numbers, in hex."""
        shape = f"{self.kind} {tuple(self.tensor.shape)} ".encode()
        return hashlib.sha256(shape + self.tensor.numpy().astype("<f4").tobytes()).hexdigest()

    def cast(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """The tensor on a device and in a dtype, cached. Raises PromptError where there is none."""
        try:
            key = torch.device(device), dtype
            if key not in self._casts:
                torch.empty(0, device=device, dtype=dtype)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise PromptError(
                f"a prompt cannot be cast to {device!r:.60} and {dtype!r:.60}; expected a device "
                "of this machine, and a dtype of torch; pass those of the model"
            ) from error
        if key not in self._casts:
            self._casts[key] = self.tensor.to(device=device, dtype=dtype)
        return self._casts[key]

    @cached_property
    def _casts(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    @property
    def tag(self) -> str:
        """The tag that stands for this prompt in plain text: `[[soft:NAME]]`."""
        return tag_of(self.name)

    @args.expecting(model=args.MODEL)
    def made_for(self, model: LanguageModel) -> SoftPrompt:
        """This prompt with the fingerprint of `model`, which other programs' files lack."""
        return self.replace(
            fingerprint=model.fingerprint(self.kind),
            base_model=model.name,
            tokenizer_fingerprint=model.tokenizer_fingerprint,
        )

    def replace(self, **changes: Any) -> SoftPrompt:
        """A copy with the given fields replaced. Raises PromptError for an invalid value."""
        check_fields(changes)
        return replace(self, **changes)

    def __str__(self) -> str:
        return self.tag

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.tensor.shape))
        made_for = f", for {self.base_model!r}" if self.base_model else ""
        return f"SoftPrompt({self.name!r}, {self.kind}, {len(self)} tokens, {shape}{made_for})"

    def __add__(self, other: object) -> Context:
        return Context(self) + other if Context.takes(other) else NotImplemented

    def __radd__(self, other: object) -> Context:
        return other + Context(self) if Context.takes(other) else NotImplemented

    def _expect(self, kind: str, instead: str) -> None:
        if self.kind != kind:
            raise PromptError(
                f"prompt {self.name!r} is of the {self.kind} kind; expected the {kind} kind; use "
                f"its .{instead}, or train one with kind={kind!r}"
            )


Piece = str | SoftPrompt
PromptSource = Mapping[str, SoftPrompt] | Iterable[SoftPrompt]


@dataclass(frozen=True, init=False, repr=False, slots=True)
class Context:
    """An immutable list of pieces, strings and soft prompts; and the vectors that steer it.

    `+` joins contexts, prompts and strings, from either side. Adjacent strings become one piece
    and empty ones are dropped, so contexts with the same content are equal. Tags in strings stay
    text; `Context.parse` resolves them. Raises ContextError for two different prompts of one name,
    which the text could not distinguish.

    Attributes:
        vectors: control vectors with a strength each, `[(dark, 0.8)]`. They steer all tokens that
            the model reads and writes with the context, and take no place in it.
    """

    pieces: tuple[Piece, ...]
    vectors: tuple[tuple[ControlVector, float], ...]

    def __init__(
        self,
        pieces: Piece | Context | Iterable[Piece] = (),
        vectors: Iterable[tuple[ControlVector, float]] = (),
    ) -> None:
        given = pieces.vectors if isinstance(pieces, Context) else ()
        own = pieces.pieces if isinstance(pieces, Context) else _merge(pieces)
        object.__setattr__(self, "pieces", own)
        steering = checked_strengths(vectors)
        steering = checked_strengths([*given, *steering]) if given else steering
        object.__setattr__(self, "vectors", tuple(steering))

    @classmethod
    @args.expecting(text=args.TEXT, prompts=args.PROMPTS, repair=args.FLAG)
    def parse(cls, text: str, prompts: PromptSource, *, repair: bool = False) -> Context:
        """Turns each tag of `text` into the prompt it names.

        Args:
            prompts: by name (a mapping), or prompts that carry their names.
            repair: drop the rest of a tag that was cut at the start of the text (`dog]] ran`), as
                by programs that shorten a text to fit; only where a known prompt's tag ends so.

        Raises UnknownPromptError for a name not among `prompts`, and ContextError where two
        prompts share a name. What only resembles a tag stays text.
        `Context.parse(c.text, c.prompts) == c` for every context.
        """
        named = _by_name(prompts)
        if repair:
            text = drop_cut_tag(text, named)
        return cls(split_tags(text, named))

    @staticmethod
    def takes(value: object) -> TypeGuard[Piece | Context]:
        """Whether `value` can be joined to a context with `+`."""
        return isinstance(value, str | SoftPrompt | Context)

    @property
    def prompts(self) -> tuple[SoftPrompt, ...]:
        """The soft prompts, each once, in the order of their first occurrence."""
        return tuple(dict.fromkeys(p for p in self.pieces if isinstance(p, SoftPrompt)))

    @property
    def prefixes(self) -> tuple[SoftPrompt, ...]:
        """The prefix prompts, each once: they go to the start of the cache."""
        return tuple(prompt for prompt in self.prompts if prompt.kind == "prefix")

    @property
    def body(self) -> Context:
        """This context without its prefix prompts."""
        return Context(
            (piece for piece in self.pieces if isinstance(piece, str) or piece.kind != "prefix"),
            self.vectors,
        )

    @property
    def text(self) -> str:
        """Plain text with prompts as tags; `parse` gives the same context back, without vectors."""
        return "".join(
            escape_tags(piece) if isinstance(piece, str) else piece.tag for piece in self.pieces
        )

    @args.expecting(model=args.ENCODER)
    def token_count(self, model: LanguageModel) -> TokenCount:
        """The number of tokens of this context, its text encoded by `model` piece by piece."""
        body = self.body.pieces
        return TokenCount(
            text=sum(len(model.encode(piece)) for piece in body if isinstance(piece, str)),
            embedding=sum(len(piece) for piece in body if isinstance(piece, SoftPrompt)),
            prefix=sum(len(prompt) for prompt in self.prefixes),
        )

    def __add__(self, other: object) -> Context:
        if not Context.takes(other):
            return NotImplemented
        return self._joined(self, Context(other))

    def __radd__(self, other: object) -> Context:
        if not Context.takes(other):
            return NotImplemented
        return self._joined(Context(other), self)

    @staticmethod
    def _joined(first: Context, second: Context) -> Context:
        vectors = (*first.vectors, *second.vectors)
        return Context((*first.pieces, *second.pieces), vectors)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        shown = (p if isinstance(p, str) else f"<{p.name}>" for p in self.pieces)
        steered = (f"{vector.name}={strength:g}" for vector, strength in self.vectors)
        return f"Context({', '.join([*map(repr, shown), *steered])})"


def _merge(pieces: Any) -> tuple[Piece, ...]:
    if isinstance(pieces, str | SoftPrompt | Tensor) or not isinstance(pieces, Iterable):
        pieces = (pieces,)
    merged: list[Piece] = []
    named: dict[str, SoftPrompt] = {}
    for piece in pieces:
        if isinstance(piece, str):
            if merged and isinstance(merged[-1], str):
                merged[-1] += piece
            elif piece:
                merged.append(piece)
        elif isinstance(piece, SoftPrompt):
            merged.append(named.setdefault(piece.name, piece))
            if named[piece.name] != piece:
                raise _ambiguous(piece.name)
        else:
            raise ContextError(
                f"a context was given {type(piece).__name__} {piece!r:.80}; expected strings and "
                "soft prompts; load a prompt with load_prompt(path), or name it in text and use "
                "Context.parse"
            )
    return tuple(merged)


def _ambiguous(name: str) -> ContextError:
    return ContextError(
        f"two different prompts are named {name!r}; expected different names; rename one of them "
        "with prompt.replace(name=...)"
    )


def _by_name(prompts: PromptSource) -> Mapping[str, SoftPrompt]:
    if isinstance(prompts, Mapping):
        return prompts
    named: dict[str, SoftPrompt] = {}
    for prompt in [prompts] if isinstance(prompts, SoftPrompt) else prompts:
        if named.setdefault(prompt.name, prompt) != prompt:
            raise _ambiguous(prompt.name)
    return named
