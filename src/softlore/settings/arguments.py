"""Checks the arguments of public functions: those of another type are refused with words."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from softlore.errors import ConfigError, SoftloreError

MAX_STRENGTH = 100  # of a control code or control vector
MAX_PATH = 4096  # bytes of a path
MAX_PART = 255  # bytes of one of its names
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Kind:
    """What an argument may be.

    Attributes:
        words: what a message says was expected.
        fits: whether a value is one.
    """

    words: str
    fits: Callable[[Any], bool]

    @property
    def optional(self) -> Kind:
        """The kind that None is of, too."""
        return Kind(f"{self.words}, or None", lambda value: value is None or self.fits(value))


def _is_path(value: Any) -> bool:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or "\0" in path:
        return False
    try:
        encoded = path.encode("utf-8", "surrogateescape")  # as the system's own names may need
    except UnicodeEncodeError:
        return False
    parts = encoded.replace(os.sep.encode(), b"/").split(b"/")
    return len(encoded) <= MAX_PATH and max(map(len, parts)) <= MAX_PART


TEXT = Kind("text", lambda value: isinstance(value, str))
FLAG = Kind("True or False", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))
NUMBER = Kind(
    "a number of 0 or more",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value >= 0,
)
STRENGTH = Kind(
    "a number from -100 to 100",
    lambda value: (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and abs(value) <= MAX_STRENGTH
    ),
)
LIST = Kind(
    "a list",
    lambda value: (
        isinstance(value, Iterable)
        and not isinstance(value, str | bytes | Mapping)
        and hasattr(type(value), "__len__")
        and getattr(value, "ndim", 1) > 0
    ),
)
TEXTS = Kind(
    "a text, or texts by name",
    lambda value: (
        isinstance(value, str)
        or (
            isinstance(value, Mapping)
            and all(isinstance(s, str) for s in (*value, *value.values()))
        )
    ),
)
NAMED = Kind(
    "a mapping of names",
    lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value),
)
CALLABLE = Kind("a function", callable)
BYTES = Kind("bytes", lambda value: isinstance(value, bytes))
PATHLIKE = Kind("a path", lambda value: isinstance(value, str | os.PathLike))
PATH = Kind(f"a path, whose names are of at most {MAX_PART} bytes each", _is_path)
DEVICE = Kind(
    "a device of torch, such as 'cuda:0'",
    lambda value: isinstance(value, str) or type(value).__qualname__ == "device",
)
# By a method, as these classes take long to import.
ENCODER = Kind(
    "a model", lambda value: hasattr(type(value), "encode") and not isinstance(value, str)
)
MODEL = Kind("a model, such as a FrozenModel", lambda value: hasattr(type(value), "check_prompt"))
FROZEN = Kind("a FrozenModel", lambda value: hasattr(type(value), "embed_ids"))
PROMPT = Kind("a SoftPrompt", lambda value: hasattr(type(value), "made_for"))


NAMED_PROMPTS = Kind(
    "soft prompts by name",
    lambda value: NAMED.fits(value) and all(map(PROMPT.fits, value.values())),
)
ENTRIES = Kind(
    "entries of a lorebook",
    lambda value: LIST.fits(value) and all(hasattr(one, "held_out") for one in value),
)
RANKS = Kind("processes of a training", lambda value: hasattr(value, "joint_stop"))


def _record(name: str, **kinds: Kind) -> Kind:
    """An object of a class, which takes long to import, whose fields are of these kinds."""
    fields = ", ".join(f"{field}: {kind.words}" for field, kind in kinds.items())
    return Kind(
        f"{name} ({fields})",
        lambda value: (
            type(value).__name__ == name
            and all(kind.fits(getattr(value, field)) for field, kind in kinds.items())
        ),
    )


def _are_prompts(value: Any) -> bool:
    if isinstance(value, Mapping):  # not the names of a library, which reads its folder for them
        return type(value) is not dict or all(isinstance(name, str) for name in value)
    if isinstance(value, Iterator) or PROMPT.fits(value):
        return True
    try:
        return not isinstance(value, str | bytes) and all(map(PROMPT.fits, value))
    except TypeError:
        return False


TRAINED = {
    "model": FROZEN,
    "blocks": LIST.optional,
    "entries": LIST.optional,
    "corpus": TEXTS.optional,
    "conditionings": NAMED.optional,
    "company": _record("Company", prompts=NAMED_PROMPTS, entries=ENTRIES).optional,
    "checkpointing": _record(
        "Checkpointing", path=PATHLIKE.optional, seconds=NUMBER, overwrite=FLAG
    ).optional,
    "execution": _record(
        "Execution",
        started=NUMBER,
        memory=COUNT.optional,
        checkpointed=FLAG.optional,
        ranks=RANKS.optional,
    ).optional,
    "on_step": CALLABLE.optional,
    "on_phase": CALLABLE.optional,
}  # the arguments of a training
PROMPTS = Kind("soft prompts, or a mapping of their names", _are_prompts)


def expecting(
    error: type[SoftloreError] = ConfigError, /, **kinds: Kind
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that checks arguments by their names: `@expecting(path=PATH)`.

    Args:
        error: raised when the function is called with a value of another kind.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        # Where each stands among positional arguments: binding them would cost hot paths more.
        parameters = list(inspect.signature(function).parameters)
        places = [(name, parameters.index(name), kind) for name, kind in kinds.items()]
        called = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, place, kind in places:
                if name in kwargs:
                    given: Any = kwargs[name]
                elif place < len(args):
                    given = args[place]
                else:
                    continue
                if not kind.fits(given):
                    raise error(
                        f"{name} of {called}() is {given!r:.60}; expected "
                        f"{kind.words}; pass that in its place"
                    )
            return function(*args, **kwargs)

        return checked

    return decorate
