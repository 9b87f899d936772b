"""Lists and grammars among the settings of samplers: their checks, and what clients write."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from softlore.errors import ConfigError
from softlore.settings.lenient import integer, number, strings
from softlore.settings.table import Textual

MAX_BIASES = 1024  # biases that a client may send
BIAS = 100.0  # largest logit bias
MAX_GRAMMAR = 2**16  # characters of a grammar, a schema or a regular expression
STRINGS = "strings of at least one character"


def check_strings(value: Any) -> tuple[str, ...]:
    """One string or several, none of them empty. Raises ValueError."""
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, Iterable) or isinstance(listed, Mapping | bytes):
        raise ValueError
    listed = _items(listed)
    if not all(isinstance(item, str) and item for item in listed):
        raise ValueError
    return listed


def _items(value: Iterable[Any]) -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError as error:  # a tensor of no dimension, say
        raise ValueError from error


def _ids(value: Any) -> tuple[int, ...]:
    ids = _items(value) if isinstance(value, Iterable) else (-1,)
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError
    return ids


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs in the order of ids; an id may be text, as JSON's keys are."""
    try:
        pairs = {int(i) if isinstance(i, str) else i: bias for i, bias in dict(value).items()}
    except TypeError as error:
        raise ValueError from error
    _ids(pairs)
    for bias in pairs.values():
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
            raise ValueError
    return tuple(sorted((i, float(bias)) for i, bias in pairs.items()))


def _one_string(text: str) -> tuple[str, ...]:
    """A string in which \\n stands for a newline and \\t for a tab."""
    return (text.replace("\\n", "\n").replace("\\t", "\t"),)


def _parse_biases(text: str) -> tuple[tuple[int, float], ...]:
    pairs = (pair.split(":") for pair in split(text))
    return tuple((int(i), float(bias)) for i, bias in pairs)


def _client_breakers(value: Any) -> list[str]:
    """A list, or one written as JSON, or strings in quotes with commas between."""
    if isinstance(value, str):
        for text in (value, f"[{value}]"):
            try:
                return strings(json.loads(text))
            except (ValueError, RecursionError):
                continue
    return strings(value)


def _client_ids(value: Any) -> list[int]:
    listed = split(value) if isinstance(value, str) else value  # SillyTavern sends "5,17"
    ids = [integer(item) for item in listed[:MAX_BIASES]] if isinstance(listed, list) else []
    return [i for i in ids if i is not None and i >= 0]


def _client_biases(value: Any) -> list[tuple[int, float]]:
    """Biases within bounds, from an object or a list of pairs; false is a ban (llama.cpp)."""
    if isinstance(value, list):
        value = {str(p[0]): p[1] for p in value if isinstance(p, list) and len(p) == 2}
    pairs = list(value.items())[:MAX_BIASES] if isinstance(value, dict) else []
    read = [(integer(key), -BIAS if bias is False else number(bias)) for key, bias in pairs]
    return [
        (i, min(BIAS, max(-BIAS, b))) for i, b in read if i is not None and i >= 0 and b is not None
    ]


def split(text: str) -> list[str]:
    """The parts of a list with commas between."""
    return [part.strip() for part in text.split(",")]


def _bounded(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    if len(value) > MAX_GRAMMAR:
        raise ConfigError(
            f"a grammar is {len(value):,} characters long; expected at most {MAX_GRAMMAR:,}; "
            "shorten it"
        )
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError
    return value


def _schema(value: Any) -> str:
    """A JSON schema as text, whether it is given as text or as an object."""
    if isinstance(value, str):
        _bounded(value)
    try:
        schema = json.loads(value) if isinstance(value, str) and value else value
        text = value if isinstance(value, str) else json.dumps(schema)
    except (TypeError, RecursionError) as error:
        raise ValueError from error
    if value != "" and not isinstance(schema, dict) and schema is not True:
        raise ValueError
    return _bounded(text)


def _choice(value: Any) -> tuple[str, ...]:
    return tuple(map(_bounded, check_strings(value)))


def _client_grammar(value: Any) -> str | None:
    """A grammar that cannot be used is an error: without it the text would be of no use."""
    if value is not None and not isinstance(value, str):
        raise ConfigError(
            f"a grammar is {value!r:.60}; expected text; send the grammar as a string"
        )
    return value


def _client_schema(value: Any) -> Any:
    return None if value in ({}, "") else value  # SillyTavern's "none"


def _client_choice(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


# fmt: off
Grammar = Annotated[str, BeforeValidator(_bounded),
                    Textual(str, 'root ::= "yes" | "no"', _client_grammar, adds_up=False)]
Schema = Annotated[str, BeforeValidator(_schema),
                   Textual(str, '{"type": "object"}', _client_schema, adds_up=False)]
Choice = Annotated[tuple[str, ...], BeforeValidator(_choice),
                   Textual(lambda text: (text,), "yes", _client_choice, adds_up=False)]
Strings = Annotated[tuple[str, ...], BeforeValidator(check_strings),
                    Textual(_one_string, "somehow", strings)]
Breakers = Annotated[tuple[str, ...], BeforeValidator(check_strings),
                     Textual(_one_string, "\\n", _client_breakers)]
Ids = Annotated[tuple[int, ...], BeforeValidator(_ids),
                Textual(lambda text: tuple(map(int, split(text))), "5,17", _client_ids)]
Biases = Annotated[tuple[tuple[int, float], ...], BeforeValidator(_biases),
                   Textual(_parse_biases, "42:-5", _client_biases)]
# fmt: on
