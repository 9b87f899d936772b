"""What clients send, taken leniently: numbers in quotes, null, and one string for a list."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator
from starlette.requests import Request

from softlore.errors import InputError

MOST_STRINGS = 256  # of a list; each costs a search at every token
LONGEST = 1024  # characters of one of them
BIGGEST = 2**53  # whole numbers beyond it are not told apart in JSON


def number(value: object) -> float | None:
    """A finite number, also in quotes; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value):
        return float(value)
    return None


def whole(value: object) -> int | None:
    """A whole number, the nearest to zero; None for what is none."""
    if type(value) is int:
        return max(-(2**63), min(2**63 - 1, value))
    found = number(value)
    return None if found is None or abs(found) > BIGGEST else int(found)


def flag(value: object) -> bool | None:
    """Yes or no; None where nothing was said."""
    if isinstance(value, str):
        return value.strip().casefold() in ("true", "yes", "on", "1")
    return None if value is None else bool(value)


def text(value: object) -> str:
    """A text; a number as it is written, nothing for what is no text."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def strings(value: object) -> list[str]:
    """Strings, the empty ones left out; one by itself is a list of one."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        return []
    kept = [one for one in found if isinstance(one, str) and 0 < len(one) <= LONGEST]
    return kept[:MOST_STRINGS]


Number = Annotated[float | None, BeforeValidator(number)]
Whole = Annotated[int | None, BeforeValidator(whole)]
Flag = Annotated[bool | None, BeforeValidator(flag)]
Text = Annotated[str, BeforeValidator(text)]
Strings = Annotated[list[str], BeforeValidator(strings)]


def body_of(model: type[BaseModel], also: Any = ()) -> dict[str, Any]:
    """The description of a JSON body, which is read by hand, since clients are careless."""
    schema = model.model_json_schema()
    for names, _ in dict(also).values():
        for name in names:
            schema["properties"].setdefault(name, {"type": "number"})
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object of a request's body, whatever type it is said to be of; {} where empty.

    Raises:
        InputError: it is no JSON object.
    """
    raw = await request.body()
    if not raw.strip():
        return {}
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the body is no JSON ({error!s:.80}); expected an object, such as "
            '{"prompt": "Once"}; mend it'
        ) from None
    if not isinstance(found, dict):
        raise InputError(
            f"the body is {type(found).__name__}; expected an object, such as "
            '{"prompt": "Once"}; mend it'
        )
    return _sound(found) if b"\\ud" in raw.lower() else found


def _sound(value: Any) -> Any:
    """Without halves of characters, which no tokenizer takes and no reply can hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_sound(one) for one in value]
    if isinstance(value, dict):
        return {_sound(key): _sound(one) for key, one in value.items()}
    return value
