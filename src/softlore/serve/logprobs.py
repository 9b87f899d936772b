"""Log-probabilities of tokens, in the two shapes that OpenAI's API has for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from softlore.decode import Token
from softlore.model import LanguageModel

LOWEST = -9999.0  # OpenAI's stand-in for minus infinity, which JSON lacks


def completion_logprobs(
    model: LanguageModel, tokens: Sequence[Token], length: int | None, offset: int = 0
) -> dict[str, list[Any]]:
    """The shape of /v1/completions, for the tokens of the first `length` characters.

    Args:
        length: None: of all tokens, those without text included.
        offset: characters before the text.
    """
    shown = list(_shown(model, tokens, length))
    return _listed(model, shown, [offset + start for _, _, start in shown])


def prompt_logprobs(
    model: LanguageModel, tokens: Sequence[Token], length: int
) -> dict[str, list[Any]]:
    """The shape of /v1/completions, for the tokens of a context that ends with the prompt.

    What the server put before the prompt, such as BOS and lore, has the offset 0.

    Args:
        length: characters of the prompt.
    """
    shown = list(_shown(model, tokens, None))
    before = sum(len(text) for _, text, _ in shown) - length
    return _listed(model, shown, [max(0, start - before) for _, _, start in shown])


def _listed(
    model: LanguageModel, shown: Sequence[tuple[Token, str, int]], offsets: list[int]
) -> dict[str, list[Any]]:
    """The token itself is among its alternatives in any case, as in OpenAI's API."""
    logprobs = [None if t.logprob is None else _finite(t.logprob) for t, _, _ in shown]
    likeliest = [
        None if logprob is None else _by_text([*_likeliest(model, token), (text, logprob)])
        for (token, text, _), logprob in zip(shown, logprobs, strict=True)
    ]
    return {
        "tokens": [text for _, text, _ in shown],
        "token_logprobs": logprobs,
        "top_logprobs": likeliest,
        "text_offset": offsets,
    }


def _by_text(likeliest: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Several ids may have the same text, of which the first counts."""
    found: dict[str, float] = {}
    for text, logprob in likeliest:
        found.setdefault(text, logprob)
    return found


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
    model: LanguageModel, tokens: Sequence[Token], length: int | None
) -> Iterator[tuple[Token, str, int]]:
    """Tokens with their text and where it starts.

    With a `length` without stop strings and the end of text.
    """
    start = 0
    for token in tokens:
        if token.id is None or (length is not None and token.id in model.eos_ids):
            continue
        if length is not None and start >= length:
            break
        text = model.decode([token.id], inside=True)
        yield token, text, start
        start += len(text)


def _likeliest(model: LanguageModel, token: Token) -> list[tuple[str, float]]:
    return [(model.decode([i], inside=True), _finite(logprob)) for i, logprob in token.top.items()]


def _finite(logprob: float | None) -> float:
    return LOWEST if logprob is None or not logprob > LOWEST else logprob
