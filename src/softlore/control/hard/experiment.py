"""Experiment files: prompts × variables × models, and assertions about the generated text.

See docs/hard.md. Paths in a file are relative to its folder, and may not lead out of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from softlore.control.hard.assertions import Assertion
from softlore.control.hard.templates import Template
from softlore.errors import ConfigError, LoreError
from softlore.lore import Lorebook
from softlore.lore.files import parse, read_bytes, syntax_of
from softlore.lore.validation import describe, one_line, validation_message

MAX_CASES = 100_000
MODEL = "storyteller"


class Experiment(BaseModel):
    """Prompts, and assertions about the text that is generated after them."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    name: str = "experiment"
    prompts: dict[str, Any] = Field(min_length=1)
    """Templates by name: text, or `{file: PATH}`. An empty template is the bare model."""
    opening: str = ""
    """Template of the text after the prompt, which the model continues."""
    variables: dict[str, list[Any] | dict[str, str]] = Field(default_factory=dict)
    """A list of values, or `{file: PATH}` with a value a line; all combinations are tried."""
    lorebook: str | None = None
    """A lorebook; the variable `entry` runs over its entries."""
    models: list[str] = Field(default_factory=lambda: [MODEL], min_length=1)
    tokens: int = Field(40, ge=1, le=100_000)
    samples: int = Field(1, ge=1, le=1000)
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Fields of `SamplingParams`."""
    seed: int = Field(0, ge=0, le=2**63 - 1)
    asserts: list[Any] = Field(default_factory=list, alias="assert")
    """Assertions: see `assertions.KINDS`."""
    threshold: float = Field(1.0, ge=0.0, le=1.0)
    """Weighted share of the assertions that a case must pass."""
    folder: Path = Field(default=Path(), exclude=True)

    @field_validator("variables", mode="before")
    @classmethod
    def _check_names(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if not str(name).isidentifier() or name in ("entry", "output"):
                raise ValueError(f"names a variable {name!r:.60}; use a word of letters, not entry")
        return value

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads an experiment from YAML, JSON or TOML.

        Raises:
            ConfigError: the file is no valid experiment, or names files that don't exist.
        """
        try:
            data = parse(read_bytes(path), str(path), syntax_of(path))
        except LoreError as error:
            raise ConfigError(str(error)) from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} is {describe(data)}; expected an experiment's fields")
        try:
            return cls(**{**data, "folder": path.resolve().parent})
        except ValidationError as error:
            known = [field.alias or name for name, field in cls.model_fields.items()]
            known.remove("folder")
            message = validation_message("Experiment", error, data, known)
            raise ConfigError(one_line(f"{path}: {message}")) from None

    def templates(self) -> dict[str, Template]:
        """The prompts, parsed."""
        return {
            name: Template(self._text(source, f"prompt {name!r}"), f"prompt {name!r}")
            for name, source in self.prompts.items()
        }

    def assertions(self) -> list[Assertion]:
        """The assertions, checked."""
        return [Assertion.parse(data, number) for number, data in enumerate(self.asserts, 1)]

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of the variables' values; `entry` is one of them, as an Entry."""
        values = {name: self._values(name, given) for name, given in self.variables.items()}
        if self.lorebook is not None:
            values["entry"] = list(Lorebook.load(self._path(self.lorebook, "lorebook")).resolved())
        count = self.samples * len(self.models) * len(self.prompts)
        for options in values.values():
            count *= len(options)
        if count > MAX_CASES:
            raise ConfigError(
                f"the experiment {self.name!r} has {count:,} cases; expected at most "
                f"{MAX_CASES:,}; remove some values"
            )
        for combination in itertools.product(*values.values()):
            yield dict(zip(values, combination, strict=True))

    def _values(self, name: str, given: list[Any] | dict[str, str]) -> list[Any]:
        if isinstance(given, dict):
            text = self._text(given, f"variable {name!r}")
            given = [line.strip() for line in text.splitlines() if line.strip()]
        if not given:
            raise ConfigError(f"variable {name!r} has no values; expected one or more; add some")
        return given

    def _text(self, source: Any, what: str) -> str:
        if isinstance(source, str):
            return source
        if not isinstance(source, dict) or list(source) != ["file"]:
            raise ConfigError(f"{what} is {describe(source)}; expected text or {{file: PATH}}")
        path = self._path(source["file"], what)
        try:
            return read_bytes(path).decode()
        except (LoreError, UnicodeDecodeError) as error:
            raise ConfigError(f"the file of {what} can't be read: {error}; check it") from error

    def _path(self, name: Any, what: str) -> Path:
        path = (self.folder / str(name)).resolve()
        if not path.is_relative_to(self.folder):
            raise ConfigError(
                f"{what} names the file {name!r:.200}, outside the experiment's own folder; "
                "expected one in it; move or copy it there"
            )
        return path
