"""Declares each setting once: type, bounds, default, unit, help, clients' names, slider.

A class of settings derives from `Settings` and declares a line a setting::

    class ServeSettings(Settings):
        port: int = setting(5001, "Port to listen on; 0 takes a free one.", ge=0, le=65535)

`table(ServeSettings)` reads the declarations back as `Setting` objects. Command-line options, the
fields that API clients send, the studio's sliders and the tables in docs/ are all made from them.
"""

from __future__ import annotations

import difflib
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import annotated_types
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from softlore.errors import ConfigError, SoftloreError
from softlore.settings.lenient import first, flag, integer, number


def setting(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    unit: str = "",
    aliases: tuple[str, ...] = (),
    client_range: tuple[float, float] | None = None,
    slider: tuple[float, float, float] | None = None,
    option: str = "",
    env: str = "",
    expected: str = "",
    file: bool = False,
) -> Any:
    """Declares one setting of a `Settings` class; its type is the field's annotation.

    Args:
        default: the value where none is given.
        help: what it does, in a sentence; shown by the command line, the studio and the docs.
        ge, gt, le: bounds: at least, above, at most.
        unit: of the number, such as "seconds".
        aliases: other names by which API clients (KoboldAI, OpenAI, SillyTavern) send it.
        client_range: a client's number outside it means the default, which is off or usual; other
            numbers out of bounds are brought to the nearest bound.
        slider: low end, high end and step of the studio's slider; none if not given.
        option: name of the command line's option, where it is not the field's.
        env: an environment variable that stands in for the option.
        expected: what an error message says was expected, where type and bounds do not say it.
        file: the command line takes the name of a file that holds the value.
    """
    facts: Any = {
        "unit": unit, "aliases": aliases, "client_range": client_range, "slider": slider,
        "option": option, "env": env, "wording": expected, "file": file,
    }  # fmt: skip
    return Field(default, description=help, ge=ge, gt=gt, le=le, json_schema_extra=facts)


@dataclass(frozen=True)
class Textual:
    """How a list is read from text and from JSON; metadata of a setting's annotation.

    Args:
        parse: from the command line's text; raises ValueError for text that does not fit.
        example: such a text.
        client: from the JSON value of an API client; None for what cannot be used.
        adds_up: whether values that are given one after another form one list.
    """

    parse: Callable[[str], Any]
    example: str
    client: Callable[[Any], Any]
    adds_up: bool = True


@dataclass(frozen=True)
class Setting:
    """One declared setting, as `table` reads it back.

    Attributes:
        type: int, float, bool, str, tuple, or object for what only Python can give.
        optional: whether it may be None.
        choices: all values there are; empty where bounds say it.
        low, high: bounds, inclusive; `above` is an exclusive lower one.
        textual: how a tuple is read.
    """

    name: str
    type: type
    default: Any
    help: str
    optional: bool = False
    choices: tuple[Any, ...] = ()
    low: float | None = None
    above: float | None = None
    high: float | None = None
    textual: Textual | None = None
    unit: str = ""
    aliases: tuple[str, ...] = ()
    client_range: tuple[float, float] | None = None
    slider: tuple[float, float, float] | None = None
    option: str = ""
    env: str = ""
    wording: str = ""
    file: bool = False

    @property
    def expected(self) -> str:
        """What an error message says was expected."""
        if self.wording:
            return self.wording
        if self.choices:
            what = "one of " + ", ".join(map(str, self.choices))
        else:
            kinds = {int: "a whole number", float: "a number", str: "text", tuple: "a list"}
            what = kinds.get(self.type, "another value") + self._bounds()
        return what + (", or none at all" if self.optional else "")

    def _bounds(self) -> str:
        if self.above is not None:
            return f" above {self.above:g}"
        if self.low is None or self.high is None:
            return "" if self.low is None else f" of at least {self.low:g}"
        low, high = (int(x) if self.type is int else f"{x:g}" for x in (self.low, self.high))
        return f" from {low} to {high}"

    @property
    def flag(self) -> str:
        """The command line's option, such as `--top-k`."""
        return self.option or "--" + self.name.replace("_", "-")

    def error(self, value: object, name: str = "") -> ConfigError:
        """The error for a value that does not fit."""
        fix = closest(str(value), map(str, self.choices)) or "choose another"
        return ConfigError(f"{name or self.name} is {value!r:.60}; expected {self.expected}; {fix}")

    def parse(self, text: str) -> Any:
        """A value from text, as the command line has it; its bounds are not checked.

        Raises:
            ValueError: text of another kind.
        """
        if self.textual is not None:
            return self.textual.parse(text)
        if self.type is bool:
            if text.lower() not in ("true", "false", "1", "0"):
                raise ValueError(text)
            return text.lower() in ("true", "1")
        return text if self.type is object else self.type(text)

    def from_client(self, value: object) -> Any:
        """A value from what an API client sent, within bounds; None for what cannot be used."""
        if self.textual is not None:
            return self.textual.client(value)
        if self.type is bool:
            return flag(value)
        sent = integer(value) if self.type is int else number(value)
        if sent is None:
            return None
        if self.client_range and not self.client_range[0] <= sent <= self.client_range[1]:
            return self.default
        low = sent if self.low is None else max(self.low, sent)
        return low if self.high is None else min(self.high, low)


@functools.cache
def table(settings: type[BaseModel]) -> Mapping[str, Setting]:
    """The declared settings of a class, by name, in their order."""
    return types.MappingProxyType(
        {name: _read(name, field) for name, field in settings.model_fields.items()}
    )


def _read(name: str, field: Any) -> Setting:
    kind, optional, choices = _kind(field.annotation)
    metadata = {type(item): item for item in field.metadata}
    return Setting(
        name, kind, field.default, field.description or "", optional, choices,
        low=getattr(metadata.get(annotated_types.Ge), "ge", None),
        above=getattr(metadata.get(annotated_types.Gt), "gt", None),
        high=getattr(metadata.get(annotated_types.Le), "le", None),
        textual=metadata.get(Textual),
        **field.json_schema_extra or {},
    )  # fmt: skip


def _kind(annotation: Any) -> tuple[type, bool, tuple[Any, ...]]:
    """Type, whether None is among its values, and choices, of an annotation."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(annotation) if union else (annotation,)
    optional, parts = type(None) in parts, tuple(p for p in parts if p is not type(None))
    kind = typing.get_origin(parts[0]) or parts[0]
    if kind is Literal:
        choices = typing.get_args(parts[0])
        return type(choices[0]), optional, choices
    if kind is bool:
        return bool, optional, (False, True)
    return (kind if kind in (int, float, str, tuple) else object), optional, ()


class Settings(BaseModel):
    """The base of all classes of settings: frozen, checked when made, no unknown names.

    Types are strict: a number is not text, a boolean or NaN. `noun` names a setting in messages.

    Raises:
        ConfigError: an unknown name, or a value that does not fit its declaration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    noun: ClassVar[str] = "setting"

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _explained(type(self), values, error) from None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The settings given by name, and the defaults for the rest. Raises ConfigError."""
        for name in values:
            cls.check_name(name)
        return cls(**values)

    @classmethod
    def check_name(cls, name: str) -> None:
        """Raises ConfigError unless there is a setting of that name."""
        if name not in table(cls):
            raise cls.unknown(name)

    @classmethod
    def unknown(cls, name: str) -> ConfigError:
        """The error for a name that is not a setting's."""
        known = table(cls)
        fix = closest(str(name), known) or "fix the name, or leave it out"
        return ConfigError(
            f"there is no {cls.noun} {name!r:.80}; expected one of {', '.join(known)}; {fix}"
        )

    def changed(self, **changes: Any) -> Self:
        """A copy with some settings changed, checked again. Raises ConfigError."""
        return self.of({**dict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return dict(self)


def _explained(
    settings: type[Settings], values: Mapping[str, Any], error: ValidationError
) -> SoftloreError:
    """The ConfigError for the first of pydantic's errors."""
    first_error = error.errors(include_url=False)[0]
    raised = first_error.get("ctx", {}).get("error")
    if isinstance(raised, SoftloreError):  # by a validator of ours
        return raised
    name = str(first_error["loc"][0])
    known = table(settings)
    return known[name].error(values.get(name)) if name in known else settings.unknown(name)


def from_client(settings: type[Settings], sent: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from the fields of an API client's request, by their names or aliases.

    Clients are careless: numbers come in quotes and out of range, and `null` for what is unset.
    What cannot be used, and what has its default, is left out. Lists of several names are joined.
    """
    values = {}
    for name, setting in table(settings).items():
        names = (name, *setting.aliases)
        if setting.textual is not None and setting.textual.adds_up:
            parts = [setting.textual.client(sent[n]) for n in names if sent.get(n) is not None]
            value = tuple(item for part in parts for item in part)
        else:
            value = setting.from_client(first(sent, *names))
        if value not in (None, (), setting.default):
            values[name] = value
    return values


def closest(name: str, names: Iterable[str]) -> str:
    """A question for the name that was likely meant, "did you mean 'top_k'?", or ""."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""
