"""How likely tokens were, in the two shapes that OpenAI's API has for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from softlore.decode import Token
from softlore.model import LanguageModel

UNLIKELY = -9999.0  # what OpenAI says for what can never come; JSON has no infinity


def as_completion(
    model: LanguageModel, tokens: Sequence[Token], length: int, start: int = 0
) -> dict[str, Any]:
    """The shape of /v1/completions, of the tokens that make the first `length` characters.

    Args:
        start: characters that stand before the text.
    """
    told = list(_told(model, tokens, length))
    return {
        "tokens": [text for _, text, _ in told],
        "token_logprobs": [_sane(token.logprob) for token, _, _ in told],
        "top_logprobs": [
            {text: logprob for _, text, logprob in _likeliest(model, token)} for token, _, _ in told
        ],
        "text_offset": [start + at for _, _, at in told],
    }


def as_chat(model: LanguageModel, tokens: Sequence[Token], length: int) -> dict[str, Any]:
    """The shape of /v1/chat/completions."""
    return {
        "content": [
            {
                "token": text,
                "logprob": _sane(token.logprob),
                "bytes": _bytes(text),
                "top_logprobs": [
                    {"token": other, "logprob": logprob, "bytes": _bytes(other)}
                    for _, other, logprob in _likeliest(model, token)
                ],
            }
            for token, text, _ in _told(model, tokens, length)
        ]
    }


def _told(
    model: LanguageModel, tokens: Sequence[Token], length: int
) -> Iterator[tuple[Token, str, int]]:
    """Tokens with their texts and places; those of a stop string or of the end are none."""
    at = 0
    for token in tokens:
        if token.id is None or token.id in model.eos_ids:
            continue
        if at >= length:
            break
        text = model.decode([token.id], inside=True)
        yield token, text, at
        at += len(text)


def _likeliest(model: LanguageModel, token: Token) -> list[tuple[int, str, float]]:
    return [(i, model.decode([i], inside=True), _sane(logprob)) for i, logprob in token.top.items()]


def _bytes(text: str) -> list[int] | None:
    """A token's bytes; None for a part of a character."""
    return None if "\ufffd" in text else list(text.encode("utf-8", "replace"))


def _sane(logprob: float | None) -> float:
    return UNLIKELY if logprob is None or not logprob > UNLIKELY else logprob
