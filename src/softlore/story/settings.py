"""Settings of a story: what the model reads besides its text, and how it is sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from softlore.errors import ConfigError, LoreError
from softlore.lore.entry import Name, Strength
from softlore.lore.plain import plain
from softlore.settings import Names, setting
from softlore.story.changes import LoreChange

# Samplers of every story, before its own: against lines that repeat, and for words at the seam.
STORY_SAMPLING = {"dry_multiplier": 0.8, "dry_allowed_length": 4, "heal": True}
MAX_CAST = 64
MAX_SETTINGS = 2**25  # characters of JSON, including what other programs' saves hold
Form = Literal["prose", "chat", "instruct"]
_JSON = "a mapping of JSON values"
_CHANGES = "a list of changes, each with `entry`, `turn` and `text` or `prompt`"


class StorySettings(Names):
    """Settings of a story. They cannot be changed; `changed` makes new ones."""

    noun: ClassVar[str] = "setting of a story"

    title: str = setting("", "A title for people; stories are identified by their file's name.")
    memory: str = setting("", "Text at the start of every context.")
    note: str = setting("", "The author's note, near the end of the context.")
    note_depth: int = setting(
        3, "How many turns before the end the note stands; 0 is the very end.", ge=0, le=10**6
    )
    note_template: str = setting(
        "[Author's note: <|>]", "Text around the note, which replaces `<|>`, as in KoboldAI."
    )
    lorebook: str = setting("", "Path of a lorebook; empty for none.")
    prompts: str = setting("", "Folder of soft prompts; empty for the default one.")
    model: str = setting("", "Short name, folder, GGUF file or hub id; empty for the default.")
    seed: int | None = setting(
        None, "Random seed; none for a new one each time.", ge=0, le=2**63 - 1
    )
    sampling: dict[str, Any] = setting(
        {}, "Settings of the samplers that differ from a story's.", expected=_JSON
    )
    vectors: dict[Name, Strength] = setting(
        {},
        "Control vectors that steer the story, by name, with a strength each.",
        expected="a mapping of names to numbers from -100 to 100",
    )
    form: Form = setting(
        "prose",
        "How turns follow each other: as prose, as lines of named speakers (chat), or as messages "
        "in the model's chat template (instruct).",
    )
    cast: dict[Name, list[Name]] = setting(
        {},
        "The speakers of a chat that the model writes for, each with the entries or soft prompts "
        "that are always active when it speaks, besides those of its own name.",
        expected="a mapping of names to lists of names",
    )
    trim: bool = setting(
        True, "End the model's turns with a sentence where their length cuts them off."
    )
    context_tokens: int = setting(
        0, "Length of the context; 0 for the model's own.", ge=0, le=10**9, unit="tokens"
    )
    budget: int = setting(
        0, "Most of the context for lore; 0 for a quarter.", ge=0, le=10**9, unit="tokens"
    )
    chapters: bool = setting(
        True, "Condense what leaves the context by chapters, and read those in its place."
    )
    changes: list[dict[str, Any]] = setting(
        [], "What entries are from a turn on; see `Story.change_entry`.", expected=_CHANGES
    )
    dropped: list[str] = setting([], "Names that are not suggested as lore.")
    extra: dict[str, Any] = setting(
        {}, "Data of a newer softlore or of another program: saved, never read.", expected=_JSON
    )

    @model_validator(mode="before")
    @classmethod
    def _copy(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Copies the values, as nobody may change those that were checked."""
        try:
            return {k: v if isinstance(v, int) else plain(v) for k, v in values.items()}
        except ValueError as error:
            raise ConfigError(
                f"a story's settings cannot be saved: {error}; expected {_JSON}; change them"
            ) from None

    @field_validator("vectors")
    @classmethod
    def _drop_those_that_are_off(cls, vectors: dict[str, float]) -> dict[str, float]:
        return {name: strength for name, strength in vectors.items() if strength}

    @field_validator("cast")
    @classmethod
    def _check_cast(cls, cast: dict[str, list[str]]) -> dict[str, list[str]]:
        if max(len(cast), *map(len, cast.values()), 0) > MAX_CAST:
            raise ConfigError(
                f"the cast has {len(cast)} speakers; expected {MAX_CAST} at most, and as many "
                "names for each; take some out"
            )
        return cast

    @field_validator("changes")
    @classmethod
    def _check_changes(cls, changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            return [LoreChange(**change).data() for change in changes]
        except (LoreError, TypeError) as error:
            raise ConfigError(
                f"a change of a story's lore cannot be used: {error}; expected {_CHANGES}; mend it"
            ) from None

    @property
    def lore_changes(self) -> list[LoreChange]:
        """The changes of entries, as objects."""
        return [LoreChange(**change) for change in self.changes]

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        for name in self.extra:
            if name in type(self).model_fields and name != "extra":
                raise ConfigError(f"extra has {name!r}, which is a setting itself; set that one")
        if (size := len(self.to_json())) > MAX_SETTINGS:
            raise ConfigError(
                f"a story's settings are {size:,} characters long; expected at most "
                f"{MAX_SETTINGS:,}; shorten the memory, or the data of other programs in extra"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, those in `extra` among them."""
        return {**self.extra, **{name: value for name, value in self if name != "extra"}}

    def non_defaults(self) -> dict[str, Any]:
        """The settings that differ from their defaults, those in `extra` among them."""
        defaults = dict(type(self)())
        return {k: v for k, v in self.to_dict().items() if k not in defaults or v != defaults[k]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`: unknown names go to `extra`. Raises ConfigError."""
        known = {name: value for name, value in data.items() if name in cls.model_fields}
        known.pop("extra", None)
        return cls(**known, extra={name: data[name] for name in data if name not in known})

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True)
