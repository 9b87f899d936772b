"""A story's settings: what the model is told beside the text, and how it writes on."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from softlore.errors import ConfigError
from softlore.lore.plain import plain

MAX_SETTINGS = 2**25  # characters of JSON, what other programs' saves hold beside the text included
_TEXTS = ("title", "memory", "note", "note_template", "lorebook", "prompts", "model")
_MAPPINGS = ("sampling", "extra")
# Name, most; the least is 0.
_NUMBERS = (
    ("note_depth", 10**6),
    ("context_tokens", 10**9),
    ("budget", 10**9),
    ("seed", 2**63 - 1),
)


@dataclass(frozen=True)
class StorySettings:
    """What a story is written with. Checked when it is made; every change is a new object.

    Attributes:
        title: for people; the file's name says which story it is.
        memory: text that always heads the context.
        note: the author's note, text that stands near the context's end.
        note_depth: how many messages from the end the note stands; 0 is the very end.
        note_template: what is put around the note, `<|>` standing for it, as in KoboldAI.
        lorebook: path of a lorebook file; empty for none.
        prompts: folder of soft prompts; empty for the default one.
        model: hub id or folder; empty for the default model.
        seed: of every draw; None draws anew each time.
        sampling: settings of the samplers by name; what is left out has its default.
        context_tokens: most tokens that the model reads at once; 0: all it can.
        budget: most tokens of them for lore; 0: a quarter.
        extra: what a newer softlore or another program keeps here; never lost, never read.
    """

    title: str = ""
    memory: str = ""
    note: str = ""
    note_depth: int = 3
    note_template: str = "[Author's note: <|>]"
    lorebook: str = ""
    prompts: str = ""
    model: str = ""
    seed: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    context_tokens: int = 0
    budget: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise _unfit(name, getattr(self, name), "text")
        for name, most in _NUMBERS:
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and 0 <= value <= most) and not (name == "seed" and value is None):
                raise _unfit(name, value, f"a whole number from 0 to {most}")
        for name in _MAPPINGS:
            if not isinstance(getattr(self, name), dict):
                raise _unfit(name, getattr(self, name), "a mapping of JSON values")
        known = {one.name for one in fields(self)} - {"extra"}
        for name in self.extra:
            if name in known:
                raise ConfigError(f"extra holds {name!r}, which is a setting itself; set that one")
        try:
            copied = plain({one.name: getattr(self, one.name) for one in fields(self)})
        except ValueError as error:
            raise ConfigError(f"a story's settings cannot be kept: {error}") from None
        for name in _MAPPINGS:  # a copy, so that nobody changes what was checked
            object.__setattr__(self, name, copied[name])
        if (size := len(self.to_json())) > MAX_SETTINGS:
            raise ConfigError(
                f"a story's settings are {size:,} characters long; expected at most "
                f"{MAX_SETTINGS:,}; shorten the memory, or what another program kept in extra"
            )

    def changed(self, **changes: Any) -> Self:
        """The settings with some changed. Raises ConfigError for one that is unknown or unfit."""
        known = [one.name for one in fields(self)]
        for name in changes:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "take it out"
                raise ConfigError(
                    f"a story has no setting {name!r:.80}; expected one of {', '.join(known)}; "
                    f"{hint}"
                )
        return replace(self, **changes)

    def as_data(self) -> dict[str, Any]:
        """As plain data, what stands in `extra` beside the settings of this version."""
        data = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "extra"}
        return {**self.extra, **data}

    def unusual(self) -> dict[str, Any]:
        """As plain data, without the settings that have their defaults."""
        usual = type(self)().as_data()
        data = self.as_data()
        return {name: data[name] for name in data if name not in usual or data[name] != usual[name]}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """From what `as_data` gave; unknown names go to `extra`. Raises ConfigError."""
        known = {one.name for one in fields(cls)} - {"extra"}
        extra = {name: value for name, value in data.items() if name not in known}
        return cls(**{name: data[name] for name in data if name in known}, extra=extra)

    def to_json(self) -> str:
        return json.dumps(self.as_data(), ensure_ascii=False, sort_keys=True)


def _unfit(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"a story's {name} is {value!r:.80}; expected {expected}; change it")
