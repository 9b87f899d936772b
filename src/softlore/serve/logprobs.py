"""Log-probabilities of tokens, in the two shapes that OpenAI's API has for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from softlore.decode import Token
from softlore.model import LanguageModel

LOWEST = -9999.0  # OpenAI's stand-in for minus infinity, which JSON lacks


def completion_logprobs(
    model: LanguageModel, tokens: Sequence[Token], length: int, offset: int = 0
) -> dict[str, Any]:
    """The shape of /v1/completions, for the tokens of the first `length` characters.

    `offset`: characters before the text.
    """
    shown = list(_shown(model, tokens, length))
    return {
        "tokens": [text for _, text, _ in shown],
        "token_logprobs": [_finite(token.logprob) for token, _, _ in shown],
        "top_logprobs": [dict(_likeliest(model, token)) for token, _, _ in shown],
        "text_offset": [offset + start for _, _, start in shown],
    }


def chat_logprobs(model: LanguageModel, tokens: Sequence[Token], length: int) -> dict[str, Any]:
    """The shape of /v1/chat/completions."""
    return {
        "content": [
            {
                **_entry(text, _finite(token.logprob)),
                "top_logprobs": [_entry(*likely) for likely in _likeliest(model, token)],
            }
            for token, text, _ in _shown(model, tokens, length)
        ]
    }


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # The bytes of a part of a character are not known.
    encoded = None if "\ufffd" in text else list(text.encode("utf-8", "replace"))
    return {"token": text, "logprob": logprob, "bytes": encoded}


def _shown(
    model: LanguageModel, tokens: Sequence[Token], length: int
) -> Iterator[tuple[Token, str, int]]:
    """Tokens with their text and where it starts, without stop strings and the end of text."""
    start = 0
    for token in tokens:
        if token.id is None or token.id in model.eos_ids:
            continue
        if start >= length:
            break
        text = model.decode([token.id], inside=True)
        yield token, text, start
        start += len(text)


def _likeliest(model: LanguageModel, token: Token) -> list[tuple[str, float]]:
    return [(model.decode([i], inside=True), _finite(logprob)) for i, logprob in token.top.items()]


def _finite(logprob: float | None) -> float:
    return LOWEST if logprob is None or not logprob > LOWEST else logprob
