"""Names of a story's character and reader, which macros in lore stand for."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from softlore.errors import ConfigError
from softlore.settings.table import Settings, setting

MAX_NAME = 160  # characters


class Names(Settings):
    """Names in place of the macros of chat programs. One that is empty is given elsewhere."""

    noun: ClassVar[str] = "name"

    # fmt: off
    char: str = setting("", "Name that {{char}} stands for in lore; empty for the lorebook's own "
        "or the card's.")
    user: str = setting("", "Name that {{user}} stands for in lore; empty for the lorebook's own, "
        "or You.")
    # fmt: on

    def given(self) -> dict[str, str]:
        """The names that are not empty."""
        return {what: name for what in Names.model_fields if (name := getattr(self, what))}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for what, name in (("char", self.char), ("user", self.user)):
            if len(name) > MAX_NAME or not (name.isprintable() or name == ""):
                raise ConfigError(
                    f"{what} is {name[:40]!r}, {len(name)} characters; expected a name in one "
                    f"line of at most {MAX_NAME} characters; choose another"
                )
        return self
