"""Grammars: what a text may be at all, as a mask on the tokens of each step (llguidance)."""

from __future__ import annotations

import json
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from softlore.decode.gbnf import gbnf_to_lark, is_gbnf
from softlore.decode.grammar_check import GrammarCheck, make_matcher, make_tokenizer
from softlore.errors import ConfigError, UnsupportedModelError
from softlore.model import LanguageModel

MAX_CACHED = 64  # grammars of a model
# Of JSON between its parts: room for indents, but not for whitespace without end.
_WHITESPACE = r" |\n {0,16}"
_EXPECTED = {
    "grammar": "GBNF or llguidance's Lark",
    "json_schema": "a JSON schema of the keywords that llguidance supports",
    "regex": "a regular expression without look-around and references to groups",
    "choice": "strings",
}
_log = logging.getLogger(__name__)


class Grammar:
    """The grammar of one text: which tokens may come next.

    Attributes:
        complete: whether the text is whole and no token may follow.
        failed: why the text cannot be continued; "" while it can.

    Args:
        matcher: of llguidance, at the start of the text.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._allowed: Tensor | None = None  # next, once it was asked for
        self.failed = ""

    @property
    def complete(self) -> bool:
        return not self.failed and bool(self._matcher.is_stopped())

    def advance(self, token: int) -> None:
        """Goes on by a token that was sampled."""
        self._allowed = None
        if not self.failed and not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def allowed(self, size: int) -> Tensor | None:
        """Which of `size` ids may come next, `[size]`; None where none can, and `failed` is set."""
        if self._allowed is not None or self.failed:
            return self._allowed
        bits = self._matcher.compute_bitmask()
        self._check()
        found = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[:size]
        if not self.failed and not found.any():
            self.failed = "none of the model's tokens continues the text"
        if self.failed:
            _log.warning("a text ends as its grammar cannot go on: %.200s", self.failed)
            return None
        self._allowed = torch.from_numpy(np.pad(found, (0, size - len(found))).astype(bool))
        return self._allowed

    def _check(self) -> None:
        if self._matcher.is_error():
            self.failed = self._matcher.get_error() or "unknown"


class GrammarLogitsProcessor(LogitsProcessor):
    """Excludes the tokens that a grammar does not allow next; for one text."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[1, vocab]` with other tokens at −∞; as they are where the grammar failed."""
        allowed = self.grammar.allowed(scores.shape[1])
        if allowed is None:
            return scores
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)


class GrammarCompiler:
    """Compiles grammars for the tokens of a model; a model has one, `model.once(GrammarCompiler)`.

    Grammars are tried in another process first (`GrammarCheck`), as some take llguidance without
    end, or end the process. Compiled ones are cached.

    Raises:
        ConfigError: llguidance is not installed.
        UnsupportedModelError: a model whose tokens are words.
    """

    def __init__(self, model: LanguageModel) -> None:
        try:
            import llguidance  # noqa: F401
        except ImportError:
            raise ConfigError(
                "a grammar was given, and llguidance is not installed; expected it for texts that "
                "follow a grammar; pip install 'softlore[grammar]'"
            ) from None
        if model.family.word_tokens:
            raise UnsupportedModelError(
                f"the tokens of {model.name!r} are words with spaces around them; expected tokens "
                "that are bytes of text, which a grammar decides on; use another model"
            )
        tokens, eos = _tokens(model)
        self._tokenizer = make_tokenizer(tokens, eos, _encoder(model, tokens))
        self._check = GrammarCheck(tokens, eos)
        self._compiled: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._lock = threading.Lock()
        weakref.finalize(self, self._check.close)

    def compile(self, name: str, value: str) -> Grammar:
        """The grammar that a setting of `GRAMMARS` says, at its start.

        Raises:
            ConfigError: a grammar that is wrong or too complex.
        """
        key = (name, value)
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
                return Grammar(self._compiled[key].deep_copy())
        definition = _definition(name, value)
        if error := self._check.error(definition):
            raise _wrong(name, error)
        matcher = make_matcher(self._tokenizer, definition)
        if matcher.is_error():
            raise _wrong(name, matcher.get_error())
        with self._lock:
            self._compiled[key] = matcher
            while len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)
        return Grammar(matcher.deep_copy())


def compile_grammar(model: LanguageModel, name: str, value: Any) -> Grammar:
    """The grammar of one text; see `SamplingParams.constraint`.

    Raises as `GrammarCompiler.compile`.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    return model.once(GrammarCompiler).compile(name, text)


def _definition(name: str, value: str) -> str:
    """A grammar as llguidance takes it."""
    from llguidance import LLMatcher

    if name == "json_schema":
        value = "{}" if json.loads(value) is True else value
        try:
            return LLMatcher.grammar_from_json_schema(
                value, defaults={"whitespace_pattern": _WHITESPACE}
            )
        except ValueError as error:
            raise _wrong(name, str(error)) from None
    if name == "regex":
        return LLMatcher.grammar_from_regex(value)
    if name == "choice":
        texts = (json.dumps(text, ensure_ascii=False) for text in json.loads(value))
        return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
    return LLMatcher.grammar_from_lark(gbnf_to_lark(value) if is_gbnf(value) else value)


def _wrong(name: str, error: str) -> ConfigError:
    what = " ".join(error.split())
    return ConfigError(
        f"{name} cannot be used ({what:.300}); expected {_EXPECTED[name]}; fix or simplify it"
    )


def _encoder(model: LanguageModel, tokens: Sequence[bytes]) -> Callable[[str], list[int]]:
    """Ids of text that is forced, as the model's tokenizer has them; it holds no model."""
    found = weakref.ref(model)

    def encode(text: str) -> list[int]:
        model = found()
        ids = model.encode(text, inside=True) if model is not None else []
        return ids if b"".join(tokens[i] for i in ids) == text.encode() else []

    return encode


def _tokens(model: LanguageModel) -> tuple[list[bytes], list[int]]:
    """The bytes of each token, none for those that no grammar allows, and the ids of the end.

    A model without an end has one more id for it, which is never sampled.
    """
    added = getattr(model.tokenizer, "added_tokens_decoder", {})
    special = {i for i, token in added.items() if token.special}
    special |= {*model.tokenizer.all_special_ids, *model.eos_ids, *model.banned_ids}
    known = model.token_bytes(range(min(model.vocab_size, len(model.tokenizer))))
    tokens = [b"" if i in special else token for i, token in enumerate(known)]
    tokens += [b""] * (model.vocab_size + 1 - len(tokens))
    return tokens, sorted(model.eos_ids) or [model.vocab_size]
