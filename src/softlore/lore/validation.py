"""Validates lore with pydantic, and describes faults in one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from softlore.errors import LoreError
from softlore.lore.plain import plain
from softlore.settings import closest

# What the items of a list are called in a message: "entry 3", "response 2".
_ITEMS = {
    "entries": "entry",
    "blocks": "block",
    "held_out": "held-out block",
    "responses": "response",
    "keys": "key",
    "secondary_keys": "secondary key",
}
# What pydantic expected, by its error type.
_EXPECTED = {
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
    **dict.fromkeys(("model_type", "model_attributes_type"), "a mapping of fields to values"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    "int_parsing_size": "a smaller whole number",
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
}

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _Meta
else:

    class _Meta(type(BaseModel)):
        """Converts pydantic's error to a LoreError when a model is created by its class.

        Nested models are validated without a call of their class, so that the error is raised
        once and has the complete path to the field.
        """

        def __call__(cls, /, *args: Any, **fields: Any) -> Any:
            if args:
                example = f"{cls.__name__}({next(iter(cls.model_fields))}=...)"
                raise LoreError(f"{cls.__name__} takes its fields by name: write {example}")
            try:
                return super().__call__(**fields)
            except ValidationError as error:
                raise LoreError(validation_message(cls.__name__, error, fields)) from None


class LoreModel(BaseModel, metaclass=_Meta):
    """The base of lorebooks, entries and blocks. Raises LoreError for values that do not fit."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that softlore does not know. They are retained, and saved again."""
        if self.__pydantic_extra__ is None:
            self.__pydantic_extra__ = {}
        return self.__pydantic_extra__

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        """Removes known fields that are null."""
        if not isinstance(value, dict):
            return value
        known = cls.model_fields
        return {k: inner for k, inner in value.items() if inner is not None or k not in known}

    @model_validator(mode="after")
    def _extra_is_plain(self) -> Self:
        if self.__pydantic_extra__:
            self.__pydantic_extra__ = plain(self.__pydantic_extra__)
        return self

    def data(self) -> dict[str, Any]:
        """Returns the model as plain mappings, lists and values, without defaults."""
        return self.model_dump(exclude_defaults=True)

    def hash(self) -> str:
        """Returns a hash of the content: 64 hex digits, the same on every machine.

        It depends on the order of entries, blocks and responses, but not on that of fields or on
        whether a default is written out.
        """
        return hashlib.sha256(json.dumps(self.data(), sort_keys=True).encode()).hexdigest()


def validation_message(
    model: str, error: ValidationError, data: Any, fields: Sequence[str] = ("call", "responses")
) -> str:
    """Returns one line about the first fault in `error`: its place, its value, and the fix.

    `model` is the name of the class that `data` was validated as; `fields` are the known fields of
    a model that forbids others.
    """
    errors = error.errors(include_url=False)
    # A misspelt field explains a missing one, so it comes first.
    first = min(errors, key=lambda fault: fault["type"] != "extra_forbidden")
    if first["loc"][-1:] == ("[key]",):  # of a mapping: the reason quotes it
        *before, field, _, _ = first["loc"]
        first["loc"] = (*before, f"a name in {field}")
    place = _place(model, first["loc"], data)
    line = f"{place}: " if place else ""
    line += _reason(model, first, fields)
    if more := len(errors) - 1:
        line += f" (and {more} more {'fault' if more == 1 else 'faults'})"
    return one_line(line)


def describe(value: Any) -> str:
    """Returns a short description of a value found in a file."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value!r:.40}"
    if isinstance(value, str):
        return f"the text {shorten(value)!r}"
    if isinstance(value, dict):
        return f"fields ({', '.join(shorten(str(key), 20) for key in list(value)[:4])})"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"


def shorten(text: str, limit: int = 60) -> str:
    """Returns `text`, cut to `limit` characters with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(text: str) -> str:
    """Returns `text` with line breaks and control characters escaped, safe for a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(word: str, words: Sequence[str]) -> str:
    """Returns `; did you mean ...?` for a misspelt word; empty if no word is near."""
    question = closest(word, words)
    return f"; {question}" if question else ""


def _place(model: str, loc: Sequence[int | str], data: Any) -> str:
    """The path to a fault in words, such as `entry 'Emma', block 2`.

    The last field is left out: the reason names it.
    """
    parts = [f"entry {shorten(_name(data))!r}"] if model == "Entry" and _name(data) else []
    value, field = data, ""
    for step, inner in zip(loc, [*loc, 0][1:], strict=True):
        if isinstance(step, str):
            value, field = _get(value, step), step
            parts += [f"`{step}`"] if isinstance(inner, str) else []
        else:
            is_list = isinstance(value, list | tuple) and step < len(value)
            value = value[step] if is_list else None
            kind = _ITEMS.get(field, f"`{field}` item")
            title = shorten(_name(value)) if kind == "entry" else ""
            parts.append(f"{kind} {title!r}" if title else f"{kind} {step + 1}")
    return ", ".join(parts)


def _get(data: Any, field: str) -> Any:
    return data.get(field) if isinstance(data, dict) else getattr(data, field, None)


def _name(data: Any) -> str:
    name = _get(data, "name")
    return name if isinstance(name, str) else ""


def _reason(model: str, error: Any, fields: Sequence[str]) -> str:
    loc, kind, context, value = error["loc"], error["type"], error.get("ctx", {}), error["input"]
    subject = "the lorebook" if model == "Lorebook" and not loc else "it"
    field = f"`{loc[-1]}`" if loc and isinstance(loc[-1], str) else subject
    if kind == "value_error":
        return f"{field} {context['error']}"  # worded by softlore's own validators
    if kind == "missing":
        return f"{field} is missing; add it"
    if kind == "extra_forbidden":
        what = "an experiment" if model == "Experiment" else "a block"
        *more, last = (f"`{name}`" for name in fields)
        guess = nearest(str(loc[-1]), fields)
        return f"{field} is not a field of {what}; it has {', '.join(more)} and {last}{guess}"
    expected, hint = _EXPECTED.get(kind), ""
    if kind == "string_type" and isinstance(value, int | float):
        hint = "; put it in quotes"
    elif kind in ("less_than_equal", "greater_than_equal"):
        expected = f"at most {context['le']}" if "le" in context else f"at least {context['ge']}"
    elif kind == "literal_error":
        expected = context["expected"]
        hint = nearest(str(value), expected.replace("'", "").split(", "))
    if expected is None:
        return f"{field} is {describe(value)}: {error['msg'].lower()}; change it"
    return f"{field} must be {expected}, but is {describe(value)}{hint or '; change it'}"
