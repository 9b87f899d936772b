"""A context: text and soft prompts, in the order the model is to read them.

In text a prompt is named by a tag, `[[soft:NAME]]`. A tag that is meant as mere text is written
with a backslash, `[[soft:\\NAME]]`; more backslashes stand for one fewer.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from softlore.errors import ContextError, UnknownPromptError
from softlore.prompts.names import is_name
from softlore.prompts.soft_prompt import SoftPrompt

Piece = str | SoftPrompt
PromptSource = Mapping[str, SoftPrompt] | Iterable[SoftPrompt]

LONGEST_TAG = 400  # characters, more than any has
TAG = re.compile(r"\[\[soft:(?P<slashes>\\*)(?P<name>[^\[\]\\\r\n]{1,300})\]\]")


class Encoder(Protocol):
    """What turns text into tokens: a frozen model."""

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, no special tokens."""
        ...


@dataclass(frozen=True)
class TokenCount:
    """How many tokens a context takes.

    Attributes:
        text: tokens of the text, without any that the model adds (such as a BOS).
        embedding: rows of the embedding prompts; a prompt that stands twice counts twice.
        prefix: tokens of the prefix prompts, each counted once.
    """

    text: int
    embedding: int
    prefix: int

    @property
    def context(self) -> int:
        """Tokens that `logits` has a row for: text and embedding prompts."""
        return self.text + self.embedding

    @property
    def total(self) -> int:
        """All that lies in the cache."""
        return self.text + self.embedding + self.prefix


@dataclass(frozen=True, init=False, repr=False, slots=True)
class Context:
    """An immutable list of pieces: strings and soft prompts.

    `+` joins contexts, prompts and strings, from either side. Strings that meet are one piece and
    empty ones vanish, so contexts that read the same are equal. A tag in a string given here
    stays text; `Context.parse` is what resolves tags. Raises ContextError for two different
    prompts of one name, since the text could not tell them apart.
    """

    pieces: tuple[Piece, ...]

    def __init__(self, pieces: Piece | Context | Iterable[Piece] = ()) -> None:
        if isinstance(pieces, Context):
            pieces = pieces.pieces
        elif isinstance(pieces, str | SoftPrompt):
            pieces = (pieces,)
        object.__setattr__(self, "pieces", _merge(pieces))

    @classmethod
    def parse(cls, text: str, prompts: PromptSource, *, repair: bool = False) -> Context:
        """Turns each tag of `text` into the prompt it names.

        Args:
            prompts: by name (a mapping), or prompts that carry their names.
            repair: drop what is left of a tag that was cut in two by the start of the text
                (`dog]] ran`), as programs do that shorten a text to fit; only where a known
                prompt's tag ends so.

        Raises UnknownPromptError for a name not among `prompts`, and ContextError where two
        prompts share a name. What only resembles a tag stays text.
        `Context.parse(c.text, c.prompts) == c` for every context.
        """
        named = _by_name(prompts)
        if repair:
            text = _drop_half_tag(text, named)
        pieces: list[Piece] = []
        end = 0
        for match, slashes, name in _tags(text):
            pieces.append(text[end : match.start()])
            end = match.end()
            if slashes:
                pieces.append(_respelled(match, slashes - 1))
            else:
                pieces.append(_find(name, named))
        return cls([*pieces, text[end:]])

    @staticmethod
    def takes(value: object) -> TypeGuard[Piece | Context]:
        """Whether `value` can be joined to a context with `+`."""
        return isinstance(value, str | SoftPrompt | Context)

    @property
    def prompts(self) -> tuple[SoftPrompt, ...]:
        """The soft prompts, each once, in the order they are first named."""
        return tuple(dict.fromkeys(p for p in self.pieces if isinstance(p, SoftPrompt)))

    @property
    def prefixes(self) -> tuple[SoftPrompt, ...]:
        """The prefix prompts, each once: they go to the head of the cache."""
        return tuple(prompt for prompt in self.prompts if prompt.kind == "prefix")

    @property
    def body(self) -> Context:
        """What stands in the text: this context without its prefix prompts."""
        return Context(
            piece for piece in self.pieces if isinstance(piece, str) or piece.kind != "prefix"
        )

    @property
    def text(self) -> str:
        """Plain text with prompts as tags; `parse` gives the same context back."""
        return "".join(
            _escape(piece) if isinstance(piece, str) else piece.tag for piece in self.pieces
        )

    def token_count(self, model: Encoder) -> TokenCount:
        """How many tokens this context takes, text encoded by `model` as `body` has it."""
        body = self.body.pieces
        return TokenCount(
            text=sum(len(model.encode(piece)) for piece in body if isinstance(piece, str)),
            embedding=sum(len(piece) for piece in body if isinstance(piece, SoftPrompt)),
            prefix=sum(len(prompt) for prompt in self.prefixes),
        )

    def __add__(self, other: object) -> Context:
        if not Context.takes(other):
            return NotImplemented
        return Context((*self.pieces, *Context(other).pieces))

    def __radd__(self, other: object) -> Context:
        if not Context.takes(other):
            return NotImplemented
        return Context((*Context(other).pieces, *self.pieces))

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        shown = (p if isinstance(p, str) else f"<{p.name}>" for p in self.pieces)
        return f"Context({', '.join(map(repr, shown))})"


def _merge(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
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
                raise _two_of_a_name(piece.name)
        else:
            raise ContextError(
                f"a context was given {type(piece).__name__} {piece!r:.80}; expected strings and "
                "soft prompts; load a prompt with load_prompt(path), or name it in text and use "
                "Context.parse"
            )
    return tuple(merged)


def _two_of_a_name(name: str) -> ContextError:
    return ContextError(
        f"two different prompts are named {name!r}; expected one of a name; give one of them "
        "another with prompt.replace(name=...)"
    )


def _by_name(prompts: PromptSource) -> Mapping[str, SoftPrompt]:
    if isinstance(prompts, Mapping):
        return prompts
    named: dict[str, SoftPrompt] = {}
    for prompt in [prompts] if isinstance(prompts, SoftPrompt) else prompts:
        if named.setdefault(prompt.name, prompt) != prompt:
            raise _two_of_a_name(prompt.name)
    return named


def past_tag(text: str, start: int) -> int:
    """A place to begin a text at: `start`, or the end of the tag that it lies in."""
    start = max(0, start)
    for tag in TAG.finditer(text, max(0, start - LONGEST_TAG)):
        if tag.start() >= start:
            break
        if start < tag.end():
            return tag.end()
    return start


def _tags(text: str) -> Iterator[tuple[re.Match[str], int, str]]:
    """Each tag of a text, with its number of backslashes and its name; no mere lookalikes."""
    for match in TAG.finditer(text):
        name = match["name"].strip(" ")
        if is_name(name):
            yield match, len(match["slashes"]), unicodedata.normalize("NFC", name)


def _respelled(match: re.Match[str], slashes: int) -> str:
    return "[[soft:" + "\\" * slashes + match["name"] + "]]"


def _escape(text: str) -> str:
    parts: list[str] = []
    end = 0
    for match, slashes, _ in _tags(text):
        parts += text[end : match.start()], _respelled(match, slashes + 1)
        end = match.end()
    return "".join((*parts, text[end:]))


def _find(name: str, named: Mapping[str, SoftPrompt]) -> SoftPrompt:
    if name in named:
        return named[name]
    known = {key.casefold(): key for key in named}
    close = [known[key] for key in difflib.get_close_matches(name.casefold(), known, n=3)]
    if close:
        hint = "did you mean " + " or ".join(f"[[soft:{key}]]" for key in close) + "?"
    elif known:
        some = sorted(named)[:5]
        hint = f"known: {', '.join(map(repr, some))}{' …' if len(known) > 5 else ''}"
    else:
        hint = "no prompts were given; train one, or name the folder that holds them"
    raise UnknownPromptError(
        f"the text names the prompt [[soft:{name}]], which is not at hand; {hint} "
        f"(to write the tag as mere text: [[soft:\\{name}]])"
    )


def _drop_half_tag(text: str, named: Iterable[str]) -> str:
    head, bracket, rest = text.partition("]")
    if not bracket:
        return text
    half = head + ("]]" if rest.startswith("]") else "]")
    whole = (f"[[soft:{name}]]" for name in named)
    if any(tag != half and tag.endswith(half) for tag in whole):
        return text[len(half) :]
    return text
