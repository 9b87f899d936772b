"""Ways into nested JSON, such as `extensions.depth`: what stands there, and putting it there."""

from __future__ import annotations

from typing import Any


def get(data: Any, way: str) -> Any:
    """Returns what stands at the end of `way`, or None. The empty way is `data` itself."""
    for step in way.split(".") if way else []:
        data = data.get(step) if isinstance(data, dict) else None
    return data


def put(data: dict[str, Any], way: str, value: Any) -> None:
    """Puts `value` at the end of `way`; mappings on the way are made where there are none."""
    *steps, last = way.split(".")
    for step in steps:
        inner = data.get(step)
        if not isinstance(inner, dict):
            inner = data[step] = {}
        data = inner
    data[last] = value


def drop(data: Any, way: str) -> None:
    """Takes away what stands at the end of `way`, if anything does."""
    before, _, last = way.rpartition(".")
    inner = get(data, before)
    if isinstance(inner, dict):
        inner.pop(last, None)


def has(data: Any, way: str) -> bool:
    """Whether something stands at the end of `way`, be it nothing (null)."""
    before, _, last = way.rpartition(".")
    inner = get(data, before)
    return isinstance(inner, dict) and last in inner


def first(data: Any, ways: tuple[str, ...]) -> str:
    """Returns the first of `ways` at whose end something stands; else the first of all."""
    return next((way for way in ways if has(data, way)), ways[0])


def replaced(data: Any, way: str, value: Any) -> Any:
    """Returns `data` with `value` at the end of `way`; only what lies on the way is copied.

    Where the way is not there, nothing is changed.
    """
    if not way:
        return value
    step, _, rest = way.partition(".")
    if not isinstance(data, dict) or step not in data:
        return data
    return {**data, step: replaced(data[step], rest, value)}
