"""Plain words for what is wrong with a piece of lore."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

# How a list's items are called in a message: "entry 3", "response 2".
_ITEMS = {
    "entries": "entry",
    "blocks": "block",
    "held_out": "held-out block",
    "responses": "response",
    "keys": "key",
    "secondary_keys": "secondary key",
}


def complaint(
    model: str, error: ValidationError, data: Any, fields: Sequence[str] = ("call", "responses")
) -> str:
    """Returns one line for pydantic's `error` about `data`, which was to become a `model`.

    `fields` are those of what refuses fields that it does not know: of lore, a block only.
    It names the entry, the block and the field, says what was found and expected, and how to
    mend it. Of several errors the first is told in full, the others are counted.
    """
    errors = error.errors(include_url=False)
    # A misspelt field explains a missing one, so it is told first.
    first = min(errors, key=lambda fault: fault["type"] != "extra_forbidden")
    place = where(model, first["loc"], data)
    reason = _reason(model, first, fields)
    line = f"{place}: {reason}" if place else reason
    if len(errors) > 1:
        more = len(errors) - 1
        line += f" (and {more} more {'fault' if more == 1 else 'faults'})"
    return one_line(line)


def where(model: str, loc: Sequence[int | str], data: Any) -> str:
    """Returns the way to the fault in words, such as `entry 'Emma', block 2`.

    The last field is left out: the reason names it.
    """
    parts = [_title("entry", data)] if model == "Entry" and _name(data) else []
    here = data
    field = ""
    for step in loc:
        here = _step(here, step)
        if isinstance(step, int):
            kind = _ITEMS.get(field, f"`{field}` item")
            titled = kind == "entry" and _name(here)
            parts.append(_title(kind, here) if titled else f"{kind} {step + 1}")
        elif field := str(step):
            continue
    return ", ".join(parts)


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
    """Returns `text` with line breaks and control characters written out, fit for a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(word: str, words: Sequence[str]) -> str:
    """Returns the question `did you mean ...?` for a misspelt word, or nothing."""
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _reason(model: str, error: Any, fields: Sequence[str]) -> str:
    loc, kind, context = error["loc"], error["type"], error.get("ctx", {})
    if loc:
        field = f"`{loc[-1]}`" if isinstance(loc[-1], str) else "it"
    else:
        field = "the lorebook" if model == "Lorebook" else "it"
    if kind == "value_error":
        return f"{field} {context['error']}"  # softlore's own validators speak plainly
    if kind == "missing":
        return f"{field} is missing; add it"
    found = describe(error["input"])
    if kind == "string_type" and isinstance(error["input"], int | float):
        return f"{field} must be text, but is {found}; put it in quotes"
    if kind in ("less_than_equal", "greater_than_equal"):
        bound = f"at most {context['le']}" if "le" in context else f"at least {context['ge']}"
        return f"{field} must be {bound}, but is {found}"
    if kind == "literal_error":
        guess = nearest(str(error["input"]), context["expected"].replace("'", "").split(", "))
        return f"{field} must be {context['expected']}, but is {found}{guess}"
    if kind == "extra_forbidden":
        what = "an experiment" if model == "Experiment" else "a block"
        *more, last = (f"`{name}`" for name in fields)
        guess = nearest(str(loc[-1]), fields)
        return f"{field} is not a field of {what}; it has {', '.join(more)} and {last}{guess}"
    expected = _EXPECTED.get(kind)
    if expected is None:
        return f"{field} cannot be used: {error['msg'].lower()}; found {found}"
    return f"{field} must be {expected}, but is {found}"


_EXPECTED = {
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of fields to values",
    "model_attributes_type": "a mapping of fields to values",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}


def _name(data: Any) -> str:
    name = data.get("name") if isinstance(data, dict) else getattr(data, "name", None)
    return name if isinstance(name, str) else ""


def _title(kind: str, data: Any) -> str:
    return f"{kind} {shorten(_name(data))!r}"


def _step(here: Any, step: int | str) -> Any:
    if isinstance(here, dict):
        return here.get(step)
    if isinstance(here, list | tuple) and isinstance(step, int):
        return here[step] if step < len(here) else None
    return getattr(here, str(step), None)
